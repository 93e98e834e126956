"""Few shapes for the batches of many prompts."""

import itertools

import numpy as np
import pytest

from srpo_jax import revision
from srpo_jax.prompts import Prompt
from srpo_jax.revision import plan
from srpo_jax.revision.plan import Need, Shape


def prompts(seed=0, count=300):
    """Of lognormal length, the improve prompt with a tail of its own."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(5, 0.8, count), 4, 3000).astype(int)
    return [Prompt((1,) * n, (1,) * n, (2,) * int(rng.integers(3, 30))) for n in lengths]


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_levels_are_the_best_there_are(count):
    rng = np.random.default_rng(count)
    for _ in range(20):
        sizes = rng.integers(1, 40, rng.integers(1, 12)).tolist()
        cost = lambda levels, sizes=sizes: sum(
            min(v for v in levels if v >= size) for size in sizes
        )
        smaller = sorted(set(sizes) - {max(sizes)})
        best = min(
            cost((*chosen, max(sizes)))
            for n in range(min(count, len(smaller) + 1))
            for chosen in itertools.combinations(smaller, n)
        )
        levels = plan._levels(sizes, count)
        assert len(levels) <= count
        assert list(levels) == sorted(set(levels))
        assert cost(levels) == best


def test_four_shapes_hold_every_batch_with_little_padding():
    given = prompts()
    shapes = revision.shapes([given], Need(24), 16)
    assert len(shapes) == 4
    assert all(b.holds(a) for a, b in itertools.pairwise(shapes))
    parts = plan.by_shape(given, Need(24), 16, shapes)
    assert sorted(i for _, mine in parts for i in mine) == list(range(300))
    assert [shape for shape, _ in parts] == sorted(shapes, reverse=True)
    assert all(len(mine) % 16 == 0 for _, mine in parts[:-1]), "only the last batch may be short"
    assert all(
        shape.holds(Shape.needed([given[i]], Need(24))) for shape, mine in parts for i in mine
    )
    by_length = sorted(given, key=lambda p: -len(p.direct))
    batches = [by_length[first : first + 16] for first in range(0, len(given), 16)]
    needed = sum(Shape.needed(batch, Need(24)).first * len(batch) for batch in batches)
    used = sum(shape.first * len(mine) for shape, mine in parts)
    assert used < 1.35 * needed


def test_prompts_of_one_length_have_one_shape():
    assert len(revision.shapes([[Prompt((1,) * 9, (1,) * 9, (2,))] * 50], Need(8), 4)) == 1
    assert revision.shapes([[]], Need(8), 4) == ()


def test_a_set_of_short_prompts_is_not_padded_to_a_set_of_long_ones():
    short, long = ([Prompt((1,) * n, (1,) * n, (2,))] * 10 for n in (20, 90))
    assert [shape.first for shape in revision.shapes([short, long], Need(8), 16)] == [20, 92]


def test_a_prompt_that_no_shape_holds_has_its_own():
    short, long = (Prompt((1,) * n, (1,) * n, (2,)) for n in (9, 90))
    small = revision.shapes([[short]], Need(8), 4)
    (larger, first), (smaller, second) = plan.by_shape([short, long], Need(8), 1, small)
    assert larger.first >= 90
    assert (smaller,) == small
    assert (first, second) == ([1], [0])


def test_a_group_is_a_share_of_the_rows_with_equally_many_on_each_device():
    assert [plan.group(32, share, 1) for share in (0.01, 0.125, 1)] == [1, 4, 32]
    assert [plan.group(32, share, 8) for share in (0.01, 0.3, 1)] == [8, 16, 32]


def test_where_nothing_is_revised_the_cache_has_no_room_for_it():
    given = prompts(count=20)
    assert all(shape.second == 0 for shape in revision.shapes([given], Need(24, False), 4))
    assert all(shape.second > 24 for shape in revision.shapes([given], Need(24), 4))
