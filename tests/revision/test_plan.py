"""Few shapes for the batches of many prompts."""

import itertools

import numpy as np
import pytest

from srpo_jax import revision
from srpo_jax.prompts import Prompt
from srpo_jax.revision import plan
from srpo_jax.revision.plan import Shape


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
    shapes = revision.shapes([given], 24, 16)
    assert len(shapes) == 4
    assert all(b.holds(a) for a, b in itertools.pairwise(shapes))
    by_length = sorted(given, key=lambda p: -len(p.direct))
    used = needed = 0
    for first in range(0, len(given), 16):
        need = Shape.needed(by_length[first : first + 16], 24)
        made = plan.Plan.of(by_length[first : first + 16], 1, 24, shapes)
        assert Shape(made.first, made.second) in shapes
        assert Shape(made.first, made.second).holds(need)
        used, needed = used + made.first, needed + need.first
    assert used < 1.35 * needed


def test_prompts_of_one_length_have_one_shape():
    assert len(revision.shapes([[Prompt((1,) * 9, (1,) * 9, (2,))] * 50], 8, 4)) == 1
    assert revision.shapes([[]], 8, 4) == ()


def test_a_set_of_short_prompts_is_not_padded_to_a_set_of_long_ones():
    short, long = ([Prompt((1,) * n, (1,) * n, (2,))] * 10 for n in (20, 90))
    assert [shape.first for shape in revision.shapes([short, long], 8, 16)] == [20, 92]


def test_a_batch_that_no_shape_holds_has_its_own():
    small = revision.shapes([[Prompt((1,) * 9, (1,) * 9, (2,))]], 8, 4)
    made = plan.Plan.of([Prompt((1,) * 90, (1,) * 90, (2,))], 1, 8, small)
    assert made.first >= 90
