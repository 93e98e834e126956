"""A plan in words, as JSON and as a page."""

import dataclasses
import json

import pytest

from srpo_jax.planning import report
from srpo_jax.planning.lowering import Held
from srpo_jax.planning.report import Part, Plan, Range

PART = Part(
    name="train step",
    executions=1,
    seconds=Range(0.5, 1.0),
    cycles=2e9,
    kernel_cycles=1e9,
    flops=3e12,
    sent={"fsdp": 4e9},
    peak=5e9,
    temporaries=1e9,
    compiled_in=7.0,
    warnings=("a loop",),
)
PLAN = Plan(
    machine="v5e-8",
    chip="v5e",
    chips=8,
    mesh={"replica": 1, "fsdp": 8, "tensor": 1},
    settings={"model": "<b>"},
    batch={"pairs": 8, "rows": 8, "slots": 32, "targets": 4, "fill": 0.9, "lengths": "made up"},
    memory=16e9,
    held=Held(1, 2, 3, 4),
    excess={},
    parts=(PART,),
    model_flops=1e12,
    mfu=Range(0.5, 0.25),
    pairs_per_second=Range(16.0, 8.0),
    hours=Range(1.0, 2.0),
    cost=None,
    answers_per_second=None,
    versions={"jax": "1"},
)


def test_a_plan_is_said_in_lines():
    said = dict(report.lines(PLAN))
    assert said["machine"] == "v5e-8: 8 chips v5e, mesh replica 1, fsdp 8, tensor 1"
    assert said["train step"].startswith("0.5 to 1 s; 2000 Mcycles (50% attention kernels)")
    assert said["train: MFU"] == "50 to 25 %"
    assert said["  warning"] == "a loop"
    assert "train: cost" not in said


def test_a_round_is_said_with_what_all_of_them_cost():
    batch = PLAN.batch | {"prompts": 8}
    said = dict(report.lines(dataclasses.replace(PLAN, batch=batch, cost=Range(3.0, 6.0))))
    assert said["a round"].startswith("0.5 to 1 s, 3 TFLOP")
    assert said["rounds, no judge: hours"] == "1 to 2"
    assert said["rounds, no judge: cost"] == "3 to 6"


def test_what_does_not_fit_is_said_with_how_much_is_missing():
    refused = dataclasses.replace(PLAN, excess={"train step": 2.5e9}, parts=(), mfu=None)
    assert not refused.fits
    said = dict(report.lines(refused))
    assert said["DOES NOT FIT: train step"] == "2.50 GB a chip too much"


def test_a_record_is_json_and_a_page_is_escaped():
    kept = json.loads(json.dumps(report.record(PLAN)))
    assert (kept["fits"], kept["parts"][0]["sent"]) == (True, {"fsdp": 4e9})
    page = report.page(PLAN)
    assert "model=&lt;b&gt;" in page
    assert "<b>" not in page


@pytest.mark.parametrize(
    ("best", "worst", "said"),
    [(1.0, 2.0, "1 to 2 s"), (1.0, 1.0, "1 s"), (1234.5, 2, "1.23e+03 to 2 s")],
)
def test_ranges(best, worst, said):
    assert Range(best, worst).shown("s") == said
    assert Range(best, worst).times(2) == Range(2 * best, 2 * worst)
    assert Range(best, worst).of(2.0) == Range(2 / best, 2 / worst)
