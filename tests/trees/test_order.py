"""In which order pairs are drawn, epoch after epoch."""

import itertools

import grain
import numpy as np
import pytest

from srpo_jax.trees.order import EARLIER, Order

N = 23


def by_grain(seed, places):
    order = grain.MapDataset.range(N).shuffle(seed=seed).repeat()
    return [order[place] for place in range(places)]


def test_the_first_epoch_is_grain_s_and_a_run_of_an_earlier_version_has_all_of_them_so():
    assert Order(N, 7).take(0, N).tolist() == by_grain(7, N)
    assert Order(N, 7, EARLIER).take(0, 3 * N).tolist() == by_grain(7, 3 * N)


def test_no_epoch_of_one_seed_is_an_epoch_of_another():
    """As Grain counts them, the second epoch of a seed is the first of the next one."""
    epochs = [
        tuple(Order(N, seed).take(epoch * N, (epoch + 1) * N))
        for seed, epoch in itertools.product(range(4), range(4))
    ]
    assert len(set(epochs)) == len(epochs)
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (5, 9), (20, 26), (23, 46), (40, 100)])
def test_any_place_is_found_at_once(first, last):
    order = Order(N, 3)
    np.testing.assert_array_equal(order.take(first, last), order.take(0, 100)[first:last])


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_the_seeds_of_later_epochs_are_grain_s_and_no_first_epoch_s(seed):
    found = {Order(N, seed).seed_of(epoch) for epoch in range(1, 200)}
    assert len(found) == 199
    assert all(2**31 <= one < 2**32 for one in found)
    assert Order(1, seed).take(0, 3).tolist() == [0, 0, 0]
