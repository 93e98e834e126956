"""Which pairs form the batch of a step, and which of them share a row.

A batch is always `batch_size` pairs: packing changes how they are laid out, not what is learnt from. So
that few shapes are compiled and little of a row is padding, pairs are first dealt to the batches of a
*window* (an epoch, or as much of it as WINDOW allows) such that every batch has its share of long and of
short trees; then the trees of a batch are put into rows as evenly as two classical rules manage (see
`balanced`). Everything is a function of (seed, step), and of the steps at which the batch size has changed.
"""

import dataclasses
import functools
import heapq
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from srpo_jax.trees.order import RULE, Order

WINDOW = 1 << 16  # pairs that are dealt at once
MAX_ROW = 1 << 14  # slots: a device takes several rows rather than one that is longer
ROUND_LENGTH, ROUND_TARGETS, ROUND_PLACES = 32, 32, 4
SURVEYED = 1 << 17  # pairs in the batches that the row shapes are chosen from
SHAPES = 3  # at most, unless a later batch fits none
CLOSE = 0.97  # a shape whose length differs by less is not worth another compilation
_NONE = np.zeros(0, int)


class RowShape(NamedTuple):
    """S slots, T targets and P places for trees in a row: what a train step is compiled for."""

    length: int
    targets: int
    places: int

    def holds(self, other: "RowShape") -> bool:
        return all(mine >= its for mine, its in zip(self, other, strict=True))


class Layout(NamedTuple):
    """One batch: the indices of the pairs in each row, and the shape of the rows."""

    rows: list[list[int]]
    shape: RowShape


@dataclasses.dataclass(frozen=True)
class _Stream:
    """Pairs as they are drawn: those of head, then those of `order` from `begin` on."""

    order: Order
    head: np.ndarray
    begin: int = 0

    def take(self, first: int, last: int) -> np.ndarray:
        """Those of the places first, …, last - 1."""
        ahead = self.head[first:last]
        begin, end = (self.begin + max(place - len(self.head), 0) for place in (first, last))
        return np.concatenate([ahead, self.order.take(begin, end)])

    def behind(self, places: int) -> "_Stream":
        """What is left without the first so many."""
        drawn = max(places - len(self.head), 0)
        return dataclasses.replace(self, head=self.head[places:], begin=self.begin + drawn)


class Packing:
    """The batches of a run, from the sizes of its pairs' trees alone.

    Attributes:
      rows: how many rows a batch has.
      start: its first step.
    """

    def __init__(
        self,
        slots: Int[np.ndarray, " n"],
        targets: Int[np.ndarray, " n"],
        batch_size: int,
        seed: int,
        *,
        parts: int = 1,
        packed: bool = True,
        row_length: int = 0,
        rule: int = RULE,
        after: "tuple[Packing, int] | None" = None,
    ):
        """slots, targets: int [n], what the tree of each pair needs.

        parts: the rows of a batch are a multiple of this (devices times accumulated parts).
        packed=False: a row for every tree, and the shuffled order as it is. row_length: slots of a row, 0
        for as few as hold the batch in one row a part (or in several, of at most MAX_ROW).
        rule: see `Order`.
        after: another packing of the same pairs and seed, and the step from which this one takes its place:
        first come the pairs that are left of the window then, dealt anew, and then what would have come.
        """
        self.slots, self.targets = np.asarray(slots), np.asarray(targets)
        self.batch_size, self.seed = batch_size, seed
        self.packed, self.row_length = packed, row_length
        self.rows = -(-batch_size // parts) * parts
        self._window_batches = 1
        if packed:
            longest = row_length or max(MAX_ROW, int(self.slots.max()))
            tokens = int(self.slots.mean() * batch_size)
            # Not more rows than pairs, unless there are more parts than pairs.
            most = max(batch_size // parts, 1)
            self.rows = parts * min(-(-tokens // (parts * longest)), most)
            self._window_batches = max(1, min(len(self.slots), WINDOW) // batch_size)
        self._dealt: tuple[int, np.ndarray] | None = None  # the window used last
        # Window 0 is what is left of one that was begun in batches of another size. A window's number is
        # what its random numbers come from.
        self._before: Packing | None
        self._before, self.start = after or (None, 0)
        if self._before is None:
            order = Order(len(self.slots), seed, rule)
            self._stream, left, self._number = _Stream(order, _NONE), _NONE, -1
        else:
            self._stream, left, self._number = self._before._left(self.start)
        whole = len(left) // batch_size * batch_size
        self._rest = left[:whole]
        head = np.concatenate([left[whole:], self._stream.head])
        self._stream = dataclasses.replace(self._stream, head=head)

    @functools.cached_property
    def shapes(self) -> list[RowShape]:
        """The row shapes foreseen, ascending; a batch that none of them holds gets a larger one."""
        return self._choose_shapes()

    def batch(self, step: int) -> Layout:
        """The batch of step 0, 1, …; of no step before `start`."""
        return self._laid_out(self._pairs(step))

    def once(self, chosen: Int[np.ndarray, " m"] | None = None) -> Iterator[Layout]:
        """Every pair, or each of the chosen, once, in as few batches as can be; the last may be short."""
        pairs = np.arange(len(self.slots)) if chosen is None else chosen
        whole = len(pairs) // self.batch_size * self.batch_size
        if whole:
            for batch in self._deal(pairs[:whole], 0):
                yield self._laid_out(batch)
        if whole < len(pairs):
            yield self._laid_out(pairs[whole:])

    def used(self, steps: int) -> Bool[np.ndarray, " n"]:
        """Which pairs are in the batches of the first so many steps."""
        found = np.zeros(len(self.slots), bool)
        if self._before is not None:
            found = self._before.used(min(steps, self.start))
        if steps <= self.start:
            return found
        windows, rest = self._place(steps)
        # Where the windows that the first epoch lies in are complete, so is the epoch.
        if windows:
            ahead = self._behind(windows - 1)
            if ahead.begin >= len(found) and not len(ahead.head):
                return np.ones(len(found), bool)
        for window in range(windows):
            found[self._drawn(window)] = True
        for step in range(steps - rest, steps):
            found[self._pairs(step)] = True
        return found

    def fill(self, layout: Layout) -> float:
        """The fraction of a batch's slots that hold a token."""
        used = sum(int(self.slots[row].sum()) for row in layout.rows)
        return used / (len(layout.rows) * layout.shape.length)

    def _place(self, step: int) -> tuple[int, int]:
        """(window, which of its batches) of a step."""
        step -= self.start
        left = len(self._rest) // self.batch_size
        if step < left:
            return 0, step
        window, place = divmod(step - left, self._window_batches)
        return window + 1, place

    def _pairs(self, step: int) -> np.ndarray:
        window, place = self._place(step)
        pairs: np.ndarray = self._batches(window)[place]
        return pairs

    def _batches(self, window: int) -> Int[np.ndarray, "batches b"]:
        # Threads that prepare batches of two windows share this, so it is read once.
        dealt = self._dealt
        if dealt is None or dealt[0] != window:
            pairs = self._deal(self._drawn(window), self._number + window)
            dealt = self._dealt = window, pairs
        return dealt[1]

    def _drawn(self, window: int) -> Int[np.ndarray, " k"]:
        """The pairs of a window, as they are shuffled."""
        if not window:
            return self._rest
        size = self._window_batches * self.batch_size
        return self._stream.take((window - 1) * size, window * size)

    def _behind(self, window: int) -> _Stream:
        """What is drawn from behind a window."""
        return self._stream.behind(window * self._window_batches * self.batch_size)

    def _left(self, step: int) -> tuple[_Stream, np.ndarray, int]:
        """Of what comes from this step on: (behind its window, in its window, the number of that)."""
        window, place = self._place(step)
        if window and not place:
            return self._behind(window - 1), _NONE, self._number + window - 1
        return self._behind(window), self._batches(window)[place:].ravel(), self._number + window

    def _deal(self, pairs: Int[np.ndarray, " n"], window: int) -> Int[np.ndarray, "batches b"]:
        """Pairs [k * batch_size] -> [k, batch_size]; packed: one of every length class in each batch."""
        if not self.packed:
            return pairs.reshape(-1, self.batch_size)
        by_length = pairs[np.argsort(-self.slots[pairs], kind="stable")]
        classes = by_length.reshape(self.batch_size, -1)
        return np.random.default_rng((self.seed, window)).permuted(classes, axis=1).T

    def _assigned(self, pairs: Int[np.ndarray, " b"]) -> list[list[int]]:
        if not self.packed:
            return [[int(pair)] for pair in pairs] + [[] for _ in range(self.rows - len(pairs))]
        rows = balanced(self.slots[pairs], self.rows)
        return [[int(pair) for pair in pairs[row]] for row in rows]

    def _needs(self, rows: Sequence[list[int]]) -> RowShape:
        def most(values: np.ndarray) -> int:
            return max(int(values[row].sum()) for row in rows)

        return RowShape(most(self.slots), most(self.targets), max(map(len, rows)))

    def _laid_out(self, pairs: np.ndarray) -> Layout:
        rows = self._assigned(pairs)
        need = self._needs(rows)
        for shape in self.shapes:
            if shape.holds(need):
                return Layout(rows, shape)
        # Not remembered: the shape of a step must not depend on the steps before it.
        larger = map(max, zip(_rounded(need, 8), self.shapes[-1], strict=True))
        return Layout(rows, RowShape(*larger))

    def _choose_shapes(self) -> list[RowShape]:
        """Shapes that hold a third, two thirds and all of the batches surveyed."""
        if not self.packed:
            largest = RowShape(int(self.slots.max()), int(self.targets.max()), 1)
            return [self._at_least(_rounded(largest))]
        surveyed = max(1, min(SURVEYED // self.batch_size, 8 * self._window_batches))
        needs = np.array(
            [self._needs(self._assigned(self._pairs(self.start + i))) for i in range(surveyed)]
        )
        needs = needs[needs[:, 0].argsort()]
        shapes: list[RowShape] = []
        for part in range(SHAPES, 0, -1):
            held = needs[: -(-len(needs) * part // SHAPES)].max(axis=0)
            shape = self._at_least(_rounded(RowShape(*map(int, held))))
            if not shapes or shape.length < CLOSE * shapes[0].length:
                shapes.insert(0, shape)
        return shapes

    def _at_least(self, shape: RowShape) -> RowShape:
        """With rows as long as the user chose, where the trees fit those."""
        if shape.length <= -(-self.row_length // ROUND_LENGTH) * ROUND_LENGTH:
            return shape._replace(length=self.row_length)
        return shape


def balanced(sizes: Int[np.ndarray, " n"], rows: int) -> list[list[int]]:
    """Indices of sizes [n] in `rows` lists whose sums are close to each other.

    Longest first, each into the emptiest row (Graham's rule); with few trees a row, where that is coarse,
    also the smallest common limit under which each fits the fullest row that takes it (MULTIFIT).
    """
    order = np.argsort(-sizes, kind="stable")
    best: list[list[int]] = [[] for _ in range(rows)]
    loads = [(0, row) for row in range(rows)]
    for i in order:
        load, emptiest = loads[0]
        best[emptiest].append(int(i))
        heapq.heapreplace(loads, (load + int(sizes[i]), emptiest))
    low, high = int(sizes.sum()) // rows, max(load for load, _ in loads)
    while rows > 1 and len(sizes) < 6 * rows and high - low > low // 100:
        limit = (low + high) // 2
        fitted = _best_fit(sizes, order, rows, limit)
        if fitted is not None:
            best, high = fitted, limit
        elif limit > low:
            low = limit
        else:
            break  # there is none between the two
    return best


def _best_fit(
    sizes: np.ndarray, order: np.ndarray, rows: int, limit: int
) -> list[list[int]] | None:
    assigned: list[list[int]] = [[] for _ in range(rows)]
    loads = np.zeros(rows, np.int64)
    for i in order:
        after = np.where(loads + sizes[i] <= limit, loads, -1)
        fullest = int(after.argmax())
        if after[fullest] < 0:
            return None
        assigned[fullest].append(int(i))
        loads[fullest] += sizes[i]
    return assigned


def _rounded(shape: RowShape, coarse: int = 1) -> RowShape:
    """Up to sizes that suit the hardware, or to `coarse` times as large steps."""
    steps = (ROUND_LENGTH, ROUND_TARGETS, ROUND_PLACES if shape.places > 1 else 1)
    rounded = (
        -(-size // (coarse * step)) * coarse * step for size, step in zip(shape, steps, strict=True)
    )
    return RowShape(*rounded)
