"""Sequences that share prefixes, stored once: (prompt, completion) pairs -> trees -> rows of tokens.

    x ─┬─ direct suffix ─┬─ y_w
       │                 └─ y_l
       ├─ improve, shows y_l ─┬─ y_w
       │                      └─ y_l
       └─ improve, shows y_w ─┬─ y_w
                              └─ y_l

A token is stored once for all sequences that begin alike up to it. Tokens lie depth first, so what
descends from a slot stands directly behind it, and one number a slot, `end`, says who sees whom: slot q
sees slot k exactly when k <= q < end[k]. A token stands at its depth in the tree; each sequence is then
computed exactly as if it stood alone. The sharing is found from the token ids alone.

Sequences are numbered in the same order, so those that a target counts for are an interval too.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

from srpo_jax.trees import walk
from srpo_jax.trees.walk import Ids


@dataclasses.dataclass(frozen=True)
class Tree:
    """The prefix tree of n sequences, flattened depth first.

    Positions, ends and targets run on by one or stay as they are for as long as nothing branches, so they
    are kept as runs: a tree of 750 slots has about ten.

    tokens: int32 [S']. runs: int32 [R, 3] of slots, (how many, position of the first, end of all).
    target_token: int32 [T']. target_runs: int32 [U, 4] of targets, (how many, source of the first, first
    and last sequence of all). rank: int32 [n], the depth-first number of each sequence. lengths: int32 [n],
    tokens scored per sequence. depths: int32 [n], tokens of each sequence, prompts included.
    """

    tokens: Int32[np.ndarray, " S"]
    runs: Int32[np.ndarray, "R 3"]
    target_token: Int32[np.ndarray, " T"]
    target_runs: Int32[np.ndarray, "U 4"]
    rank: Int32[np.ndarray, " n"]
    lengths: Int32[np.ndarray, " n"]
    depths: Int32[np.ndarray, " n"]

    @property
    def positions(self) -> Int32[np.ndarray, " S"]:
        """int32 [S']: the depth of each slot."""
        return self._slots[0]

    @property
    def end(self) -> Int32[np.ndarray, " S"]:
        """int32 [S']: the slot behind the last that descends from this one."""
        return self._slots[1]

    @property
    def target_source(self) -> Int32[np.ndarray, " T"]:
        """int32 [T']: target j is one token to score; the hidden state of this slot predicts it."""
        return self._targets[0]

    @property
    def target_first(self) -> Int32[np.ndarray, " T"]:
        """int32 [T']: its log-probability counts for the sequences from this number on …"""
        return self._targets[1]

    @property
    def target_last(self) -> Int32[np.ndarray, " T"]:
        """int32 [T']: … to this one, that one not included."""
        return self._targets[2]

    @functools.cached_property
    def _slots(self) -> list[np.ndarray]:
        return expanded(self.runs)

    @functools.cached_property
    def _targets(self) -> list[np.ndarray]:
        return expanded(self.target_runs)

    def targets_of(self, sequence: int) -> Bool[np.ndarray, " T"]:
        """bool [T']: the targets that count for a sequence."""
        number = self.rank[sequence]
        counts: np.ndarray = (self.target_first <= number) & (number < self.target_last)
        return counts


class Run(NamedTuple):
    """Slots first to last, that one not included, between two places where sequences part.

    depth: how many runs lie above.
    """

    first: int
    last: int
    depth: int


def runs(tree: Tree) -> list[Run]:
    """The tree as a person would draw it: its runs, depth first."""
    found: list[Run] = []
    above: list[Run] = []  # those that a new run may hang on, the nearest last
    begin = 0
    for slot in range(len(tree.tokens)):
        predicted = tree.target_token[tree.target_source == slot]
        last = slot + 1
        goes_on = last < tree.end[slot] == tree.end[min(last, len(tree.end) - 1)]
        if goes_on and (predicted == tree.tokens[last]).all():
            continue
        while above and tree.end[above[-1].first] <= begin:
            above.pop()
        found.append(Run(begin, last, len(above)))
        above.append(found[-1])
        begin = last
    return found


class Rows(NamedTuple):
    """B rows of packed trees: S slots, T targets and at most P trees each. What scoring reads.

    Fields as in Tree with a leading B, numpy or jax arrays; slots, `end` among them, are those of the row,
    so trees share it unnoticed. Beside them
    target_tree int32 [B, T]: the place in its row, 0 … P-1, of the tree that a target belongs to.
    rank int32 [B, P, n]: of the sequences of each place's tree.
    pair int32 [B, P]: which pair's tree stands in a place; -1 where none does.
    Padding slots have end 0, padding targets an empty interval.
    """

    tokens: Any
    positions: Any
    end: Any
    target_source: Any
    target_token: Any
    target_tree: Any
    target_first: Any
    target_last: Any
    rank: Any
    pair: Any


def build(sequences: Sequence[Sequence[Ids]]) -> Tree:
    """The prefix tree of sequences [(prompt ids, completion ids), …].

    A sequence may go on: (prompt, completion, prompt, completion, …), as a conversation does.
    Completions are scored whole: include their end-of-sequence token if it is to count. Nothing is
    predicted from the last token of a sequence, so unless another sequence goes on through it, it
    takes no slot. Raises ValueError for an empty prompt or completion.
    """
    given = walk.paths(sequences)
    lengths = [path.learned for path in given]
    depths = [len(path.ids) for path in given]
    return Tree(*walk.walk(given), np.array(lengths, np.int32), np.array(depths, np.int32))


def expanded(runs: np.ndarray) -> list[np.ndarray]:
    """What runs (how many, first value, others …) stand for: the first rises by one along a run, the
    others stay."""
    lengths, rising, *constant = runs.T
    begins = np.cumsum(lengths, dtype=np.int32) - lengths
    number = np.arange(lengths.sum(), dtype=np.int32)
    return [
        number + np.repeat(rising - begins, lengths),
        *(np.repeat(values, lengths) for values in constant),
    ]


def pack(
    trees: Sequence[Tree],
    length: int,
    targets: int,
    places: int | None = None,
    pairs: Sequence[int] | None = None,
    sequences: int | None = None,
) -> Rows:
    """Trees one after the other in a single row, without batch axis. All have equally many sequences.

    length, targets, places (default: as many as there are trees): S, T and P of Rows. pairs: what Rows.pair
    is to hold, by default 0, 1, …. sequences: n, to be given where there may be no tree. Raises ValueError
    when the trees need more: nothing is cut.
    """
    places = len(trees) if places is None else places
    sizes = [len(tree.tokens) for tree in trees]
    check_fit(sizes, [len(tree.target_token) for tree in trees], length, targets, places)
    sequences = len(trees[0].rank) if sequences is None else sequences
    rows = empty(length, targets, places, sequences)
    rows.pair[: len(trees)] = range(len(trees)) if pairs is None else pairs
    if not trees:
        return rows
    first = np.cumsum([0, *sizes[:-1]], dtype=np.int32)  # slot of each tree
    # The runs of all trees are turned into slots at once.
    runs, own = _joined([tree.runs for tree in trees])
    positions, end = expanded(runs + np.outer(first[own], (0, 0, 1)).astype(np.int32))
    runs, own = _joined([tree.target_runs for tree in trees])
    runs = runs + np.outer(first[own], (0, 1, 0, 0)).astype(np.int32)
    source, begin, last, place = expanded(np.concatenate([runs, own[:, None]], axis=1))
    slots, scored = slice(len(positions)), slice(len(source))
    rows.tokens[slots] = np.concatenate([tree.tokens for tree in trees])
    rows.positions[slots], rows.end[slots] = positions, end
    rows.target_token[scored] = np.concatenate([tree.target_token for tree in trees])
    rows.target_source[scored], rows.target_tree[scored] = source, place
    rows.target_first[scored], rows.target_last[scored] = begin, last
    rows.rank[: len(trees)] = [tree.rank for tree in trees]
    return rows


def _joined(parts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The runs of all trees, and the place of each one's."""
    place = np.arange(len(parts), dtype=np.int32)
    return np.concatenate(parts), np.repeat(place, [len(part) for part in parts])


def check_fit(
    slots: Sequence[int], scored: Sequence[int], length: int, targets: int, places: int
) -> None:
    """ValueError where trees of so many slots and targets do not fit a row."""
    if sum(slots) > length or sum(scored) > targets or len(slots) > places:
        raise ValueError(
            f"{len(slots)} trees of {sum(slots)} slots and {sum(scored)} targets do not fit a row of "
            f"{places} trees, {length} slots and {targets} targets"
        )


def empty(length: int, targets: int, places: int, sequences: int) -> Rows:
    """A row without a tree, without batch axis."""
    sizes = [length] * 3 + [targets] * 5
    return Rows._make(
        [
            *(np.zeros(size, np.int32) for size in sizes),
            np.zeros((places, sequences), np.int32),
            np.full(places, -1, np.int32),
        ]
    )


def pad(tree: Tree, length: int, targets: int) -> Rows:
    """The tree as a row of its own; see `pack`."""
    return pack([tree], length, targets)


def stack(rows: Sequence[Rows]) -> Rows:
    """Rows of one size -> the batch [B, …]."""
    return Rows(*(np.stack(field) for field in zip(*rows, strict=True)))
