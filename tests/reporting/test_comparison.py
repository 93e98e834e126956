import itertools
import math

import numpy as np
import pytest
from scipy import stats

from srpo_jax.reporting.comparison import compare, holm, holm_p_values, sign_test
from srpo_jax.reporting.interval import score_intervals
from srpo_jax.runtime.errors import UserError


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (700, 620)])
def test_the_sign_test_is_the_exact_binomial_one(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected, rel=1e-9)


def test_the_sign_test_of_thousands():
    assert 0 < sign_test(5000, 6000) < 1e-20


def test_holm_by_hand():
    # .01 * 4, .02 * 3, then .03 * 2 = .06 is not below what came before; .8 stays.
    assert holm_p_values([0.03, 0.8, 0.01, 0.02]) == pytest.approx((0.06, 0.8, 0.04, 0.06))
    assert holm_p_values([0.9, 0.9]) == (1.0, 1.0)
    assert holm_p_values([]) == ()


def test_holm_keeps_the_family_wise_error():
    generator = np.random.default_rng(0)
    rejected = sum(min(holm_p_values(generator.random(10).tolist())) < 0.05 for _ in range(4000))
    assert rejected / 4000 == pytest.approx(0.05, abs=0.01)


def test_a_table_is_corrected_as_a_whole():
    generator = np.random.default_rng(1)
    base = np.round(generator.random(60))
    table = {"better": compare(np.ones(60), base), "same": compare(base, base)}
    corrected = holm(table)
    assert list(corrected) == ["better", "same"]
    assert corrected["better"].p_holm == pytest.approx(2 * table["better"].p_value)
    assert (corrected["same"].p_value, corrected["same"].p_holm) == (1.0, 1.0)
    assert table["better"].p_holm == table["better"].p_value  # alone


def test_a_comparison_counts_everything():
    nan = float("nan")
    found = compare([1, 1, 0.5, 0, nan, 1], [0, 0.5, 0.5, 1, 1, nan])
    assert (found.wins, found.ties, found.losses, found.n, found.missing) == (2, 1, 1, 4, 2)
    assert found.difference == pytest.approx((1 + 0.5 + 0 - 1) / 4)
    assert found.p_value == 1.0
    nothing = compare([nan], [0.5])
    assert math.isnan(nothing.difference)
    assert (nothing.low, nothing.high, nothing.p_value, nothing.n) == (-1.0, 1.0, 1.0, 0)


def test_no_difference_has_a_width():
    found = compare([1.0] * 20, [1.0] * 20)
    assert found.low == pytest.approx(-found.high)
    assert found.high == pytest.approx(3.8415 / 23.8415, rel=1e-4)


def test_swapping_mirrors():
    generator = np.random.default_rng(2)
    a, b = generator.random((2, 70))
    one, other = compare(a, b), compare(b, a)
    assert other.difference == pytest.approx(-one.difference, abs=1e-12)
    assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=1e-12)
    assert (other.wins, other.losses, other.p_value) == (one.losses, one.wins, one.p_value)


def pairs(kind, shape, generator):
    """Verdicts of two methods on the same documents, and the true difference."""
    difficulty = generator.normal(0, 1, shape)
    if kind == "soft":
        noise = generator.normal(0, 0.5, (2, *shape))
        return *(1 / (1 + np.exp(-(difficulty + n))) for n in noise), 0.0
    first = (generator.random(shape) < 0.8).astype(float)
    if kind == "independent":
        return first, (generator.random(shape) < 0.5).astype(float), 0.3
    if (
        kind == "mostly unchanged"
    ):  # a revision that alters one text in 20, for the better in 3 of 4
        altered, better = generator.random(shape) < 0.05, generator.random(shape) < 0.75
        before = np.where(altered, 1.0 - better, first)
        return np.where(altered, better, before).astype(float), before, 0.025
    assert kind == "better by a bit, soft"
    low = generator.beta(2, 2, shape) * 0.8
    return low + generator.beta(2, 6, shape) * 0.2, low, 0.05


KINDS = ["soft", "independent", "mostly unchanged", "better by a bit, soft"]


@pytest.mark.parametrize(("kind", "n"), list(itertools.product(KINDS, [20, 64, 1024])))
def test_the_difference_is_covered(kind, n):
    samples = {20: 4000, 64: 2000, 1024: 150}[n]
    a, b, truth = pairs(kind, (samples, n), np.random.default_rng(0))
    low, high = score_intervals((a - b + 1) / 2)  # compare's interval, many at once
    assert compare(a[0], b[0]).low == pytest.approx(2 * low[0] - 1, abs=1e-12)
    covered = ((2 * low - 1 <= truth) & (truth <= 2 * high - 1)).mean()
    # Two standard errors of the simulation.
    assert covered >= 0.93 - 2 * math.sqrt(0.07 * 0.93 / samples)


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match=r"in a \(1\) as in b \(2\)"):
        compare([0.5], [0.5, 0.5])
    with pytest.raises(UserError, match=r"b\[0\] is 2.0"):
        compare([0.5], [2.0])
