"""Which samples meet, which of them make pairs, and what is counted."""

import dataclasses

import numpy as np
import pytest

from srpo_jax.config.programs import PairSettings
from srpo_jax.data.documents import Document
from srpo_jax.pairing import comparing

DOCUMENT = Document("test/1", "the text", "the gold")
TEXTS = ("a b c d", "a b", "a b c", "", "a b c d")


class LongerIsBetter:
    """P = sigmoid(difference in words); no verdict on what holds a question mark."""

    name = "longer"

    def __init__(self):
        self.asked = []

    def probabilities(self, prompts, a, b):
        self.asked += zip(a, b, strict=True)
        margins = [len(x.split()) - len(y.split()) for x, y in zip(a, b, strict=True)]
        unclear = ["?" in x + y for x, y in zip(a, b, strict=True)]
        return np.where(unclear, np.nan, 1 / (1 + np.exp(-np.array(margins, float))))


def make(texts=TEXTS, document=DOCUMENT, **changes):
    own = PairSettings(**changes)
    judge = LongerIsBetter() if comparing.needs_judge(own) else None
    return comparing.make(own, [(document, texts)], judge)


def sides(pairs):
    return [(pair.chosen, pair.rejected) for pair in pairs]


@pytest.mark.parametrize(
    ("choose", "expected"),
    [
        ("extremes", [("a b c d", "a b")]),
        ("nearest", [("a b c d", "a b c")]),
        ("first", [("a b c d", "a b"), ("a b c d", "a b c")]),
        ("all", [("a b c d", "a b"), ("a b c d", "a b c"), ("a b c", "a b")]),
        ("gold", [("a b c d", "the gold"), ("the gold", "a b"), ("a b c", "the gold")]),
    ],
)
def test_who_meets_whom(choose, expected):
    pairs, counts = make(choose=choose)
    assert sides(pairs) == expected
    assert {pair.prompt for pair in pairs} == {"the text"}
    assert counts == comparing.Counts()


def test_labels_are_the_judges_probability_or_hard():
    soft, _ = make(choose="extremes")
    assert soft[0].label_prob == pytest.approx(1 / (1 + np.exp(-2)))
    hard, _ = make(choose="extremes", labels="hard")
    assert hard[0].label_prob == 1


def test_what_teaches_little_is_left_out_and_counted():
    _, counts = make(choose="all", margin=0.3)
    assert counts.too_close == 2  # sigmoid(1) is .73
    pairs, counts = make(choose="all", max_distance=0.3)
    assert sides(pairs) == [("a b c d", "a b c")]  # a word of four; the others a half and a third
    assert counts.too_far == 2
    pairs, counts = make(("a", "b c?", "d e f"), choose="all")
    assert sides(pairs) == [("d e f", "a")]
    assert counts.no_verdict == 2
    for texts in (("a", "a"), ("", "a"), ("", "")):
        pairs, counts = make(texts)
        assert not pairs
        assert counts.alike == 1
    _, counts = make(document=dataclasses.replace(DOCUMENT, gold=None), choose="gold")
    assert counts.alike == 1
    assert "1 documents left out" in str(counts)


def test_an_unclear_sample_is_never_an_end():
    pairs, _ = make(("a", "b c d e?", "d e f", "g h"))
    assert sides(pairs) == [("d e f", "a")]


def test_ends_without_a_verdict_leave_it_to_the_next_farthest():
    """Nobody says who of the best and the worst is better. Means: .725, .55, .35 and .2."""
    said = {
        ("good", "fair"): 0.55,
        ("best", "good"): 0.7,
        ("best", "fair"): 0.75,
        ("worst", "good"): 0.2,
    }
    judged = [comparing.Comparison(DOCUMENT, a, b, p) for (a, b), p in said.items()]
    assert comparing.best_against_worst(judged) == [judged[2]]


def test_edits_as_they_were_drawn_ask_no_judge():
    own = PairSettings(goal="improve", choose="first")
    assert not comparing.needs_judge(own)
    pairs, _ = comparing.make(own, [(DOCUMENT, TEXTS)], None)
    assert [(pair.rejected, pair.chosen) for pair in pairs] == [
        ("a b c d", "a b"),
        ("a b c d", "a b c"),
    ]


def test_edits_as_they_were_drawn_that_the_judge_finds_worse_are_counted():
    """The judge says who meets (extremes), and of `any` nothing said that half the edits spoil."""
    found, counts = make(goal="improve")
    assert [(pair.rejected, pair.chosen) for pair in found] == [("a b c d", "a b")]
    assert counts.worse == 1
    assert "1 edits worse than their drafts by the judge (config.pairs.edits='any')" in str(counts)
    assert make(("a b", "a b c d"), goal="improve")[1].worse == 0
    assert make(goal="improve", edits="better")[1].worse == 0


def test_better_edits_lead_from_the_worse_to_the_better_one():
    pairs, _ = make(goal="improve", choose="first", edits="better")
    assert [(pair.rejected, pair.chosen) for pair in pairs] == [
        ("a b", "a b c d"),
        ("a b c", "a b c d"),
    ]


def test_the_gold_is_the_edit_of_a_sample():
    pairs, _ = make(goal="improve", choose="gold")
    assert [(pair.rejected, pair.chosen) for pair in pairs] == [
        (draft, "the gold") for draft in ("a b c d", "a b", "a b c")
    ]


def test_a_share_of_the_drafts_is_kept():
    own = PairSettings(goal="improve", choose="first", keep=0.25)
    found = [(dataclasses.replace(DOCUMENT, id=str(i)), ("a b", "a c")) for i in range(400)]
    pairs, counts = comparing.make(own, found, None)
    kept = [pair.chosen == pair.rejected == "a b" for pair in pairs]
    assert counts.kept == sum(kept)
    assert 0.18 < np.mean(kept) < 0.32
    again, _ = comparing.make(own, found[200:], None)
    assert again == pairs[200:]


def test_the_judge_is_asked_once_for_all_documents():
    judge = LongerIsBetter()
    own = PairSettings(choose="all")
    found = [(dataclasses.replace(DOCUMENT, id=str(i)), TEXTS) for i in range(3)]
    pairs, _ = comparing.make(own, found, judge)
    assert len(judge.asked) == len(pairs) == 9


def test_of_a_tie_neither_is_better():
    """No hard label, and no better edit: the one that was drawn first would win them all."""
    for decided in ({"labels": "hard"}, {"goal": "improve", "edits": "better"}):
        pairs, counts = make(("a b", "c d", "e"), choose="all", **decided)
        assert {pair.rejected for pair in pairs} == {"e"}
        assert (len(pairs), counts.ties) == (2, 1)
    soft, _ = make(("a b", "c d"), choose="all")
    assert soft[0].label_prob == 0.5
