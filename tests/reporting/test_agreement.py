import math

import numpy as np
import pytest

from srpo_jax.reporting.agreement import agreement, agreements, position_agreement
from srpo_jax.runtime.errors import UserError


def test_kappa_by_hand():
    # 20 both yes, 5 and 10 split, 15 both no: share .7, chance .5, kappa .4.
    a = [1.0] * 25 + [0.0] * 25
    b = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    found = agreement(a, b)
    assert (found.share, found.chance) == (0.7, 0.5)
    assert found.kappa == pytest.approx(0.4)
    assert found.low == pytest.approx(0.562, abs=1e-3)  # Wilson of 35 of 50
    assert found.high == pytest.approx(0.809, abs=1e-3)
    assert found == agreement(b, a)


def test_soft_verdicts_count_as_wins_and_losses():
    assert agreement([0.51, 0.5, 0.1, 0.9], [1, 0.5, 0, 1]).kappa == 1.0


def test_opposed_judges_and_swapped_sides():
    values = np.array([1, 0, 0.5, 1, 0, 0.5, 1, 0])
    assert agreement(values, 1 - values).kappa < 0
    other = np.array([1, 0, 0.5, 0, 0, 1, 1, 1])
    one, swapped = agreement(values, other), agreement(1 - values, 1 - other)
    assert swapped.kappa == pytest.approx(one.kappa, abs=1e-12)


def test_missing_verdicts_are_counted():
    nan = float("nan")
    found = agreement([1, nan, 0, nan, 1], [1, 1, nan, nan, 0])
    assert (found.n, found.missing, found.share) == (2, 3, 0.5)
    nothing = agreement([nan, nan], [1, 0])
    assert (nothing.n, nothing.low, nothing.high) == (0, 0.0, 1.0)
    assert math.isnan(nothing.kappa)


def test_kappa_of_constant_judges_says_nothing():
    assert math.isnan(agreement([1, 1, 1], [1, 1, 1]).kappa)
    assert agreement([1, 1, 1], [1, 1, 0]).kappa == 0


def test_several_judges():
    judges = {"a": [1, 0, 1, 0], "b": [1, 0, 1, 1], "c": [0, 1, 0, 1]}
    table = agreements(judges)
    assert list(table) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert table["a", "b"] == agreement(judges["a"], judges["b"])
    assert table["a", "c"].kappa == -1


def test_agreement_needs_the_same_documents():
    with pytest.raises(UserError, match=r"in a \(1\) as in b \(2\)"):
        agreement([1.0], [1.0, 0.0])


def test_a_judge_that_always_says_the_first():
    found = position_agreement(["first"] * 30, ["first"] * 30)
    assert (found.share, found.chance, found.first_rate, found.n) == (0.0, 0.0, 1.0, 30)
    assert not found.judges
    assert found.warning.startswith("the judge does not judge: its two orders agree on 0.0 % of 30")
    assert "100.0 % of its picks" in found.warning


def test_a_judge_that_flips_a_coin():
    generator = np.random.default_rng(0)
    one, two = (generator.choice(["first", "second"], 400).tolist() for _ in range(2))
    found = position_agreement(one, two)
    assert found.chance == pytest.approx(0.5, abs=0.01)
    assert found.low < 0.5 < found.high
    assert "does not judge" in found.warning


def test_a_blind_judge_with_a_habit_is_caught():
    generator = np.random.default_rng(1)
    habits = ["first", "second", "tie"]
    one, two = (generator.choice(habits, 2000, p=[0.2, 0.1, 0.7]).tolist() for _ in range(2))
    found = position_agreement(one, two)
    assert found.share > 0.5  # high, but that is what so many ties give
    assert not found.judges


def test_a_judge_that_always_says_tie():
    found = position_agreement(["tie"] * 30, ["tie"] * 30)
    assert (found.share, found.chance, found.picks) == (1.0, 1.0, 0)
    assert math.isnan(found.first_rate)
    assert found.warning == "the judge does not judge: it calls all of 30 pairs ties"


def test_a_judge_that_reads_is_not_accused_however_lopsided_the_pairs():
    found = position_agreement(["first"] * 30, ["second"] * 30)
    assert (found.share, found.chance, found.first_rate) == (1.0, 0.5, 0.5)
    assert found.judges
    assert found.warning == ""


def test_a_biased_judge_that_reads():
    # Sure of 60 pairs, the first on the other 40.
    one = ["first"] * 30 + ["second"] * 30 + ["first"] * 40
    two = ["second"] * 30 + ["first"] * 30 + ["first"] * 40
    found = position_agreement(one, two)
    assert (found.share, found.first_rate) == (0.6, 0.7)
    assert found.judges


def test_missing_answers_are_counted():
    found = position_agreement(
        ["first", "none", "first", "none"], ["second", "first", "none", "none"]
    )
    assert (found.n, found.missing, found.missing_answers, found.picks) == (1, 3, 4, 4)
    assert found.first_rate == 0.75
    nothing = position_agreement(["none"] * 2, ["none", "first"])
    assert nothing.n == 0
    assert math.isnan(nothing.share)
    assert nothing.warning.endswith("of no pair could both answers be read (3 of 4 missing)")


def test_position_agreement_does_not_depend_on_the_sides():
    generator = np.random.default_rng(2)
    answers = ["first", "second", "tie", "none"]
    one, two = (generator.choice(answers, 100).tolist() for _ in range(2))
    assert position_agreement(one, two) == position_agreement(two, one)


def test_bad_answers_are_refused():
    with pytest.raises(UserError, match="got 'A'"):
        position_agreement(["A"], ["first"])
    with pytest.raises(UserError, match="got 1 and 2 answers"):
        position_agreement(["first"], ["first", "tie"])


def test_revisions_of_one_document_are_no_independent_pairs():
    rng = np.random.default_rng(0)
    first = rng.choice(["first", "second"], size=60).tolist()
    second = rng.choice(["first", "second", "none"], size=60).tolist()
    owners = np.arange(60)
    once = position_agreement(first, second, owners)
    told = position_agreement(first * 4, second * 4, np.tile(owners, 4))
    assert (told.share, told.first_rate) == (once.share, once.first_rate)
    assert told.high - told.low == pytest.approx(once.high - once.low, rel=0.03)
    assert told.first_high - told.first_low == pytest.approx(
        once.first_high - once.first_low, rel=0.03
    )
    alone = position_agreement(first * 4, second * 4)
    assert told.high - told.low > 1.8 * (alone.high - alone.low)
    a, b = rng.uniform(size=(2, 60))
    both = agreement(np.tile(a, 4), np.tile(b, 4), np.tile(owners, 4))
    single = agreement(a, b)
    assert both.kappa == pytest.approx(single.kappa)
    assert both.high - both.low == pytest.approx(single.high - single.low, rel=0.03)
