"""`plan`: real programs for machines that are not here. All but the refusals need the TPU's compiler."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from srpo_jax import config as config_module
from srpo_jax import plan as plan_module
from srpo_jax.config import Settings
from srpo_jax.planning import compiling, lowering, machine
from srpo_jax.planning.machine import Machine
from srpo_jax.planning.report import Plan, Range
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[2]
compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler: extra `plan`"
)


def plan(*more: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "srpo_jax.plan", f"--config={ROOT / 'configs' / 'tiny.py'}"]
    return subprocess.run(
        [*program, *more], capture_output=True, text=True, timeout=600, check=False, cwd=ROOT
    )


@pytest.mark.slow
@compiler
def test_a_plan_of_everything(tmp_path):
    done = plan(
        *("--topology=v5e:2x2", "--prompt=60", "--completion=20", "--price=2"),
        *("--config.mesh.tensor=2", "--config.train.steps=3600", f"--output={tmp_path}"),
        *("--config.evaluate.revisions=2", "--config.sampling.max_new_tokens=9"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert (kept["chips"], kept["mesh"]) == (4, {"replica": 1, "fsdp": 2, "tensor": 2})
    assert (kept["batch"]["pairs"], kept["batch"]["rows"]) == (8, 2)
    parts = {part["name"]: part for part in kept["parts"]}
    assert {name: part["executions"] for name, part in parts.items()} == {
        "train step": 1,
        "answer": 8,
        "decode": 3,
        "improve": 16,
    }
    for part in parts.values():
        assert part["warnings"] == []
        assert 0 < part["seconds"]["best"] <= part["seconds"]["worst"]
        # Each chip decodes with a copy of its own.
        assert bool(part["sent"]) == (part["name"] == "train step"), part["name"]
    assert kept["settings"]["decoding"] == "replica 4, fsdp 1, tensor 1"
    assert parts["train step"]["kernel_cycles"] > 0
    held = kept["held"]
    # Tiny: half of it is halved along tensor; AdamW has two numbers for each parameter.
    assert held["optimizer"] == pytest.approx(2 * held["trained"], rel=0.01)
    for end in ("best", "worst"):
        step = parts["train step"]["seconds"][end]
        assert kept["pairs_per_second"][end] == pytest.approx(8 / step)
        assert kept["hours"][end] == pytest.approx(step)
        assert kept["cost"][end] == pytest.approx(4 * 2 * step)
        assert kept["mfu"][end] == pytest.approx(kept["model_flops"] / step / 4 / 197e12)
    assert "Plan for v5e:2x2" in (tmp_path / "plan.html").read_text()


@pytest.mark.slow
@compiler
def test_what_does_not_fit_is_refused_with_what_is_missing(tmp_path):
    """One layer of 8 billion parameters in float32 on four chips of 16 GiB."""
    shape = json.loads((ROOT / "configs/shapes/llama-3.1-8b/config.json").read_text())
    shape |= {"num_hidden_layers": 1, "intermediate_size": 600_064}
    (tmp_path / "config.json").write_text(json.dumps(shape))
    done = plan(
        *("--topology=v5e:2x2", f"--config.model.source={tmp_path}", "--norevision"),
        *("--prompt=100", "--completion=20", f"--output={tmp_path}"),
    )
    assert done.returncode == 1, done.stderr[-3000:]
    kept = json.loads((tmp_path / "plan.json").read_text())
    assert not kept["fits"]
    # Beside what a run holds: the gradient, and the layer gathered in bfloat16 (twice what a chip has of it
    # in float32). Not what is held once more, three times that.
    held, missing = kept["held"], kept["excess"]["train step"]
    least = sum(held.values()) - kept["memory"]
    assert least + 3 * held["trained"] < missing < least + 3.5 * held["trained"]
    assert "DOES NOT FIT: train step" in done.stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--topology=v9-8"], "--topology=v9-8 is no machine known here"),
        ([], "--topology is missing"),
        (["--topology=v5e-64", "--config.train.batch_size=8"], "=8 pairs are fewer than"),
        (["--topology=v5e-8", "--config.mesh.tensor=3"], "config.mesh.tensor=3"),
        (["--topology=v5e-8", "--config.model.source=nothing"], "'nothing'"),
    ],
)
def test_mistakes_end_in_a_sentence(flags, said):
    if any("v5e" in flag for flag in flags) and importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU's compiler: extra `plan`")
    done = plan(*flags)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.slow
@compiler
def test_a_round_of_online_learning():
    """What it runs, and how often: PPO, whose value head must lie beside the policy."""
    done = plan(
        *("--online", "--topology=v5e:2x2", "--prompt=60", "--completion=20"),
        *("--config.online.objective=ppo", "--config.online.minibatches=2"),
        *("--config.online.epochs=3", "--config.sampling.batch_size=16"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {line[:29].rstrip(): line[29:] for line in done.stdout.splitlines()}
    assert "8 prompts in 4 rows" in said["batch"]
    assert "s, 6 times;" in said["update"]
    assert "s, 4 times;" in said["score"]  # policy and reference, of two minibatches each
    assert "s, 2 times;" in said["prefill"]  # 16 rows are those of 4 prompts
    assert "s, 2 times;" in said["write"]
    assert "TFLOP" in said["a round"]


def test_a_search_ranks_what_fits_and_tries_no_more_where_something_does_not(monkeypatch):
    """With plans by a formula: tensor 4 is refused, remat none does not fit, more pairs are faster."""
    tried = []

    def made(settings: Settings, where: Machine, *_: object, **__: object) -> Plan:
        tensor, remat, size = settings.mesh.tensor, settings.model.remat, settings.train.batch_size
        tried.append((tensor, remat, size))
        if tensor == 4:
            raise UserError("heads do not divide")
        speed = size / (tensor + (remat == "full"))
        fields = dict.fromkeys(field.name for field in dataclasses.fields(Plan))
        fields |= {"mesh": {"tensor": tensor}, "settings": {"remat": remat}}
        fields |= {"batch": {"pairs": size}, "excess": {}, "pairs_per_second": Range(speed, speed)}
        if remat == "none":
            fields |= {"excess": {"train step": 1e9 / tensor}, "pairs_per_second": None}
        return Plan(**fields)

    monkeypatch.setattr(plan_module, "plan", made)
    monkeypatch.setattr(Machine, "devices", [None] * 8)
    settings = config_module.checked(config_module.default())
    model = dataclasses.replace(settings.model, source="configs/shapes/llama-3.1-8b")
    settings = dataclasses.replace(settings, model=model)
    found = plan_module.search(settings, machine.named("v5e-8"), plan_module.Lengths(9, 9), 0.0)
    order = [(one.mesh["tensor"], one.settings["remat"], one.batch["pairs"]) for one in found]
    assert order[0] == (1, "dots", 32)
    assert [one.fits for one in found] == [True] * 18 + [False] * 3
    assert order[-3:] == [(8, "none", 1), (2, "none", 4), (1, "none", 8)]  # the least missing first
    # Of what does not fit no larger batch is tried, of what is refused none.
    assert [size for tensor, remat, size in tried if remat == "none"] == [8, 4, 2, 1]
    assert [size for tensor, remat, size in tried if (tensor, remat) == (4, "full")] == [2]


def test_pairs_that_are_not_here_are_named_beside_the_lengths_taken_instead():
    values = config_module.default()
    values.model.source = "tiny"
    values.train.batch_size = 2
    values.data.pairs = "hub:owner/name"
    settings = config_module.checked(values)
    mesh = mesh_module.of_settings(settings.mesh, jax.devices()[:1])
    lengths = plan_module.Lengths(12, 5)
    architecture = plan_module._architecture(settings)
    _, said = plan_module.make_batch(settings, architecture, mesh, lengths)
    assert said["lengths"] == (
        "prompts of 12, completions of 5 tokens; hub:owner/name is no file here"
    )


def test_what_lies_beside_a_program_must_fit_too(monkeypatch):
    """Each program alone does; the second has no room beside what a run holds meanwhile."""
    fields = {f.name: 1.0 for f in dataclasses.fields(compiling.Estimate)}
    fields |= {"collectives": (), "kernels": (), "warnings": (), "peak": 10e9}
    monkeypatch.setattr(compiling, "estimate", lambda *_: compiling.Estimate(**fields))
    where, mesh = machine.named("v5e-8"), mesh_module.make(devices=jax.devices()[:1])
    programs = [
        (lowering.Program(n, None, None, beside=int(b)), mesh) for n, b in (("a", 1e9), ("b", 9e9))
    ]
    parts, excess = plan_module._compiled(programs, None, where)
    assert [part.peak for part in parts] == [11e9, 19e9]
    assert excess == {"b": 19e9 - where.chip.memory}


def test_what_is_not_trained_is_said():
    values = config_module.default()
    values.model.source, values.train.frozen = "tiny", ("embedder.*", "final_norm.*")
    settings = config_module.checked(values)
    said = plan_module._said(settings, plan_module._architecture(settings))
    assert said["trained"] == "all but embedder.*, final_norm.*"
