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
from collections.abc import Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Int32

Ids = Sequence[SupportsIndex] | np.ndarray


@dataclasses.dataclass(frozen=True)
class Tree:
    """The prefix tree of n sequences, flattened depth first.

    tokens, positions (depth), end (the slot behind the last that descends from this one): int32 [S'].
    Target j is one token to score: the hidden state of slot target_source[j] predicts target_token[j], and
    the log-probability counts for the sequences numbered target_first[j] to target_last[j], that one not
    included: int32 [T']. rank: int32 [n], the depth-first number of each sequence. lengths: int32 [n],
    tokens scored per sequence.
    """

    tokens: Int32[np.ndarray, " S"]
    positions: Int32[np.ndarray, " S"]
    end: Int32[np.ndarray, " S"]
    target_source: Int32[np.ndarray, " T"]
    target_token: Int32[np.ndarray, " T"]
    target_first: Int32[np.ndarray, " T"]
    target_last: Int32[np.ndarray, " T"]
    rank: Int32[np.ndarray, " n"]
    lengths: Int32[np.ndarray, " n"]

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
    ids, scored, lengths = _flat(sequences)
    alike = _alike(ids, lengths)
    order = _depth_first(alike, lengths)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    # From here on sequences stand depth first.
    paths = _Paths(ids[order], scored[order], lengths[order], alike[np.ix_(order, order)])
    return Tree(*paths.slots(), *paths.targets(), rank, scored.sum(1, dtype=np.int32))


class _Paths:
    """Sequences depth first: ids and scored [n, L], lengths [n], alike [n, n] as of `_alike`.

    Each *brings* the tokens from the depth on at which it departs from those before it, that is, from the
    one directly before it. Who else passes a token stands directly behind the sequence that brought it.
    """

    def __init__(self, ids: np.ndarray, scored: np.ndarray, lengths: np.ndarray, alike: np.ndarray):
        self.ids, self.scored = ids, scored
        self.depths = np.arange(ids.shape[1])
        self.new = np.array([0, *np.diagonal(alike, 1)])
        # A last token takes a slot only where a longer sequence goes on through it.
        through = (alike >= lengths[:, None]) & (lengths > lengths[:, None])
        self.stop = np.maximum(self.new, lengths - ~through.any(axis=1))
        self.behind = np.cumsum(
            self.stop - self.new
        )  # slots up to the last one that a sequence brings
        self.first = self.behind - self.stop  # plus the depth: the slot of a token that it brings
        # [n, L]: the sequence that brought a token. What is behind a sequence's end means nothing.
        self.by = np.zeros(ids.shape, np.int32)
        for number, new in enumerate(self.new):
            self.by[number, :new] = self.by[number - 1, :new]
            self.by[number, new:] = number

    def slots(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """tokens, positions, end."""
        brings = (self.depths >= self.new[:, None]) & (self.depths < self.stop[:, None])
        last = np.empty(brings.shape, np.int32)  # that passes a token
        for number in reversed(range(len(last))):
            last[number] = number
            if number + 1 < len(last):
                both = self.new[number + 1]
                last[number, :both] = last[number + 1, :both]
        taken = np.flatnonzero(brings)
        tokens, depth = self.ids.ravel()[taken], taken % self.ids.shape[1]
        end = self.behind[last.ravel()[taken]]
        return tokens, depth.astype(np.int32), end.astype(np.int32)

    def targets(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """target_source, target_token, target_first, target_last.

        A token is one target for the sequences that pass it and have it in a completion. Where some that
        are numbered between them have it in a prompt, it is a target several times.
        """
        # [n - 1, L]: whether a sequence and the next one have a token in common, and in a completion.
        goes_on = self.scored[:-1] & self.scored[1:] & (self.new[1:, None] > self.depths)
        begins, ends = self.scored.copy(), self.scored.copy()
        begins[1:] &= ~goes_on
        ends[:-1] &= ~goes_on
        depth, first = np.nonzero(begins.T)
        last = np.nonzero(ends.T)[1] + 1
        by = self.by[first, depth]
        turn = np.lexsort((first, depth, by))
        depth, first, last, by = depth[turn], first[turn], last[turn], by[turn]
        above = self.first[self.by[by, depth - 1]] + depth - 1
        source = np.where(depth > 0, above, -1).astype(np.int32)
        return source, self.ids[first, depth], first.astype(np.int32), last.astype(np.int32)


def _flat(sequences: Sequence[Sequence[Ids]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids int32 [n, L], which of them are completion, bool [n, L], and the lengths, int [n]."""
    # A prompt or completion that several sequences have is one object, and turned into an array once.
    distinct = {id(segment): segment for segments in sequences for segment in segments}
    made = {key: np.asarray(segment, np.int32) for key, segment in distinct.items()}
    arrays = [[made[id(segment)] for segment in segments] for segments in sequences]
    for i, segments in enumerate(arrays):
        if len(segments) % 2 or not all(map(len, segments)):
            empty = next((j for j, segment in enumerate(segments) if not len(segment)), 1)
            raise ValueError(f"sequence {i} has an empty {'completion' if empty % 2 else 'prompt'}")
    lengths = np.array([sum(map(len, segments)) for segments in arrays])
    ids = np.zeros((len(arrays), lengths.max()), np.int32)
    scored = np.zeros(ids.shape, bool)
    for i, segments in enumerate(arrays):
        ids[i, : lengths[i]] = np.concatenate(segments)
        begin = 0
        for j, segment in enumerate(segments):
            scored[i, begin : begin + len(segment)] = j % 2
            begin += len(segment)
    return ids, scored, lengths


def _alike(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int [n, n]: how many tokens two sequences begin with in common; its own length with itself."""
    same = ids[:, None] == ids
    same &= np.arange(ids.shape[1]) < np.minimum(lengths[:, None], lengths)[..., None]
    common: np.ndarray = np.where(same.all(axis=-1), ids.shape[1], same.argmin(axis=-1))
    return common


def _depth_first(alike: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The sequences in the order of a walk through the tree, its branches as they were given, int [n].

    Where two part, first comes the one that ends there, else the one whose branch the earliest took.
    """
    parting = np.unique(alike)
    branches = (alike[:, :, None] > parting).argmax(axis=0)  # [n, depths]: the first that took it
    branches[lengths[:, None] <= parting] = -1
    order: np.ndarray = np.lexsort(branches.T[::-1])
    return order


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
    pairs = range(len(trees)) if pairs is None else pairs
    slots = [len(tree.tokens) for tree in trees]
    check_fit(slots, [len(tree.target_token) for tree in trees], length, targets, places)
    first = np.cumsum([0, *(len(tree.tokens) for tree in trees)])

    def join(parts: Sequence[np.ndarray], size: int, fill: int = 0) -> np.ndarray:
        row: np.ndarray = np.full(size, fill, np.int32)
        if parts:
            values = np.concatenate(parts)
            row[: len(values)] = values
        return row

    sequences = len(trees[0].rank) if sequences is None else sequences
    rank = np.zeros((places, sequences), np.int32)
    for place, tree in enumerate(trees):
        rank[place] = tree.rank
    return Rows(
        tokens=join([t.tokens for t in trees], length),
        positions=join([t.positions for t in trees], length),
        end=join([t.end + first[i] for i, t in enumerate(trees)], length),
        target_source=join([t.target_source + first[i] for i, t in enumerate(trees)], targets),
        target_token=join([t.target_token for t in trees], targets),
        target_tree=join([np.full(len(t.target_token), i) for i, t in enumerate(trees)], targets),
        target_first=join([t.target_first for t in trees], targets),
        target_last=join([t.target_last for t in trees], targets),
        rank=rank,
        pair=join([np.asarray(pairs)], places, fill=-1),
    )


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
