"""A judge that was interrupted goes on behind the scores that it had given."""

import numpy as np
import pytest

from srpo_jax import judges
from srpo_jax.data.records import Message
from srpo_jax.judges import JudgeSettings, scores
from srpo_jax.judges.kept import FOLDER, KeptScores
from srpo_jax.judges.scores import ScoreJudge

PROMPTS = [f"text {i}" for i in range(6)]
LONGER = [f"longer {i}" for i in range(6)]
SHORT = [f"{i}" for i in range(6)]


class Letters:
    """The number of letters; it dies when it is asked for more than `most` texts."""

    source, unscored = "tiny", "empty"

    def __init__(self, most=100, how="letters"):
        self.asked, self.most, self.how = [], most, how

    def scores(self, prompts, completions):
        if len(self.asked) + len(completions) > self.most:
            raise KeyboardInterrupt
        self.asked += completions
        return np.array([float(len(y)) if y else np.nan for y in completions])


def judged(folder, scorer, a=LONGER):
    judge = ScoreJudge("letters", "", scorer)
    judge.keep(folder)
    return judge.judge(PROMPTS, a, SHORT)


def test_an_interrupted_judge_asks_only_for_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "PIECE", 4)
    first, second = Letters(most=9), Letters()
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, first)
    said = judged(tmp_path, second)
    assert len(first.asked) == 8
    assert sorted(first.asked + second.asked) == sorted(LONGER + SHORT)
    np.testing.assert_array_equal(
        said.probabilities,
        ScoreJudge("", "", Letters()).judge(PROMPTS, LONGER, SHORT).probabilities,
    )


def test_what_cannot_be_scored_is_kept_as_such(tmp_path):
    judged(tmp_path, Letters(), a=[""] * 6)
    again = Letters()
    assert set(judged(tmp_path, again, a=[""] * 6).missing) == set(range(6))
    assert again.asked == []


def test_a_judge_that_is_asked_otherwise_begins_anew(tmp_path):
    judged(tmp_path, Letters())
    other = Letters(how="vowels")
    judged(tmp_path, other)
    assert len(other.asked) == 12


def test_a_torn_line_is_scored_again_and_conversations_are_told_apart(tmp_path):
    path = tmp_path / "scores.jsonl"
    said = (Message("user", "x"), Message("assistant", "y"), Message("user", "z"))
    KeptScores(path).put({("x", "y"): 1.0, (said, "y"): 2.0})
    path.write_bytes(path.read_bytes()[:-3])
    torn = KeptScores(path)
    assert (torn.get("x", "y"), torn.get(said, "y"), torn.get(said[2:], "y")) == (1.0, None, None)
    torn.put({(said, "y"): 2.0})
    assert KeptScores(path).get(said, "y") == 2.0


def test_a_model_keeps_its_scores_where_it_is_asked_to(tmp_path):
    settings = JudgeSettings("shannon", source="tiny", dtype="float32")
    asked = (["A text."], ["one"], ["two"])
    said = judges.load(settings, tmp_path, keep=True).judge(*asked).probabilities
    (path,) = (tmp_path / FOLDER).glob("*.jsonl")
    before = path.read_bytes()
    again = judges.load(settings, tmp_path, keep=True).judge(*asked).probabilities
    np.testing.assert_array_equal(said, again)
    assert path.read_bytes() == before
    assert len(before.splitlines()) == 2
