"""Making pairs: what is written, and that an interrupted attempt goes on where it stopped."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from srpo_jax import config as config_module
from srpo_jax import pairs, revision
from srpo_jax.data import documents, records
from srpo_jax.data.documents import Document
from srpo_jax.models.digest import Digests
from srpo_jax.pairing import drawing
from srpo_jax.runtime import locks
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from tests import processes


class ShorterIsBetter:
    name, description = "shorter", "prefers the shorter completion, 3 to 1"

    def probabilities(self, prompts, a, b):
        return np.array([0.5 + 0.25 * np.sign(len(y) - len(x)) for x, y in zip(a, b, strict=True)])


LONG = Document("test/long", "long " * 50, "gold", "train")
DOCUMENTS = [Document(f"test/{i}", f"document number {i}", "gold", "train") for i in range(9)]
DOCUMENTS.insert(2, LONG)


@pytest.fixture
def config(monkeypatch, compiled_once):
    # One device: eight virtual ones only make two cores busy.
    one = mesh_module.make(devices=jax.devices()[:1])
    monkeypatch.setattr(mesh_module, "make", lambda **_: one)
    monkeypatch.setattr(documents, "load", lambda name, split: DOCUMENTS)
    monkeypatch.setattr(pairs.judges, "load", lambda *_, **__: ShorterIsBetter())
    config = config_module.default()
    changes = {
        "model.source": "tiny",
        "model.dtype": "float32",
        "data.template": "plain",
        "pairs.count": 6,
        "pairs.max_prompt_tokens": 80,
        "sampling.max_new_tokens": 8,
        "sampling.batch_size": 4,
    }
    config_module.update(config, changes, "test")
    return config


def test_pairs_are_labelled_by_the_judge_and_long_documents_passed_over(config, tmp_path, capsys):
    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "pairs.jsonl")
    written = records.read_pairs(tmp_path / "pairs.jsonl")
    assert {pair.prompt for pair in written} <= {d.prompt for d in DOCUMENTS if d != LONG}
    assert len(written) >= 4
    for pair in written:
        assert pair.chosen != pair.rejected
        assert len(pair.chosen) <= len(pair.rejected)
        assert pair.label_prob == (0.75 if len(pair.chosen) < len(pair.rejected) else 0.5)
    said = capsys.readouterr().out
    assert "1 longer than 80 tokens passed over" in said
    # A random model over 264 tokens hardly ever ends within 8.
    assert re.search(r"1[0-2] of 12 completions were cut off at 8 tokens", said)


def test_what_has_no_verdict_is_left_out_and_counted(config, tmp_path, monkeypatch, capsys):
    class Unsure(ShorterIsBetter):
        def probabilities(self, prompts, a, b):
            return np.where(np.arange(len(a)) == 0, np.nan, super().probabilities(prompts, a, b))

    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "all.jsonl")
    monkeypatch.setattr(pairs.judges, "load", lambda *_, **__: Unsure())
    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "pairs.jsonl")
    every, written = (records.read_pairs(tmp_path / f"{name}.jsonl") for name in ("all", "pairs"))
    assert written == every[1:]
    assert "; 1 comparisons without a verdict; " in capsys.readouterr().out


def test_another_judge_of_the_same_name_is_told_of(config, tmp_path, capsys):
    output = tmp_path / "pairs.jsonl"
    config.judge.update({"name": "reward", "source": "a"})
    pairs.write(config_module.checked(config), output, [records.Pair("x", "y", "z")], "pairs")
    config.judge.source = "b"
    assert pairs.is_made(config_module.checked(config), output)
    pairs.say_made(config_module.checked(config), output)
    assert "judged with judge.source='a' and not 'b': delete it for that" in capsys.readouterr().out


def test_an_interrupted_attempt_goes_on_and_ends_with_the_same_pairs(config, tmp_path, monkeypatch):
    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "whole.jsonl")
    calls, real = [], revision.Trunks.write

    def interrupted(trunks, branches):
        calls.append([branch.row for branch in branches])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(trunks, branches)

    monkeypatch.setattr(revision.Trunks, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "parts.jsonl")
    assert not (tmp_path / "parts.jsonl").exists()
    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "parts.jsonl")
    assert calls == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


DRAWN = """
import sys
from pathlib import Path
from srpo_jax import config, pairs

pairs.make_pairs(config.read(Path(sys.argv[1])), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.slow
def test_kill_9_while_pairs_are_drawn_ends_with_the_same_pairs(config, tmp_path, monkeypatch):
    monkeypatch.undo()
    texts = [json.dumps({"prompt": f"document number {i}"}) for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    config.pairs.update({"documents": str(tmp_path / "texts.jsonl"), "count": 40})
    config.judge.name, config.sampling.batch_size = "shorter", 8
    config_module.save(config_module.checked(config), tmp_path / "settings.json")
    killed, kept = tmp_path / "killed.jsonl", tmp_path / "killed.jsonl.samples"

    def start(output):
        command = [sys.executable, "-c", DRAWN, tmp_path / "settings.json", tmp_path, output]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    with processes.within(400, start(killed)) as drawing:
        while drawing.poll() is None and not (kept.exists() and kept.read_text().count("\n") > 5):
            time.sleep(0.002)
        drawing.kill()
    assert drawing.returncode == -signal.SIGKILL
    assert 5 < kept.read_text().count("\n") < 41
    assert not killed.exists()
    for output in (killed, tmp_path / "whole.jsonl"):
        with processes.within(300, start(output)) as drawing:
            assert drawing.wait() == 0
    assert killed.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_programs_do_not_make_the_same_pairs(config, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    output = tmp_path / "pairs.jsonl"
    with (
        processes.holding(tmp_path / "pairs.jsonl.lock"),
        pytest.raises(UserError, match=r"pairs\.jsonl: another process makes these pairs"),
    ):
        pairs.make_pairs(config_module.checked(config), tmp_path, output)
    assert not output.with_name("pairs.jsonl.samples").exists()


def test_samples_of_other_settings_are_not_mixed_in(config, tmp_path):
    (tmp_path / "pairs.jsonl.samples").write_text('{"seed": 1}\n')
    with pytest.raises(UserError, match="other settings"):
        pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "pairs.jsonl")


def test_pairs_of_a_model_that_was_trained_on_are_not_taken_for_todays(
    config, tmp_path, monkeypatch
):
    weights = ["a", "b"]
    monkeypatch.setattr(Digests, "of", lambda self, source: weights[0])
    written_by(config, tmp_path, "pairs", count=4)
    written_by(config, tmp_path, "pairs", count=4)
    weights.pop(0)
    with pytest.raises(UserError, match=r"was made with weights of model\.source='a', now 'b'"):
        written_by(config, tmp_path, "pairs", count=4)
    (tmp_path / "pairs.jsonl").unlink()
    with pytest.raises(
        UserError, match=r"samples was sampled with other settings \(weights of model\.source"
    ):
        written_by(config, tmp_path, "pairs", count=4)


def test_samples_of_documents_that_were_rewritten_are_not_mixed_in(config, tmp_path, monkeypatch):
    written_by(config, tmp_path, "pairs", count=4)
    (tmp_path / "pairs.jsonl").unlink()
    others = [dataclasses.replace(one, prompt=f"{one.prompt}!") for one in DOCUMENTS]
    monkeypatch.setattr(documents, "load", lambda name, split: others)
    with pytest.raises(UserError, match=r"was sampled with other settings \(prompts"):
        written_by(config, tmp_path, "pairs", count=4)


def test_what_is_not_read_may_change(config, tmp_path):
    """After an evaluation at another temperature the same pairs were refused, to be drawn all anew."""
    output = tmp_path / "pairs.jsonl"
    for goal, changes in (
        ("preferences", {"sampling.temperature": 0.7, "sampling.top_p": 0.9}),
        ("gold", {"sampling.temperature": 0.5, "sampling.max_new_tokens": 9}),
    ):
        config.pairs.goal = goal
        pairs.write(config_module.checked(config), output, [records.Pair("x", "y", "z")], "pairs")
        before = drawing._what(drawing._header(config_module.checked(config)))
        config_module.update(config, changes, "test")
        now = config_module.checked(config)
        assert pairs.is_made(now, output)
        assert (drawing._what(drawing._header(now)) == before) == (goal == "preferences")
    config.pairs.temperature = 0.5
    with pytest.raises(UserError, match=r"made with pairs\.temperature=1\.0, now 0\.5"):
        pairs.is_made(config_module.checked(config), output)


def test_a_folder_is_no_output(config, tmp_path):
    """It was taken for the pairs, with status 0."""
    with pytest.raises(UserError, match="is a folder: name the file"):
        pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path)


def test_too_few_documents_is_an_error(config, tmp_path):
    config.pairs.count = 100
    with pytest.raises(UserError, match="fewer than the 100"):
        pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "pairs.jsonl")


def test_documents_of_a_file_with_other_names(config, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"article": "one text"}\n{"article": "another"}\n')
    config.pairs.documents = str(tmp_path / "a.jsonl")
    config.pairs.fields = ("prompt=article",)
    config.pairs.count = 2
    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / "pairs.jsonl")
    written = records.read_pairs(tmp_path / "pairs.jsonl")
    assert [pair.prompt for pair in written] == ["one text", "another"]


def written_by(config, tmp_path, name, **changes):
    config_module.update(config, {f"pairs.{key}": value for key, value in changes.items()}, "test")
    pairs.make_pairs(config_module.checked(config), tmp_path, tmp_path / f"{name}.jsonl")
    return records.read_pairs(tmp_path / f"{name}.jsonl", rejected=False)


def test_golds_need_no_model(config, tmp_path, monkeypatch):
    monkeypatch.setattr(revision, "revise_ids", None)
    written = written_by(config, tmp_path, "golds", goal="gold", count=3, skip=2)
    kept = [d for d in DOCUMENTS if d != LONG]
    assert [(pair.prompt, pair.chosen) for pair in written] == [
        (d.prompt, d.gold) for d in kept[2:5]
    ]


@pytest.mark.parametrize("draw", ["revisions", "endings", "spans"])
def test_edits_begin_with_one_draft_each(config, tmp_path, draw):
    written = written_by(
        config, tmp_path, draw, draw=draw, samples=3, goal="improve", choose="first", count=4
    )
    drafts = {}
    for pair in written:
        assert drafts.setdefault(pair.prompt, pair.rejected) == pair.rejected
        assert pair.chosen != pair.rejected


def test_the_first_sample_is_the_same_whatever_follows(config, tmp_path):
    """Row i * k draws what it draws with any relation of the others to it."""
    seen = [
        written_by(config, tmp_path, draw, draw=draw, goal="improve", choose="first", count=4)
        for draw in ("answers", "endings")
    ]
    drafts = [{pair.prompt: pair.rejected for pair in one} for one in seen]
    shared = drafts[0].keys() & drafts[1].keys()
    assert shared
    assert all(drafts[0][prompt] == drafts[1][prompt] for prompt in shared)


def test_settings_that_contradict_each_other_are_named(config, tmp_path):
    for changes, said in (
        ({"samples": 1}, "samples=1: config.pairs.choose='extremes' needs at least 2"),
        ({"goal": "improve", "choose": "first", "margin": 0.1}, "set config.pairs.edits=better"),
    ):
        with pytest.raises(UserError, match=said):
            written_by(config, tmp_path, "none", **({"samples": 2} | changes))


def test_another_choice_among_the_same_samples_needs_no_model(config, tmp_path, monkeypatch):
    written_by(config, tmp_path, "one", samples=3, count=4)
    monkeypatch.setattr(revision, "revise_ids", None)
    config.sampling.batch_size, config.model.remat = 2, "none"  # of no matter for what is drawn
    with pytest.raises(
        UserError, match=r"one\.jsonl was made with pairs\.choose='extremes', now 'all'"
    ):
        written_by(config, tmp_path, "one", choose="all")
    (tmp_path / "one.jsonl").unlink()
    assert len(written_by(config, tmp_path, "one", choose="all")) > 4
