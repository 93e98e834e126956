"""The curve by revision: each number from texts that can be counted by hand."""

import numpy as np
import pytest

from srpo_jax.data.documents import Document
from srpo_jax.evaluation.curve import Revised, curve
from srpo_jax.judges import Verdicts
from srpo_jax.judges.overlap import OverlapJudge

DOCUMENTS = [Document("a", "x", "two words"), Document("b", "y", None), Document("c", "z", "one")]
WRITTEN = Revised(
    revisions=(("one", "one", "one two"), ("a b c", "a b", "a b"), ("p q", "p q", "p q r s")),
    tokens=((1, 1, 2), (3, 2, 2), (2, 2, 4)),
    cut=((False, False, False), (True, False, False), (False, False, True)),
)


class Longer:
    """Prefers more words; has no verdict on the prompt `silent`."""

    name, description, is_proxy = "longer", "", False

    def __init__(self, silent=None):
        self.silent = silent

    def judge(self, prompts, a, b):
        margins = [np.sign(len(s.split()) - len(t.split())) for s, t in zip(a, b, strict=True)]
        said = 0.5 + 0.5 * np.array(margins, np.float64)
        return Verdicts(np.where([x == self.silent for x in prompts], np.nan, said))


def test_every_number_is_what_one_counts():
    expected = {
        # against golds of 2 and 1 words, documents a and c
        "win_rate_0": (0 + 1) / 2,
        "win_rate_1": (0 + 1) / 2,
        "win_rate_2": (0.5 + 1) / 2,
        "win_rate_own_1": (0.5 + 0 + 0.5) / 3,
        "win_rate_own_2": (1 + 0 + 1) / 3,
        "better_1": (0.5 + 0 + 0.5) / 3,
        "better_2": (1 + 0.5 + 1) / 3,
        "better_changed_1": 0.0,
        "better_changed_2": 1.0,
        "unchanged_1": 2 / 3,
        "unchanged_2": 1 / 3,
        "edit_distance_1": (0 + 1 / 3 + 0) / 3,
        "edit_distance_2": (1 / 2 + 0 + 1 / 2) / 3,
        "tokens_0": 2.0,
        "tokens_1": 5 / 3,
        "tokens_2": 8 / 3,
        # "one" in "two words" and "p q" in "one"; at last "one two" has one of two
        "overlap_0": 0.0,
        "overlap_1": 0.0,
        "overlap_2": (2 * 1 / 4 + 0) / 2,
        "cut_0": 1 / 3,
        "cut_1": 0.0,
        "cut_2": 1 / 3,
    }
    assert curve(Longer(), DOCUMENTS, WRITTEN) == pytest.approx(expected)


def test_a_judge_that_is_shown_the_gold_is_not_asked_about_it():
    found = curve(OverlapJudge(DOCUMENTS), DOCUMENTS, WRITTEN)
    assert not [name for name in found if name in ("win_rate_0", "win_rate_1", "win_rate_2")]
    assert found["win_rate_own_2"] > 0.5


def test_what_nobody_judged_is_left_out():
    same = Revised((("one", "one"),), ((1, 1),), ((False, False),))
    found = curve(Longer(), DOCUMENTS[1:2], same)  # no gold, nothing changed
    assert not [name for name in found if name.startswith("win_rate_0")]
    assert "better_changed_1" not in found
    assert found["better_1"] == 0.5
    found = curve(Longer(silent="x"), DOCUMENTS, WRITTEN)
    assert found["win_rate_2"] == 1.0
    assert found["better_2"] == 0.75
