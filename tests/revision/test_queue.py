"""Who writes what next, with a pool that only counts."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from srpo_jax.revision.prompt_arrays import Shown
from srpo_jax.revision.queue import Done, Queue


@dataclass
class Counting:
    """A pool of rows in which completion k of prompt i takes lengths[i][k] steps.

    The completion is [i, k]. steps: taken in all; groups: prompts put in at a time.
    """

    rows: int
    size: int
    lengths: np.ndarray
    parts: int = 1
    new: int = 3
    steps: int = 0
    groups: list[int] = field(default_factory=list)

    def __post_init__(self):
        self.enough = self.size if self.parts == 1 else -(-3 * self.size // 4)
        self.left = np.zeros(self.rows, int)
        self.completions = np.zeros((self.rows, 3), int)

    def answer(self, chosen, into):
        self.put(chosen, np.zeros(len(into), int), into)

    def improve(self, chosen, shown, revisions, into):
        assert (shown.tokens == self.completions[into]).all(), "the row's own answer is shown"
        assert (shown.lengths == 2).all()
        assert (shown.tokens[:, 1] == revisions - 1).all()
        self.put(chosen, revisions, into)

    def put(self, chosen, revisions, into):
        assert 0 < len(into) <= self.size
        of_part = np.bincount(np.array(into) * self.parts // self.rows)
        assert of_part.max() <= self.size // self.parts, "no part gets more than its share"
        assert (self.left[into] == 0).all(), "a row that still decodes is not for others"
        self.groups.append(len(into))
        self.left[into] = self.lengths[chosen, revisions]
        self.completions[into, :2] = np.stack([chosen, revisions], axis=1)

    def decode(self, done, asked):
        assert done <= self.rows
        while (self.left == 0).sum() < done:
            self.left = np.maximum(self.left - 1, 0)
            self.steps += 1
        rows = asked[self.left[asked] == 0]
        return Done(rows, Shown(self.completions[rows], np.full(len(rows), 2)))


def written(lengths, rows, size, parts=1):
    count, revisions = lengths.shape
    pool = Counting(rows, size, lengths, parts)
    return dict(Queue(pool, revisions - 1, np.arange(count)).run()), pool


@pytest.mark.parametrize("seed", range(80))
def test_every_prompt_is_answered_and_revised_once(seed):
    rng = np.random.default_rng(seed)
    parts, rows = (int(n) for n in rng.integers(1, 5, 2))
    size = parts * int(rng.integers(1, rows + 1))
    lengths = rng.integers(0, 12, (rng.integers(1, 30), rng.integers(1, 5)))
    done, pool = written(lengths, rows * parts, size, parts)
    assert done == {i: [[i, k] for k in range(lengths.shape[1])] for i in range(len(lengths))}
    assert sum(pool.groups) == lengths.size


def test_a_long_answer_does_not_hold_the_others():
    """Each batch of eight has one answer of 100 tokens among answers of ten."""
    lengths = np.full((64, 3), 10)
    lengths[::8, 1] = 100
    _, waits = written(lengths, 8, 8)
    _, refilled = written(lengths, 8, 1)
    assert waits.steps == 8 * (10 + 100 + 10)
    at_best = lengths.sum() / 8
    assert refilled.steps < 1.2 * at_best


def test_groups_are_full_where_they_can_be():
    lengths = np.random.default_rng(0).integers(5, 40, (200, 4))
    _, pool = written(lengths, 32, 4)
    assert np.mean(pool.groups) > 3.8
