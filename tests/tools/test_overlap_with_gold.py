"""Words that answers share with the golds."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from srpo_jax.runtime.errors import UserError
from tests.reports import documents, evidence, texts, verdicts

TOOL = Path(__file__).parents[2] / "tools" / "overlap_with_gold.py"
spec = importlib.util.spec_from_file_location("overlap_with_gold", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def test_overlap_counts_words_and_their_order():
    # Of "b c a" and "a b c d" three words are shared, two of them ("b c") in the same order.
    f1, rouge, precision, recall = tool.overlap("B, c; a", "a b c d")
    assert (f1, rouge) == pytest.approx((2 * 3 / 7, 2 * 2 / 7))
    assert (precision, recall) == pytest.approx((1, 3 / 4))
    assert tool.overlap("a a", "a b")[0] == pytest.approx(2 * 1 / 4)  # a word counts once
    assert tool.overlap("…", "a") == (0.0,) * 4


def results(rows):
    whole = documents()
    said = dataclasses.replace(texts("srpo"), revisions=tuple(map(tuple, rows)), cut=())
    return evidence(sets=(whole,), texts=(said,), tables=(verdicts("srpo"),)), whole.ids


def test_the_change_is_paired():
    found, ids = results([["a b", "", "a b c d"]] * 2 + [["a", "", "a"]] * 2)
    golds = dict.fromkeys(ids, "a b c d")
    rows = tool.table(tool.measured([found], golds)).splitlines()
    assert rows[0].startswith("| 4 documents |  | N = 0 | 1 | 2 | 2 less 0 |")
    recall = next(line for line in rows if "| recall |" in line)
    assert recall.startswith("| srpo | recall | 37.5 | 0.0 | 62.5 | +25.0 (")
    assert not any("cosine" in line for line in rows)


def test_cosines_are_of_answer_and_gold():
    found, ids = results([["a", "b", "b"]] * 4)
    vectors = {"a": (1.0, 0.0), "b": (0.6, 0.8), "gold": (0.0, 1.0)}
    embed = lambda said: np.array([vectors[text] for text in said])
    rows = tool.table(tool.measured([found], dict.fromkeys(ids, "gold"), embed)).splitlines()
    assert rows[-1].startswith("| srpo | cosine | 0.0 | 80.0 | 80.0 | +80.0 (")


def test_results_that_would_count_twice_or_have_no_gold_are_refused():
    found, ids = results([["a", "b", "c"]] * 4)
    golds = dict.fromkeys(ids, "a")
    with pytest.raises(UserError, match="count twice"):
        tool.measured([found, found], golds)
    with pytest.raises(UserError, match="has no document"):
        tool.measured([found], dict.fromkeys(ids[1:], "a"))
