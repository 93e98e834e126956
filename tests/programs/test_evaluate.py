"""Evaluation on a tiny model: the numbers in the report are those of what was written."""

import json

import jax
import numpy as np
import pytest

from srpo_jax import config as config_module
from srpo_jax import evaluate, revision
from srpo_jax.data import documents
from srpo_jax.data.documents import Document
from srpo_jax.runtime import mesh as mesh_module


class LongerThanGold:
    name, description = "length", "prefers the longer completion"

    def probabilities(self, prompts, a, b):
        return np.array([float(len(x) > len(y)) for x, y in zip(a, b, strict=True)])


DOCUMENTS = {
    name: [Document(f"{name}/{i}", f"text {i} of {name}", "gold" * i, "test") for i in range(5)]
    for name in ("wikipedia", "aclsum")
}


@pytest.fixture
def config(monkeypatch, compiled_once):
    # One device: eight virtual ones only make two cores busy.
    one = mesh_module.make(devices=jax.devices()[:1])
    monkeypatch.setattr(evaluate.mesh_module, "make", lambda **_: one)
    monkeypatch.setattr(documents, "load", lambda name, split: DOCUMENTS[name])
    monkeypatch.setattr(evaluate.judges, "load", lambda config, folder: LongerThanGold())
    config = config_module.default()
    changes = {
        "model.source": "tiny",
        "model.dtype": "float32",
        "data.template": "plain",
        "sampling.max_new_tokens": 6,
        "sampling.batch_size": 2,
        "evaluate.count": 5,
        "evaluate.revisions": 2,
        "evaluate.samples": 2,
        "evaluate.judge_check": 0,
    }
    config_module.update(config, changes, "test")
    monkeypatch.setattr(evaluate, "CHUNK", 1)
    return config


def test_the_report_holds_what_was_written_and_judged(config, tmp_path):
    report = evaluate.evaluate(config, tmp_path, {"start": "tiny"}, title="test")
    assert [(each.name, each.role) for each in report.sets] == [
        ("wikipedia", "in distribution"),
        ("aclsum", "out of distribution"),
    ]
    assert [curve.key.documents for curve in report.curves] == ["wikipedia", "aclsum"]
    for curve in report.curves:
        name = curve.key.documents
        lines = (tmp_path / "samples" / f"start-{name}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines[1:]]
        assert [r["id"] for r in records] == [d.id for d in DOCUMENTS[name]]
        for k in range(3):
            wins = [
                len(r["revisions"][k]) > len(d.gold)
                for r, d in zip(records, DOCUMENTS[name], strict=True)
            ]
            assert curve.cells[k].rate.mean == pytest.approx(np.mean(wins))
    assert [len(each.revisions) for each in report.evidence.texts] == [5, 5]
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000


def test_an_interrupted_evaluation_goes_on(config, tmp_path, monkeypatch):
    whole = evaluate.evaluate(config, tmp_path / "whole", {"start": "tiny"}, title="test")
    real, calls = revision.revise_ids, []

    def interrupted(*args, **kwargs):
        calls.append(list(kwargs["rows"]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(revision, "revise_ids", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(config, tmp_path / "parts", {"start": "tiny"}, title="test")
    parts = evaluate.evaluate(config, tmp_path / "parts", {"start": "tiny"}, title="test")
    assert calls == [[0, 1], [2, 3], [4], [4], [0, 1], [2, 3], [4]]
    assert parts.curves == whole.curves


def test_samples_of_other_settings_are_set_aside(config, tmp_path):
    evaluate.evaluate(config, tmp_path, {"start": "tiny"}, title="test")
    config.sampling.max_new_tokens = 4
    evaluate.evaluate(config, tmp_path, {"start": "tiny"}, title="test")
    assert (tmp_path / "samples" / "start-aclsum.jsonl.old").exists()
