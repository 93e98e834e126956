import math

import numpy as np
import pytest

from srpo_jax.reporting.winrate import difference, win_rate
from srpo_jax.runtime.errors import UserError


def test_mean_and_interval_agree_with_the_normal_approximation():
    values = np.random.default_rng(1).binomial(1, 0.7, size=2000).astype(float)
    mean, low, high = win_rate(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    # A percentile from 4,000 resamples is itself off by a few percent of the half width.
    assert mean - low == pytest.approx(half, rel=0.08)
    assert high - mean == pytest.approx(half, rel=0.08)


def test_interval_covers_the_truth_about_95_percent_of_the_time():
    generator = np.random.default_rng(2)
    covered = 0
    for trial in range(300):
        _, low, high = win_rate(generator.uniform(size=100), resamples=300, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.90 <= covered / 300 <= 0.99  # 95 % within three standard errors, and a small bias


def test_constant_values_have_no_width():
    assert win_rate([0.5, 0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_a_seed_fixes_the_numbers():
    values = np.linspace(0, 1, 40)
    assert win_rate(values, seed=3) == win_rate(values, seed=3)
    assert win_rate(values, seed=3) != win_rate(values, seed=4)


def test_paired_difference_is_narrower_than_unpaired():
    generator = np.random.default_rng(3)
    easy = generator.uniform(0.1, 0.8, size=500)
    mean, low, high = difference(easy + 0.1, easy)
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))


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
    with pytest.raises(UserError, match="resamples is 0"):
        win_rate([0.5], resamples=0)
    with pytest.raises(UserError, match=r"in a \(1\) as in b \(2\)"):
        difference([0.5], [0.5, 0.5])
