import math

import numpy as np
import pytest

from srpo_jax import judges
from srpo_jax.data.documents import Document
from srpo_jax.judges import JudgeSettings
from srpo_jax.judges.judge import knows_gold
from srpo_jax.judges.overlap import OverlapJudge
from srpo_jax.runtime.errors import UserError

DOCUMENTS = (
    Document("1", "x", "a b c d"),
    Document("2", "x", "e"),
    Document("3", "y", None),
)


def test_a_completion_is_worth_the_words_it_shares_with_the_nearest_gold():
    judge = OverlapJudge(DOCUMENTS)
    scores = judge.scores(["x"] * 4, ["A, b", "a b c d", "e", "f"])
    assert scores.tolist() == pytest.approx([2 * 2 / 6, 1.0, 1.0, 0.0])
    said = judge.judge(["x", "x", "y"], ["a b", "e", "a"], ["f", "a b c d", "b"])
    assert said.probabilities[0] == pytest.approx(1 / (1 + math.exp(-10 * 2 / 3)))
    assert said.probabilities[1] == 0.5
    assert np.isnan(said.probabilities[2])
    assert said.missing == {2: "no gold"}


def test_golds_come_with_the_documents(tmp_path):
    judge = judges.load(
        JudgeSettings("overlap", label="words"), tmp_path, documents=DOCUMENTS, keep=True
    )
    assert judge.name == "words"
    assert knows_gold(judge)
    judge.scores(["x"], ["a"])
    assert not list(tmp_path.iterdir())
    for documents in ((), DOCUMENTS[2:]):
        with pytest.raises(UserError, match="no document here has one"):
            judges.load(JudgeSettings("overlap"), documents=documents)


def test_nothing_beats_the_gold_by_it():
    longer = JudgeSettings("longer")
    judges.require_no_gold(longer)
    for settings in (
        JudgeSettings("overlap"),
        JudgeSettings("longer", others=("overlap",)),
        JudgeSettings("ensemble", members=("longer", "overlap")),
    ):
        with pytest.raises(UserError, match=r"leave gold out of config\.evaluate\.against"):
            judges.require_no_gold(settings)
