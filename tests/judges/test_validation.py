import numpy as np
import pytest

from srpo_jax.data.documents import Document
from srpo_jax.judges import Estimate, validation
from srpo_jax.judges.tricks import TRICKS
from srpo_jax.judges.validation import validate


def document(identifier: str, gold: str, text: str = "One two three four five six.") -> Document:
    return Document(identifier, text, gold, "validation")


class Longer:
    """A judge for tests: the longer completion is better."""

    name = description = "longer"

    def probabilities(self, prompts, a, b):
        return (np.sign([len(x) - len(y) for x, y in zip(a, b, strict=True)]) + 1) / 2


def test_other_gold_is_of_another_text_and_differs():
    aspects = [
        document("s/p/a", "first", "T.\n\nFocus: a"),
        document("s/p/b", "second", "T.\n\nFocus: b"),
        document("s/q", "first", "U."),
        document("s/r", "third", "V."),
    ]
    assert validation.other_gold(aspects, 0) == "third"
    assert validation.other_gold(aspects, 1) == "first"
    assert validation.other_gold(aspects[:2], 0) is None


def test_shuffled_has_the_same_words_in_another_order():
    golds = [document(f"s/{i}", "a b") for i in range(20)]
    assert {validation.shuffled(golds, i) for i in range(20)} == {"b a"}
    long = [document("s/1", "a b c d e f")]
    assert sorted(validation.shuffled(long, 0).split()) == list("abcdef")
    assert validation.shuffled(long, 0) == validation.shuffled(long, 0)
    assert validation.shuffled([document("s/1", "a a a")], 0) is None


def test_half():
    assert validation.half([document("s/1", "a b c d e")], 0) == "a b"
    assert validation.half([document("s/1", "a")], 0) is None


def test_lead_has_as_many_words_as_the_gold():
    assert validation.lead([document("s/1", "a b c")], 0) == "One two three"
    assert validation.lead([document("s/1", "One two")], 0) is None


def test_validate_counts_by_set_and_damage():
    golds = [document(f"first/{i}", f"gold number {i}") for i in range(5)]
    golds += [document(f"second/{i}", f"other gold {i}", f"Words of {i}.") for i in range(3)]
    checks = {(check.documents, check.damage): check for check in validate(Longer(), golds)}
    # The texts of the first set are all the same: none has another document's gold.
    assert ("first", "another document's gold") not in checks
    second = {damage for name, damage in checks if name == "second"}
    assert second >= {*validation.DAMAGES, '"Not" and the gold', validation.BEST_TRICK}
    assert second <= {*validation.DAMAGES, *TRICKS, validation.BEST_TRICK}
    half = checks["first", "gold cut in half"]
    assert (half.rate, half.high, half.count) == (1.0, 1.0, 5)
    assert half.low == pytest.approx(0.566, abs=1e-3)  # Wilson: five of five
    assert checks["first", "gold shuffled"].rate == 0.5
    assert checks["second", "another document's gold"].count == 3


def test_best_trick_is_that_of_each_document():
    class Fooled(Longer):
        """By one trick on the first document, by another on the second."""

        def probabilities(self, prompts, a, b):
            return np.array(
                [
                    float((y[:3], x[-2]) not in {("Not", "0"), ("Spe", "1")})
                    for x, y in zip(prompts, b, strict=True)
                ]
            )

    golds = [document(f"s/{i}", f"gold number {i}", f"Words of {i}.") for i in range(4)]
    checks = {check.damage: check for check in validate(Fooled(), golds)}
    assert checks['"Not" and the gold'].rate == checks['"Species of" and the name'].rate == 0.75
    assert (checks[validation.BEST_TRICK].rate, checks[validation.BEST_TRICK].count) == (0.5, 4)


def test_check_says_which_kinds_nothing_was_fitted_to():
    class Fitted(Longer):
        fitted_to = frozenset(["gold cut in half", "ten keywords"])

    golds = [document(f"s/{i}", f"gold number {i}", f"Words of {i}.") for i in range(4)]
    seen = {check.damage for check in validate(Fitted(), golds) if not check.held_out}
    assert seen == {"gold cut in half", "ten keywords", validation.BEST_TRICK}
    assert all(check.held_out for check in validate(Longer(), golds))


def test_documents_without_a_verdict_are_not_counted():
    class Unsure(Longer):
        def probabilities(self, prompts, a, b):
            return np.where(np.arange(len(a)) == 1, np.nan, super().probabilities(prompts, a, b))

    golds = [document(f"first/{i}", f"gold number {i}", f"Words of {i}.") for i in range(5)]
    assert {check.count for check in validate(Unsure(), golds)} == {4}


def test_the_check_says_its_cost_before():
    golds = [document(f"first/{i}", f"gold number {i}", f"Words of {i}.") for i in range(5)]

    class Asks(Longer):
        def estimate(self, prompts, a, b):
            return Estimate(requests=2 * len(prompts), prompt_tokens=10, how="by guess")

    assert validation.cost(Longer(), golds) == Estimate()
    cost = validation.cost(Asks(), golds)
    # Tricks are not paid for: 5 documents, 4 damages, 2 orders.
    assert (cost.requests, cost.prompt_tokens, cost.how) == (40, 40, "by guess")


@pytest.mark.parametrize("apply", validation.DAMAGES.values())
def test_damages_change_the_gold(apply):
    golds = [document(f"s/{i}", f"gold number {i}", f"Text {i} is this one.") for i in range(4)]
    assert all(apply(golds, i) != golds[i].gold for i in range(4))
