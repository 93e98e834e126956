"""What a completion is worth, by score, against the gold, and among its own."""

import numpy as np
import pytest

from srpo_jax.judges import rewards
from srpo_jax.judges.ensemble import Ensemble
from srpo_jax.judges.length import LengthJudge
from srpo_jax.judges.scores import ScoreJudge
from srpo_jax.runtime.errors import UserError

PROMPTS, GOLDS = ["a", "b"], ["one two", "three"]
TEXTS = [["x", "x y", "x y z"], ["", "p q", "r"]]
SHORTER = LengthJudge("shorter")


class Letters:
    unscored = "it is empty"

    def scores(self, prompts, completions):
        return np.array([float(len(y)) if y else np.nan for y in completions])


def test_the_score_is_the_judges_own():
    found = rewards(SHORTER, "score", PROMPTS, GOLDS, TEXTS)
    assert found.tolist() == [[-1, -2, -3], [0, -2, -1]]
    found = rewards(ScoreJudge("letters", "", Letters()), "score", PROMPTS, GOLDS, TEXTS)
    np.testing.assert_array_equal(found, [[1, 3, 5], [np.nan, 3, 1]])


def test_against_the_gold():
    found = rewards(SHORTER, "gold", PROMPTS, GOLDS, TEXTS)
    assert found.tolist() == [[1, 0.5, 0], [1, 0, 0.5]]


def test_among_its_own():
    found = rewards(SHORTER, "others", PROMPTS, [None, None], TEXTS)
    assert found.tolist() == [[1, 0.5, 0], [1, 0, 0.5]]


def test_what_cannot_be_had_is_said():
    both = Ensemble("both", [SHORTER, SHORTER], "mean")
    with pytest.raises(UserError, match=r"the judge both compares completions"):
        rewards(both, "score", PROMPTS, GOLDS, TEXTS)
    with pytest.raises(UserError, match=r"and 1 of 2 documents have no gold"):
        rewards(SHORTER, "gold", PROMPTS, [None, "x"], TEXTS)
