"""Groups of prompts out of arrays, against the prompts one by one."""

import numpy as np
import pytest

from srpo_jax.prompts import Prompt
from srpo_jax.revision import plan
from srpo_jax.revision.plan import Need, Shape
from srpo_jax.revision.prompt_arrays import PromptArrays, Ragged, Shown


def drawn(rng, least, most):
    return tuple(map(int, rng.integers(3, 50, rng.integers(least, most))))


@pytest.fixture
def prompts():
    """Some of them share nothing, some all of the direct prompt; nothing stands behind some answers."""
    rng = np.random.default_rng(0)
    starts = [drawn(rng, 1, 20) for _ in range(40)]
    return [
        Prompt(
            (*start, *drawn(rng, 0, 3)),
            (start, drawn(rng, 0, 5), (*start, *drawn(rng, 0, 6)))[i % 3],
            drawn(rng, 0, 5),
        )
        for i, start in enumerate(starts)
    ]


def test_groups_are_what_the_prompts_are(prompts):
    rng = np.random.default_rng(1)
    shape, arrays = Shape.needed(prompts, Need(8)), PromptArrays.of(prompts)
    for size in (1, 3, 40):
        chosen = rng.integers(0, 40, size)
        lengths = rng.integers(0, 9, size).astype(np.int32)
        shown = Shown(rng.integers(3, 50, (size, 8)).astype(np.int32), lengths)
        direct = shape.direct(arrays, chosen)
        improve = shape.improve(arrays, chosen, shown)
        assert direct.tokens.dtype == improve.tokens.dtype == np.int32
        for row, (i, y) in enumerate(zip(chosen, shown.as_lists(), strict=True)):
            prompt = prompts[i]
            assert_row(direct, row, prompt.direct)
            assert_row(improve, row, prompt.improve(y)[prompt.shared :])
            assert improve.positions[row] == improve.valid[row].sum() == prompt.shared


def assert_row(rows, row, ids):
    assert rows.tokens[row, : len(ids)].tolist() == list(ids)
    assert not rows.tokens[row, len(ids) :].any()
    assert rows.counts[row] == len(ids)


def test_rows_without_tokens():
    empty = Ragged.of([(), ()])
    assert empty.lengths(np.arange(2)).tolist() == [[0], [0]]
    assert empty.at(np.arange(2), np.arange(3)[None]).shape == (2, 3)


def test_a_group_goes_to_its_parts():
    chosen, where = plan.places(np.array([7, 1, 4, 0]), rows=12, parts=3, size=6)
    assert where.tolist() == [[1, 0], [3, 0], [4, 4]], "no part has a row 4"
    assert chosen.tolist() == [[1, 3], [0, 2], [0, 0]]
    assert plan.numbered(np.array([2, 0, 2, 2, 0])).tolist() == [0, 0, 1, 2, 1]
