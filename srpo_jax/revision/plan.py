"""What has to be prefilled for each revision, and behind which part of the cache.

A row of the cache has two parts, the same for all rows:

    | direct prompt   | the rest of an improve prompt |
      prefilled once    prefilled at each revision

An improve prompt sees as much of the first part as it begins with. Each part is as wide as the shape of its
prompts says; the slots in between are not valid, so they are never seen, and a token's position does not
depend on them.

Shapes: R rows, P slots of the first part, M of the second, C = P + M.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from srpo_jax.prompts import Prompt
from srpo_jax.revision.programs import Rows, Start
from srpo_jax.revision.prompt_arrays import Chosen, PromptArrays, Shown
from srpo_jax.runtime.errors import UserError

# The parts are as wide as a multiple of this, longer ones of more: see `_width`.
ROUND = 4
# Branches come in small batches, each with lengths of its own: fewer widths, and fewer sizes of the cache.
COARSE, SLOTS = 4, 32
SHAPES = 4  # of the cache, at most, for all batches of a set of prompts

Tokens = Sequence[Sequence[int]]  # of each row


class Need(NamedTuple):
    """What comes behind prompts: completions of `new` tokens, and whether they are revised."""

    new: int
    revised: bool = True


class Shape(NamedTuple):
    """Slots of the cache's parts, P and M: what programs are compiled for."""

    first: int
    second: int

    @classmethod
    def needed(cls, prompts: Sequence[Prompt], need: Need) -> "Shape":
        """By a batch; the second part has room for any completion shown, and none where nothing is."""
        first = _width(max(len(p.direct) for p in prompts))
        if not need.revised:
            return cls(first, 0)
        rest = max(len(p.before) + len(p.after) - p.shared for p in prompts)
        return cls(first, _width(rest + need.new))

    def holds(self, other: "Shape") -> bool:
        return self.first >= other.first and self.second >= other.second

    def direct(self, prompts: PromptArrays, chosen: Chosen) -> Rows[np.ndarray]:
        """Direct prompts, which open a row of the cache."""
        none = np.zeros(len(chosen), np.int32)
        tokens, counts = prompts.directly(chosen, self.first)
        return Rows(tokens, counts, none, _span(sum(self), 0, none), np.array(0, np.int32))

    def improve(self, prompts: PromptArrays, chosen: Chosen, shown: Shown) -> Rows[np.ndarray]:
        """Improve prompts that show these completions, as far as the direct ones' rows lack them."""
        shared = prompts.shared[chosen]
        tokens, counts = prompts.improving(chosen, shown, self.second)
        valid = _span(sum(self), 0, shared)
        return Rows(tokens, counts, shared, valid, np.array(self.first, np.int32))


def shapes(sets: Sequence[Sequence[Prompt]], need: Need, batch: int) -> tuple[Shape, ...]:
    """At most SHAPES that hold any batch of these prompts, ascending, chosen for little padding in all.

    batch: prompts of a set at a time, the longest ones together.
    """
    needs = []
    for prompts in sets:
        by_length = sorted(prompts, key=lambda p: -len(p.direct))
        for first in range(0, len(by_length), batch):
            needs.append(Shape.needed(by_length[first : first + batch], need))
    chosen: list[Shape] = []
    second = 0
    for level in _levels([one.first for one in needs], SHAPES):
        # A larger shape holds whatever a smaller one does.
        second = max([second, *(one.second for one in needs if one.first <= level)])
        chosen.append(Shape(level, second))
    return tuple(chosen)


def _levels(sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """At most `count` of the sizes, ascending: each size raised to the next one sums to the least."""
    values, numbers = np.unique(sizes, return_counts=True)
    below = [0, *np.cumsum(numbers).tolist()]  # how many sizes are less than values[i]

    @functools.cache
    def best(end: int, left: int) -> tuple[float, tuple[int, ...]]:
        """(sum, levels) of the smallest `end` values with at most `left` levels."""
        if end == 0 or left == 0:
            return (math.inf if end else 0.0), ()
        level = int(values[end - 1])
        smaller = ((best(begin, left - 1), below[end] - below[begin]) for begin in range(end))
        return min((cost + raised * level, (*levels, level)) for (cost, levels), raised in smaller)

    return best(len(values), count)[1]


def by_shape(
    prompts: Sequence[Prompt], need: Need, batch: int, foreseen: Sequence[Shape]
) -> list[tuple[Shape, list[int]]]:
    """Indices of the prompts under the shape that they are written in, largest first.

    A prompt has the smallest shape that holds it, of those foreseen (ascending), or one of its own. What
    would not fill a batch of `batch` rows takes up prompts of the next smaller shape.
    """
    left: dict[Shape, list[int]] = {}
    for i in sorted(range(len(prompts)), key=lambda i: -len(prompts[i].direct)):
        least = Shape.needed([prompts[i]], need)
        shape = next((one for one in foreseen if one.holds(least)), least)
        left.setdefault(shape, []).append(i)
    chosen: list[tuple[Shape, list[int]]] = []
    ordered = sorted(left, reverse=True)
    for place, shape in enumerate(ordered):
        mine = left[shape]
        for smaller in ordered[place + 1 :]:
            if shape.holds(smaller):
                lacking = -len(mine) % batch
                mine += left[smaller][:lacking]
                del left[smaller][:lacking]
        if mine:
            chosen.append((shape, mine))
    return chosen


def opening(prompts: Tokens) -> Rows[np.ndarray]:
    """Prompts alone, in a cache with slots for nothing else."""
    width = _width(max(map(len, prompts)), COARSE)
    tokens, counts = _padded(prompts, width)
    none = np.zeros(len(prompts), np.int32)
    return Rows(tokens, counts, none, _span(width, 0, none), np.array(0, np.int32))


def departing(prompts: Tokens, rows: Tokens, slot: int) -> Rows[np.ndarray]:
    """Rows [B] behind what each has in common with its prompt, which lies in front of `slot`.

    At least the last token of a row is left, to have the logits behind it.
    """
    known = np.array([_common(p, ids[:-1]) for p, ids in zip(prompts, rows, strict=True)], np.int32)
    rest = [ids[start:] for ids, start in zip(rows, known, strict=True)]
    width = _width(max(map(len, rest)), COARSE)
    tokens, counts = _padded(rest, width)
    slots = rounded(slot + width, SLOTS)
    return Rows(tokens, counts, known, _span(slots, 0, known), np.array(slot, np.int32))


def start(
    rows: Rows[np.ndarray], keys: Any, revisions: Sequence[int] | np.ndarray
) -> Start[np.ndarray]:
    """Where the completions of these rows, once they are prefilled, begin. revisions: of each row."""
    valid = rows.valid | _span(rows.valid.shape[1], int(rows.slot), rows.counts)
    positions = rows.positions + rows.counts
    return Start(keys, np.array(revisions, np.int32), positions, valid)


def check_fit(prompts: Sequence[int], new: int, limit: int) -> None:
    """UserError naming the first of the prompts, lengths, that with `new` tokens is beyond the limit."""
    for i, need in enumerate(prompts):
        if need + new > limit:
            raise UserError(
                f"prompt {i} needs {need} tokens and {new} to be written, the model has {limit} "
                "positions: shorten it or lower config.sampling.max_new_tokens"
            )


def check_improvable(prompts: Sequence[Prompt]) -> None:
    """UserError of the first of the prompts that has no improve prompt."""
    for prompt in prompts:
        if prompt.refused:
            raise UserError(prompt.refused)


def places(into: np.ndarray, rows: int, parts: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """What goes where if a group of at most `size` is put into these rows of a pool, of each part its own.

    Both int [parts, size / parts]: which of the group, and the number of its row within the part. Where
    nothing is put, the first of the group is repeated, for a row that is not there.
    """
    each, share = rows // parts, size // parts
    chosen, where = np.zeros((parts, share), int), np.full((parts, share), each, np.int32)
    part = into // each
    place = numbered(part)
    chosen[part, place], where[part, place] = np.arange(len(into)), into % each
    return chosen, where


def group(rows: int, share: float, parts: int) -> int:
    """How many of a pool's rows take up prompts at a time: each of the `parts` they are in equally many."""
    return min(rows, rounded(max(1, round(share * rows)), parts))


def numbered(groups: np.ndarray) -> np.ndarray:
    """For each, how many of those before it are of its group; int [R] -> int [R]."""
    if not groups.any():
        return np.arange(len(groups))
    order = np.argsort(groups, kind="stable")
    found = np.empty(len(groups), int)
    found[order] = np.arange(len(groups)) - np.searchsorted(groups[order], groups[order])
    return found


def rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens both begin with."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


def _span(slots: int, slot: int, counts: np.ndarray) -> np.ndarray:
    numbers = np.arange(slots)
    return (numbers >= slot) & (numbers < slot + counts[:, None])


def _padded(rows: Tokens, width: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, width], padded on the right, and the lengths int32 [B]."""
    tokens = np.zeros((len(rows), width), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: len(row)] = row
    return tokens, np.array([len(row) for row in rows], np.int32)


def _width(length: int, widths: int = 16) -> int:
    """The next of so many widths to each power of two: few programs, and little of them padding."""
    return rounded(length, max(ROUND, 2 ** length.bit_length() // (2 * widths)))
