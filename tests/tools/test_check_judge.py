"""A judge is checked on the golds of a file."""

import importlib.util
import json
from pathlib import Path

import pytest

from srpo_jax.runtime.errors import UserError

TOOL = Path(__file__).parents[2] / "tools" / "check_judge.py"
spec = importlib.util.spec_from_file_location("check_judge", TOOL)
check_judge = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_judge)


def written(path, golds):
    rows = [
        {"id": f"a/{i}", "prompt": f"Text {i} is about thing {i} and no other.", "gold": gold}
        for i, gold in enumerate(golds)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_golds_of_a_file_meet_what_was_made_of_them(tmp_path, capsys):
    golds = ["one thing of four words", "another", None, "a third thing here", "a fourth thing"]
    file = written(tmp_path / "mine.jsonl", golds)
    check_judge.main([str(file), "--count=3", "--judge=longer"])
    lines = capsys.readouterr().out.splitlines()
    found = {cells[1].strip(): cells for cells in (line.split("|") for line in lines[2:])}
    # Two golds of more than a word can be cut in half and shuffled; the third is one word.
    assert found["gold cut in half"][2].strip().startswith("100.0 % (")
    assert found["gold shuffled"][2].strip().startswith("50.0 % (")
    assert found["gold cut in half"][3].strip() == "2"


def test_a_file_without_golds_is_refused(tmp_path):
    file = written(tmp_path / "mine.jsonl", [None, None])
    with pytest.raises(UserError, match="has no document with a gold"):
        check_judge.documents(file, 5)


def test_labels_are_held_against_the_golds(tmp_path, capsys):
    file = written(tmp_path / "mine.jsonl", ["a b c", "a b c", "a b c"])
    pairs = [("a b d e f", "a x"), ("x", "a"), ("b a c", "c b a")]
    rows = [
        {"prompt": f"Text {i} is about thing {i} and no other.", "chosen": w, "rejected": l}
        for i, (w, l) in enumerate(pairs)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check_judge.main([str(file), f"--labels={tmp_path / 'pairs.jsonl'}"])
    shared, longer = capsys.readouterr().out.splitlines()[2:]
    assert shared.startswith("| shares more words with the gold (F1) | 50.0 % (")
    assert shared.endswith("| 2 |")
    assert longer.startswith("| is the longer | 100.0 % (")
    assert longer.endswith("| 1 |")
    file = written(tmp_path / "other.jsonl", ["a b c"])
    with pytest.raises(UserError, match="FILE lacks 2 of 3 prompts"):
        check_judge.main([str(file), f"--labels={tmp_path / 'pairs.jsonl'}"])
