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
import itertools
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


@dataclasses.dataclass
class _Token:
    """A token of the trie: how many sequences pass here, which end here, for which it is completion."""

    token: int
    depth: int
    passing: int = 0
    scored: list[int] = dataclasses.field(default_factory=list)
    ending: list[int] = dataclasses.field(default_factory=list)
    children: dict[int, "_Token"] = dataclasses.field(default_factory=dict)


class _Target(NamedTuple):
    source: int
    token: int
    first: int  # the sequences that pass here are numbered first … first + passing - 1
    passing: int
    scored: list[int]


def build(sequences: Sequence[Sequence[Ids]]) -> Tree:
    """The prefix tree of sequences [(prompt ids, completion ids), …].

    A sequence may go on: (prompt, completion, prompt, completion, …), as a conversation does.
    Completions are scored whole: include their end-of-sequence token if it is to count. Nothing is
    predicted from the last token of a sequence, so unless another sequence goes on through it, it
    takes no slot. Raises ValueError for an empty prompt or completion.
    """
    root = _trie(sequences)
    slots: list[tuple[int, int]] = []  # token, position
    parents: list[int] = []
    targets: list[_Target] = []
    order: list[int] = []  # sequences, depth first
    # On a stack of (token, parent's slot): prompts are longer than Python's recursion limit.
    stack = [(child, -1) for child in reversed(root.children.values())]
    while stack:
        at, parent = stack.pop()
        if at.scored:
            targets.append(_Target(parent, at.token, len(order), at.passing, at.scored))
        order.extend(at.ending)
        if not at.children:
            continue
        stack.extend((child, len(slots)) for child in reversed(at.children.values()))
        slots.append((at.token, at.depth))
        parents.append(parent)

    end = list(range(1, len(slots) + 1))
    for slot in reversed(range(len(slots))):
        if parents[slot] >= 0:
            end[parents[slot]] = max(end[parents[slot]], end[slot])
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    tokens, positions = zip(*slots, strict=True)
    intervals = [
        (target.source, target.token, first, last)
        for target in targets
        for first, last in _intervals(target, rank)
    ]
    sources, target_tokens, firsts, lasts = zip(*intervals, strict=True)
    return Tree(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        end=np.array(end, np.int32),
        target_source=np.array(sources, np.int32),
        target_token=np.array(target_tokens, np.int32),
        target_first=np.array(firsts, np.int32),
        target_last=np.array(lasts, np.int32),
        rank=rank,
        lengths=np.array([sum(map(len, s[1::2])) for s in sequences], np.int32),
    )


def _trie(sequences: Sequence[Sequence[Ids]]) -> _Token:
    root = _Token(-1, -1)
    for i, segments in enumerate(sequences):
        if len(segments) % 2 or not all(len(segment) for segment in segments):
            empty = next((j for j, segment in enumerate(segments) if not len(segment)), 1)
            raise ValueError(f"sequence {i} has an empty {'completion' if empty % 2 else 'prompt'}")
        at = root
        ids = [(token, j % 2) for j, segment in enumerate(segments) for token in segment]
        for depth, (token, scored) in enumerate(ids):
            at = at.children.setdefault(int(token), _Token(int(token), depth))
            at.passing += 1
            if scored:
                at.scored.append(i)
        at.ending.append(i)
    return root


def _intervals(target: _Target, rank: Int32[np.ndarray, " n"]) -> list[tuple[int, int]]:
    """The numbers of the sequences that a target counts for, as intervals [first, last).

    Nearly always one. A token may be completion in some of the sequences that pass it and prompt in others
    that are numbered between them; it is then a target several times.
    """
    if len(target.scored) == target.passing:
        return [(target.first, target.first + target.passing)]
    numbers = sorted(int(rank[i]) for i in target.scored)
    runs = itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])
    ends = [[number for _, number in run] for _, run in runs]
    return [(run[0], run[-1] + 1) for run in ends]


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
    slots = sum(len(tree.tokens) for tree in trees)
    scored = sum(len(tree.target_token) for tree in trees)
    if slots > length or scored > targets or len(trees) > places:
        raise ValueError(
            f"{len(trees)} trees of {slots} slots and {scored} targets do not fit a row of {places} "
            f"trees, {length} slots and {targets} targets"
        )
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


def pad(tree: Tree, length: int, targets: int) -> Rows:
    """The tree as a row of its own; see `pack`."""
    return pack([tree], length, targets)


def stack(rows: Sequence[Rows]) -> Rows:
    """Rows of one size -> the batch [B, …]."""
    return Rows(*(np.stack(field) for field in zip(*rows, strict=True)))
