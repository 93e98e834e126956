"""Many prefix trees in few arrays: a third of their size, and read from a file where they lie.

A tree's positions, ends and targets run on by one or stay as they are for as long as nothing branches, so
they are kept as runs: a tree of 750 slots has about ten. Tokens are kept as they are.
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from srpo_jax.trees import prefix_tree
from srpo_jax.trees.prefix_tree import Rows, Tree

CHUNK = 4096  # trees that are joined at once
DIGEST = 16  # bytes of a tree's


class Kept(NamedTuple):
    """A tree with its runs; see `Forest`."""

    tokens: np.ndarray
    runs: np.ndarray
    target_token: np.ndarray
    target_runs: np.ndarray
    rank: np.ndarray
    lengths: np.ndarray

    def tree(self) -> Tree:
        positions, end = _expanded(self.runs)
        source, first, last = _expanded(self.target_runs)
        targets = (source, self.target_token, first, last)
        return Tree(self.tokens, positions, end, *targets, self.rank, self.lengths)


class _Trees(Sequence[Tree]):
    """Trees that are made of what is kept of them when they are asked for."""

    def kept(self, i: int) -> Kept:
        """Tree i as it is kept, 0 <= i < n."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.kept(range(len(self))[index]).tree()

    def __iter__(self) -> Iterator[Tree]:
        return (self[i] for i in range(len(self)))


@dataclasses.dataclass(frozen=True)
class Forest(_Trees):
    """n trees of k sequences each.

    tokens [S], target_token [T]: those of all trees, one after the other.
    runs [R, 3]: of slots, (how many, position of the first, end of all).
    target_runs [U, 4]: of targets, (how many, source of the first, first and last sequence of all).
    bounds [n + 1, 4]: where each tree begins in tokens, runs, target_token, target_runs; then their sizes.
    rank, lengths [n, k]: as in Tree. depths [n, k]: tokens of each sequence, prompts included.
    digests [n, 16]: of all that a tree is.
    """

    tokens: Int32[np.ndarray, " S"]
    runs: Int32[np.ndarray, "R 3"]
    target_token: Int32[np.ndarray, " T"]
    target_runs: Int32[np.ndarray, "U 4"]
    bounds: Int64[np.ndarray, "n1 4"]
    rank: Int32[np.ndarray, "n k"]
    lengths: Int32[np.ndarray, "n k"]
    depths: Int32[np.ndarray, "n k"]
    digests: UInt8[np.ndarray, "n 16"]

    @classmethod
    def of(cls, trees: Iterable[Tree]) -> "Forest":
        """Trees of equally many sequences; they are read once, and may be made on the way."""
        chunks = list(in_chunks(trees))
        return _joined(chunks) if chunks else _empty()

    @property
    def slots(self) -> Int64[np.ndarray, " n"]:
        """Of each tree."""
        return np.diff(self.bounds[:, 0])

    @property
    def targets(self) -> Int64[np.ndarray, " n"]:
        """Of each tree."""
        return np.diff(self.bounds[:, 2])

    def digest(self) -> str:
        """sha256 of all that the trees are."""
        return hashlib.sha256(np.ascontiguousarray(self.digests).data).hexdigest()

    def __reduce__(self) -> tuple[Any, ...]:
        """To another process an array that lies in a file goes as the file's name."""
        values = (getattr(self, field.name) for field in dataclasses.fields(self))
        return _restored, tuple(_Mapped.of(x) if isinstance(x, np.memmap) else x for x in values)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def kept(self, i: int) -> Kept:
        """Tree i as it is kept, 0 <= i < n."""
        # An array in a file is a class of its own, whose slices are slow to make.
        columns = map(np.asarray, (self.tokens, self.runs, self.target_token, self.target_runs))
        begins, ends = self.bounds[i].tolist(), self.bounds[i + 1].tolist()
        slices = (x[b:e] for x, b, e in zip(columns, begins, ends, strict=True))
        return Kept._make([*slices, self.rank[i], self.lengths[i]])


def pack(
    trees: "Forest | Shares",
    pairs: Sequence[int],
    length: int,
    targets: int,
    places: int,
    sequences: int,
) -> Rows:
    """`prefix_tree.pack` of these trees, whose runs are turned into slots all at once."""
    kept = [trees.kept(pair) for pair in pairs]
    sizes = [len(one.tokens) for one in kept]
    prefix_tree.check_fit(sizes, [len(one.target_token) for one in kept], length, targets, places)
    rows = prefix_tree.empty(length, targets, places, sequences)
    rows.pair[: len(kept)] = pairs
    if not kept:
        return rows
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int32)  # slot of each tree
    place = np.arange(len(kept), dtype=np.int32)

    def joined(column: int) -> tuple[np.ndarray, np.ndarray]:
        """The runs of all trees, and the place of each one's."""
        parts = [one[column] for one in kept]
        return np.concatenate(parts), np.repeat(place, [len(part) for part in parts])

    runs, own = joined(1)
    runs = runs + np.outer(first[own], (0, 0, 1)).astype(np.int32)
    target_runs, own = joined(3)
    target_runs = target_runs + np.outer(first[own], (0, 1, 0, 0)).astype(np.int32)
    target_runs = np.concatenate([target_runs, own[:, None]], axis=1)
    positions, end = _expanded(runs)
    source, begin, last, tree = _expanded(target_runs)
    slots, scored = slice(len(positions)), slice(len(source))
    rows.tokens[slots] = np.concatenate([one.tokens for one in kept])
    rows.positions[slots], rows.end[slots] = positions, end
    rows.target_token[scored] = np.concatenate([one.target_token for one in kept])
    rows.target_source[scored], rows.target_tree[scored] = source, tree
    rows.target_first[scored], rows.target_last[scored] = begin, last
    rows.rank[: len(kept)] = [one.rank for one in kept]
    return rows


class _Mapped(NamedTuple):
    """An array in a file, to be mapped where it is needed."""

    path: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array: np.memmap[Any, Any]) -> "_Mapped":
        return cls(str(array.filename), array.dtype, array.shape)


def _restored(*values: np.ndarray | _Mapped) -> Forest:
    return Forest(
        *(
            np.memmap(x.path, x.dtype, "r", shape=x.shape) if isinstance(x, _Mapped) else x
            for x in values
        )
    )


class Shares(_Trees):
    """Forests as one, in another order: tree i is the one whose number is the i-th smallest.

    numbers: int64 [n] of the trees of each forest, all different.
    """

    def __init__(self, forests: Sequence[Forest], numbers: Sequence[np.ndarray]):
        self.forests = tuple(forests)
        self.order = np.argsort(np.concatenate(numbers))
        self.first = np.cumsum([0, *map(len, forests)])  # of each forest, in their concatenation

    def column(self, name: str) -> np.ndarray:
        """That of all trees, in their order."""
        values: np.ndarray = np.concatenate([getattr(forest, name) for forest in self.forests])
        return values[self.order]

    @functools.cached_property
    def slots(self) -> np.ndarray:
        return self.column("slots")

    @functools.cached_property
    def targets(self) -> np.ndarray:
        return self.column("targets")

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return self.column("lengths")

    @functools.cached_property
    def depths(self) -> np.ndarray:
        return self.column("depths")

    def digest(self) -> str:
        return hashlib.sha256(self.column("digests").data).hexdigest()

    def __len__(self) -> int:
        return len(self.order)

    def kept(self, i: int) -> Kept:
        """Tree i as it is kept, 0 <= i < n."""
        place = self.order[i]
        share = int(np.searchsorted(self.first, place, side="right")) - 1
        return self.forests[share].kept(int(place - self.first[share]))


def in_chunks(trees: Iterable[Tree]) -> Iterator[Forest]:
    """Forests of at most CHUNK trees, for as many as there are."""
    single = map(_single, trees)
    while chunk := list(itertools.islice(single, CHUNK)):
        yield _joined(chunk)


def _single(tree: Tree) -> Forest:
    runs = _compressed(tree.positions, tree.end)
    target_runs = _compressed(tree.target_source, tree.target_first, tree.target_last)
    counts = (len(tree.tokens), len(runs), len(tree.target_token), len(target_runs))
    # A target is predicted from the slot in front of its token.
    number = np.arange(len(tree.rank))[:, None]
    inside = (tree.target_first <= number) & (number < tree.target_last)
    depths = np.where(inside, tree.positions[tree.target_source] + 2, 0).max(axis=1)
    digest = hashlib.blake2b(repr(counts).encode(), digest_size=DIGEST)
    for part in (tree.tokens, runs, tree.target_token, target_runs, tree.rank, tree.lengths):
        digest.update(np.ascontiguousarray(part).data)
    return Forest(
        tree.tokens,
        runs,
        tree.target_token,
        target_runs,
        np.array([(0, 0, 0, 0), counts]),
        tree.rank[None],
        tree.lengths[None],
        depths[tree.rank].astype(np.int32)[None],
        np.frombuffer(digest.digest(), np.uint8)[None],
    )


def _joined(forests: Sequence[Forest]) -> Forest:
    if len(forests) == 1:
        return forests[0]
    sizes = np.concatenate([np.diff(forest.bounds, axis=0) for forest in forests])
    joined = {
        field.name: np.concatenate([getattr(forest, field.name) for forest in forests])
        for field in dataclasses.fields(Forest)
        if field.name != "bounds"
    }
    return Forest(**joined, bounds=bounds_of(sizes))


def bounds_of(sizes: Int64[np.ndarray, "n 4"]) -> Int64[np.ndarray, "n1 4"]:
    """`Forest.bounds` of trees of these sizes."""
    return np.concatenate([np.zeros((1, 4), np.int64), sizes.cumsum(axis=0)])


def _empty() -> Forest:
    flat, square = np.zeros(0, np.int32), np.zeros((0, 0), np.int32)
    return Forest(
        flat,
        flat.reshape(0, 3),
        flat,
        flat.reshape(0, 4),
        np.zeros((1, 4), np.int64),
        square,
        square,
        square,
        np.zeros((0, DIGEST), np.uint8),
    )


def _compressed(rising: np.ndarray, *constant: np.ndarray) -> np.ndarray:
    """Runs (length, first of `rising`, the values of `constant`), int32; see `_expanded`."""
    breaks = np.diff(rising) != 1
    for values in constant:
        breaks |= np.diff(values) != 0
    begins = np.concatenate([[0], np.flatnonzero(breaks) + 1])
    lengths = np.diff(begins, append=len(rising))
    columns = [lengths, rising[begins], *(values[begins] for values in constant)]
    return np.stack(columns, axis=1).astype(np.int32)


def _expanded(runs: np.ndarray) -> list[np.ndarray]:
    """The values that `_compressed` was given: the first rise by one along a run, the others stay."""
    lengths, rising, *constant = runs.T
    begins = np.cumsum(lengths, dtype=np.int32) - lengths
    number = np.arange(lengths.sum(), dtype=np.int32)
    return [
        number + np.repeat(rising - begins, lengths),
        *(np.repeat(values, lengths) for values in constant),
    ]
