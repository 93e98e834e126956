"""Which pairs form the batch of a step, and which of them share a row.

A batch is always `batch_size` pairs: packing changes how they are laid out, not what is learnt from. So
that few shapes are compiled and little of a row is padding, pairs are first dealt to the batches of a
*window* (an epoch, or as much of it as WINDOW allows) such that every batch has its share of long and of
short trees; then the trees of a batch are put into rows as evenly as two classical rules manage (see
`balanced`). Everything is a function of (seed, step).
"""

import heapq
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from jaxtyping import Bool, Int

WINDOW = 1 << 16  # pairs that are dealt at once
MAX_ROW = 1 << 14  # slots: a device takes several rows rather than one that is longer
ROUND_LENGTH, ROUND_TARGETS, ROUND_PLACES = 32, 32, 4
SURVEYED = 1 << 17  # pairs in the batches that the row shapes are chosen from
SHAPES = 3  # at most, unless a later batch fits none
CLOSE = 0.97  # a shape whose length differs by less is not worth another compilation


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


class Packing:
    """The batches of a run, from the sizes of its pairs' trees alone.

    Attributes:
      rows: how many rows a batch has.
      shapes: the row shapes foreseen, ascending; a batch that none of them holds gets a larger one.
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
    ):
        """slots, targets: int [n], what the tree of each pair needs.

        parts: the rows of a batch are a multiple of this (devices times accumulated parts).
        packed=False: a row for every tree, and the shuffled order as it is. row_length: slots of a row, 0
        for as few as hold the batch in one row a part (or in several, of at most MAX_ROW).
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
        self._order: Any = grain.MapDataset.range(len(self.slots)).shuffle(seed=seed).repeat()
        self._dealt: tuple[int, np.ndarray] | None = None  # the window used last
        self.shapes = self._choose_shapes()

    def batch(self, step: int) -> Layout:
        """The batch of step 0, 1, …."""
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
        size = self._window_batches * self.batch_size
        windows, rest = divmod(steps, self._window_batches)
        # Where the windows that the first epoch lies in are complete, so is the epoch.
        if windows * size >= len(found):
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

    def _pairs(self, step: int) -> np.ndarray:
        window, place = divmod(step, self._window_batches)
        # Threads that prepare batches of two windows share this, so it is read once.
        dealt = self._dealt
        if dealt is None or dealt[0] != window:
            dealt = self._dealt = window, self._deal(self._drawn(window), window)
        pairs: np.ndarray = dealt[1][place]
        return pairs

    def _drawn(self, window: int) -> Int[np.ndarray, " k"]:
        """The pairs of a window, as they are shuffled."""
        size = self._window_batches * self.batch_size
        return np.array([self._order[i] for i in range(window * size, (window + 1) * size)])

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
            [self._needs(self._assigned(self._pairs(step))) for step in range(surveyed)]
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
        if fitted is None:
            low = limit
        else:
            best, high = fitted, limit
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
