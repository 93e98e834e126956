import math

import numpy as np
import pytest

from srpo_jax.reporting.length_control import length_controlled
from srpo_jax.runtime.errors import UserError


def logistic(odds):
    return 1 / (1 + np.exp(-odds))


def data(count, quality, bias=1.5, difficulty=0.0, longer=1.0, soft=False, seed=0):
    """One method a quality, on shared documents; its truth is the win rate at equal length."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(0, 1, count)
    probabilities, lengths, truth = {}, {}, {}
    for index, theta in enumerate(quality):
        name = f"method {index}"
        lengths[name] = 80 * generator.normal(longer, 1, count)
        odds = theta + bias * np.tanh(lengths[name] / 80) + difficulty * shared
        chance = logistic(odds + (generator.normal(0, 0.3, count) if soft else 0))
        probabilities[name] = chance if soft else (generator.random(count) < chance).astype(float)
        truth[name] = logistic(theta + difficulty * shared).mean()
    return probabilities, lengths, truth


@pytest.mark.parametrize("soft", [False, True])
def test_equal_quality_with_length_bias_is_50(soft):
    probabilities, lengths, _ = data(4000, [0.0], soft=soft)
    assert probabilities["method 0"].mean() > 0.65
    found = length_controlled(probabilities, lengths)["method 0"]
    assert found.rate == pytest.approx(0.5, abs=0.03)
    assert found.low < 0.5 < found.high
    assert found.length_weight == pytest.approx(1.5, abs=0.25)
    assert found.difficulty_weight == 0


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("difficulty", [0.0, 1.0])
def test_true_quality_is_recovered(soft, difficulty):
    probabilities, lengths, truth = data(4000, [1.0, 0.0, -0.7], difficulty=difficulty, soft=soft)
    for name, found in length_controlled(probabilities, lengths).items():
        assert found.rate == pytest.approx(truth[name], abs=0.035)


def test_difficulty_is_found_where_there_is_one():
    probabilities, lengths, _ = data(3000, [0.5, 0.0, -0.5], difficulty=1.5)
    assert length_controlled(probabilities, lengths)["method 0"].difficulty_weight > 0.5
    probabilities, lengths, _ = data(3000, [0.5, 0.0, -0.5])
    found = length_controlled(probabilities, lengths)["method 0"]
    assert abs(found.difficulty_weight) < 0.4  # its own verdicts are not in it


def test_without_length_bias_it_is_the_raw_rate():
    probabilities, lengths, _ = data(4000, [0.6], bias=0.0)
    found = length_controlled(probabilities, lengths)["method 0"]
    assert found.rate == pytest.approx(probabilities["method 0"].mean(), abs=0.02)


def test_equal_lengths_give_the_raw_rate():
    verdicts = np.array([1.0] * 15 + [0.0] * 5)
    found = length_controlled({"m": verdicts}, {"m": np.zeros(20)})["m"]
    assert found.rate == pytest.approx(0.75, abs=0.001)  # the ridge
    assert found.length_weight == 0


@pytest.mark.parametrize("soft", [False, True])
def test_swapping_the_sides_gives_one_less(soft):
    probabilities, lengths, _ = data(300, [1.0, 0.0, -0.7], difficulty=1.0, soft=soft)
    probabilities["method 1"][::7] = np.nan
    one = length_controlled(probabilities, lengths)
    swapped = length_controlled(
        {name: 1 - values for name, values in probabilities.items()},
        {name: -values for name, values in lengths.items()},
    )
    for name, found in one.items():
        other = swapped[name]
        assert other.rate == pytest.approx(1 - found.rate, abs=1e-12)
        assert (other.low, other.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-12)
        assert other.length_weight == pytest.approx(found.length_weight, abs=1e-9)


def test_order_and_unit_do_not_matter():
    probabilities, lengths, _ = data(300, [1.0, -0.7], difficulty=1.0)
    one = length_controlled(probabilities, lengths)
    order = np.random.default_rng(5).permutation(300)
    other = length_controlled(
        {name: values[order] for name, values in probabilities.items()},
        {name: values[order] / 5 for name, values in lengths.items()},
    )
    for name, found in one.items():
        assert other[name].rate == pytest.approx(found.rate, abs=1e-9)
        assert other[name].low == pytest.approx(found.low, abs=1e-9)


@pytest.mark.parametrize(("count", "samples"), [(64, 60), (300, 30)])
def test_the_interval_covers(count, samples):
    covered = []
    for seed in range(samples):
        # The truth is over all documents: the mean over very many.
        probabilities, lengths, _ = data(count, [0.7, -0.3], difficulty=0.7, seed=seed)
        shared = np.random.default_rng(10**6).normal(0, 1, 10**5)
        found = length_controlled(probabilities, lengths)
        for theta, each in zip((0.7, -0.3), found.values(), strict=True):
            covered.append(each.low <= logistic(theta + 0.7 * shared).mean() <= each.high)
    assert np.mean(covered) >= 0.93 - 2 * math.sqrt(0.07 * 0.93 / len(covered))


def test_separated_verdicts_have_an_answer():
    lengths = np.random.default_rng(0).normal(size=20)
    all_won = length_controlled({"m": np.ones(20)}, {"m": lengths})["m"]
    assert all_won.rate > 0.99
    assert all_won.low == pytest.approx(0.837, abs=0.002)  # Wilson's .839
    by_length = length_controlled({"m": (lengths > 0).astype(float)}, {"m": lengths})["m"]
    assert by_length.low < 0.5 < by_length.high


def test_what_length_and_quality_cannot_tell_apart_is_wide():
    generator = np.random.default_rng(0)
    verdicts = (generator.random(200) < 0.7).astype(float)
    found = length_controlled({"m": verdicts}, {"m": generator.normal(900, 100, 200)})["m"]
    assert found.high - found.low > 0.9


def test_missing_verdicts_are_counted():
    probabilities, lengths, _ = data(100, [0.5, 0.0])
    probabilities["method 0"][:10] = np.nan
    lengths["method 0"][:10] = np.nan  # nothing was written
    found = length_controlled(probabilities, lengths)
    assert (found["method 0"].n, found["method 0"].missing) == (90, 10)
    assert (found["method 1"].n, found["method 1"].missing) == (100, 0)
    nothing = length_controlled({"m": [np.nan]}, {"m": [0.0]})["m"]
    assert math.isnan(nothing.rate)
    assert (nothing.low, nothing.high, nothing.n, nothing.missing) == (0.0, 1.0, 0, 1)


@pytest.mark.parametrize(
    ("probabilities", "lengths", "message"),
    [
        ({"m": [0.5]}, {}, "length differences of 'm'"),
        ({"m": [0.5]}, {"m": [1, 2]}, "one length difference a verdict"),
        ({"m": [0.5]}, {"m": [np.inf]}, r"m\[0\] is inf"),
        ({"m": [1.5]}, {"m": [1]}, r"m\[0\] is 1.5"),
        ({"m": [1], "k": [1, 0]}, {"m": [1], "k": [1, 2]}, "share their documents"),
    ],
)
def test_bad_arguments_are_refused(probabilities, lengths, message):
    with pytest.raises(UserError, match=message):
        length_controlled(probabilities, lengths)
