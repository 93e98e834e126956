"""What a judge remembers of the completions that it has scored."""

import numpy as np

from srpo_jax.judges import judge as judge_module
from srpo_jax.judges.scores import ScoreJudge


class Letters:
    unscored = "empty"

    def __init__(self):
        self.asked = 0

    def scores(self, prompts, completions):
        self.asked += len(completions)
        return np.array([float(len(y)) for y in completions])


def test_a_completion_is_scored_once_and_a_long_memory_is_cut(monkeypatch):
    monkeypatch.setattr(judge_module, "REMEMBERED", 3)
    scorer = Letters()
    judge = ScoreJudge("letters", "", scorer)
    judge.scores(["x"] * 4, ["a", "bb", "ccc", "a"])
    assert scorer.asked == 3
    judge.scores(["x"] * 2, ["dddd", "a"])  # four are remembered now
    assert scorer.asked == 4
    np.testing.assert_array_equal(judge.scores(["x"] * 2, ["dddd", "a"]), [4.0, 1.0])
    assert scorer.asked == 4
    judge.scores(["x"], ["bb"])
    assert scorer.asked == 5
