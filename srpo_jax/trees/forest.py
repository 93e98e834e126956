"""Many prefix trees in few arrays, which are read from a file where they lie."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Int32, Int64, UInt8

from srpo_jax.trees.prefix_tree import Tree

CHUNK = 4096  # trees that are joined at once
DIGEST = 16  # bytes of a tree's


class _Trees(Sequence[Tree]):
    """Trees that are made of what is kept of them when they are asked for."""

    def tree(self, i: int) -> Tree:
        """Tree i, 0 <= i < n."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Tree: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tree]: ...
    def __getitem__(self, index: int | slice) -> Tree | list[Tree]:
        if isinstance(index, slice):
            return [self.tree(i) for i in range(*index.indices(len(self)))]
        return self.tree(range(len(self))[index])

    def __iter__(self) -> Iterator[Tree]:
        return (self.tree(i) for i in range(len(self)))


@dataclasses.dataclass(frozen=True)
class Forest(_Trees):
    """n trees of k sequences each.

    tokens [S], runs [R, 3], target_token [T], target_runs [U, 4]: as in Tree, those of all trees, one after
    the other. bounds [n + 1, 4]: where each tree begins in them; then their sizes.
    rank, lengths, depths [n, k]: as in Tree.
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

    def tree(self, i: int) -> Tree:
        """Tree i, 0 <= i < n."""
        # An array in a file is a class of its own, whose slices are slow to make.
        columns = map(np.asarray, (self.tokens, self.runs, self.target_token, self.target_runs))
        begins, ends = self.bounds[i].tolist(), self.bounds[i + 1].tolist()
        tokens, runs, target_token, target_runs = (
            x[b:e] for x, b, e in zip(columns, begins, ends, strict=True)
        )
        sequences = (self.rank[i], self.lengths[i], self.depths[i])
        return Tree(tokens, runs, target_token, target_runs, *sequences)


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

    def tree(self, i: int) -> Tree:
        """Tree i, 0 <= i < n."""
        place = self.order[i]
        share = int(np.searchsorted(self.first, place, side="right")) - 1
        return self.forests[share].tree(int(place - self.first[share]))


def in_chunks(trees: Iterable[Tree]) -> Iterator[Forest]:
    """Forests of at most CHUNK trees, for as many as there are."""
    given = iter(trees)
    while chunk := list(itertools.islice(given, CHUNK)):
        yield _of(chunk)


def _of(trees: Sequence[Tree]) -> Forest:
    counts = [[len(part) for part in _parts(tree)] for tree in trees]
    return Forest(
        np.concatenate([tree.tokens for tree in trees]),
        np.concatenate([tree.runs for tree in trees]),
        np.concatenate([tree.target_token for tree in trees]),
        np.concatenate([tree.target_runs for tree in trees]),
        bounds_of(np.array(counts, np.int64)),
        np.stack([tree.rank for tree in trees]),
        np.stack([tree.lengths for tree in trees]),
        np.stack([tree.depths for tree in trees]),
        np.frombuffer(b"".join(map(_digest, trees)), np.uint8).reshape(-1, DIGEST),
    )


def _parts(tree: Tree) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a tree has of a size of its own."""
    return tree.tokens, tree.runs, tree.target_token, tree.target_runs


def _digest(tree: Tree) -> bytes:
    parts = _parts(tree)
    digest = hashlib.blake2b(repr(tuple(map(len, parts))).encode(), digest_size=DIGEST)
    for part in (*parts, tree.rank, tree.lengths):
        digest.update(np.ascontiguousarray(part).data)
    return digest.digest()


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
