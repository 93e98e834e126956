import dataclasses
import math

import numpy as np
import pytest

from srpo_jax.reporting.winrate import Rate, difference, rate, win_rate
from srpo_jax.runtime.errors import UserError


def test_mean_and_interval_agree_with_the_normal_approximation():
    values = np.random.default_rng(1).binomial(1, 0.7, size=2000).astype(float)
    mean, low, high = win_rate(values)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert mean - low == pytest.approx(half, rel=0.04)
    assert high - mean == pytest.approx(half, rel=0.04)


def test_interval_covers_the_truth_about_95_percent_of_the_time():
    generator = np.random.default_rng(2)
    covered = 0
    for _ in range(300):
        _, low, high = win_rate(generator.uniform(size=100))
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 300 <= 0.98  # 95 % within two and a half standard errors


def test_all_wins_leave_room():
    mean, low, high = win_rate([1.0] * 20)
    assert (mean, high) == (1.0, 1.0)
    assert low == pytest.approx(20 / (20 + 1.959964**2))  # Wilson: .839


def test_users_find_it_in_the_package():
    from srpo_jax import winrate

    assert winrate.win_rate([0.5, 1.0, 0.0]) == win_rate([0.5, 1.0, 0.0])


def test_a_rate_counts_everything():
    nan = float("nan")
    found = rate([1.0, 0.9, 0.5, 0.2, nan, nan])
    assert (found.wins, found.ties, found.losses, found.n, found.missing) == (2, 1, 1, 4, 2)
    assert (found.mean, found.low, found.high) == win_rate([1.0, 0.9, 0.5, 0.2])


def test_a_rate_of_nothing():
    found = rate([float("nan")] * 3)
    assert math.isnan(found.mean)
    # Python 3.13 compares field by field, and NaN is no NaN.
    rest = Rate(0.0, 0.0, 1.0, n=0, wins=0, ties=0, losses=0, missing=3)
    assert dataclasses.replace(found, mean=0.0) == rest


def test_paired_difference_is_narrower_than_unpaired():
    generator = np.random.default_rng(3)
    easy = generator.uniform(0.1, 0.8, size=500)
    mean, low, high = difference(easy + 0.1, easy)
    assert mean == pytest.approx(0.1)
    # Equal differences: what 500 documents leave open, z^2 / (n + z^2) of the range of 2.
    assert high - low == pytest.approx(2 * 3.8415 / 503.84, rel=1e-3)


@pytest.mark.parametrize("verdicts", ["hard", "soft"])
def test_swapping_the_sides_mirrors(verdicts):
    generator = np.random.default_rng(4)
    a, b = generator.random((2, 90))
    if verdicts == "hard":
        a, b = np.round(2 * a) / 2, np.round(2 * b) / 2
    mean, low, high = win_rate(a)
    assert win_rate(1 - a) == pytest.approx((1 - mean, 1 - high, 1 - low), abs=1e-12)
    mean, low, high = difference(a, b)
    assert difference(b, a) == pytest.approx((-mean, -high, -low), abs=1e-12)
    assert difference(1 - a, 1 - b) == pytest.approx((-mean, -high, -low), abs=1e-12)
    one, other = rate(a), rate(1 - a)
    assert (other.wins, other.ties, other.losses) == (one.losses, one.ties, one.wins)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "non-empty"),
        ([[0.5]], "shape"),
        ([0.5, float("nan")], r"probabilities\[1\] is nan"),
        ([0.5, 0.1, 1.2], r"probabilities\[2\] is 1.2"),
        ([-0.1], r"probabilities\[0\] is -0.1"),
    ],
)
def test_bad_probabilities_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        win_rate(values)


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match=r"in a \(1\) as in b \(2\)"):
        difference([0.5], [0.5, 0.5])
    with pytest.raises(UserError, match=r"probabilities\[1\] is 1.2"):
        rate([float("nan"), 1.2])
