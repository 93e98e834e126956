"""From sequences of token ids to the runs of their prefix tree, depth first.

Tokens are compared by numpy and never one at a time in Python. What remains are numbers of runs, about ten
for the six sequences of a pair: for so few, plain integers are faster than arrays.
"""

import bisect
import itertools
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

Ids = Sequence[SupportsIndex] | np.ndarray


class Path(NamedTuple):
    """A sequence: its ids, int32, and where each of its segments ends. Every second segment is learned."""

    ids: np.ndarray
    ends: list[int]

    @property
    def learned(self) -> int:
        """How many tokens are part of a completion."""
        return sum(self.ends[1::2]) - sum(self.ends[::2])

    def learns(self, depth: int) -> bool:
        """Whether the token at this depth is part of a completion."""
        return bisect.bisect_right(self.ends, depth) % 2 == 1


class Walk(NamedTuple):
    """The tree of n sequences; fields as in `prefix_tree.Tree`, target_token among them."""

    tokens: np.ndarray
    runs: np.ndarray
    target_token: np.ndarray
    target_runs: np.ndarray
    rank: np.ndarray


def paths(sequences: Sequence[Sequence[Ids]]) -> list[Path]:
    """Sequences of segments, as `prefix_tree.build` takes them. Raises ValueError for an empty segment."""
    # A prompt or completion that several sequences have is one object, and turned into an array once.
    distinct = {id(segment): segment for segments in sequences for segment in segments}
    arrays = {key: _array(segment) for key, segment in distinct.items()}
    found = []
    for i, segments in enumerate(sequences):
        made = [arrays[id(segment)] for segment in segments]
        if len(made) % 2 or not all(map(len, made)):
            empty = next((j for j, segment in enumerate(made) if not len(segment)), 1)
            raise ValueError(f"sequence {i} has an empty {'completion' if empty % 2 else 'prompt'}")
        ends, end = [], 0
        for segment in made:
            end += len(segment)
            ends.append(end)
        found.append(Path(np.concatenate(made), ends))
    return found


def walk(given: Sequence[Path]) -> Walk:
    """The tree of these paths, at least one."""
    order, new = _depth_first([path.ids for path in given])
    tree = _Tree([given[i] for i in order], new)
    tokens, runs = tree.slots()
    target_token, target_runs = tree.targets()
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order))
    return Walk(tokens, runs, target_token, target_runs, rank)


class _Tree:
    """Paths depth first, and how many tokens each has in common with the one before it.

    Each *brings* the tokens from there on. Who else passes a token stands directly behind the path that
    brought it.
    """

    def __init__(self, given: list[Path], new: list[int]):
        self.paths, self.new = given, new
        self.lengths = [path.ends[-1] for path in given]
        # Of each, those behind it that pass tokens it brings, as (depth, last): last is the last to pass
        # those above the depth. The deepest first; beyond it the path is alone.
        self.passing = [self._passing(number) for number in range(len(given))]
        self.stop: list[int] = []  # the depth where a path's slots end
        self.behind: list[int] = []  # slots up to the last one that it brings
        self.first: list[int] = []  # plus the depth: the slot of a token that it brings
        slots = 0
        for number, begin in enumerate(new):
            stop = max(begin, self.lengths[number] - (not self._goes_on(number)))
            slots += stop - begin
            self.stop.append(stop)
            self.behind.append(slots)
            self.first.append(slots - stop)

    def slots(self) -> tuple[np.ndarray, np.ndarray]:
        """tokens, runs."""
        runs: list[list[int]] = []
        tokens = []
        for number, path in enumerate(self.paths):
            begin, stop = self.new[number], self.stop[number]
            tokens.append(path.ids[begin:stop])
            for depth, last in self._shared(number):
                until = min(depth, stop)
                if until > begin:
                    _append(runs, until - begin, begin, self.behind[last])
                    begin = until
        return np.concatenate(tokens), np.array(runs, np.int32).reshape(-1, 3)

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """target_token, target_runs.

        A token is one target for the paths that pass it and have it in a completion. Where some that are
        numbered between them have it in a prompt, it is a target several times.
        """
        runs: list[list[int]] = []
        tokens = []
        for number, path in enumerate(self.paths):
            begin = self.new[number]
            for depth, last in self._shared(number):
                for until in self._changes(number, last, begin, depth):
                    groups = self._learning(number, last, begin)
                    if groups:
                        ids = path.ids[begin:until]
                        tokens.append(ids if len(groups) == 1 else np.repeat(ids, len(groups)))
                        self._append_targets(runs, number, begin, until, groups)
                    begin = until
        return np.concatenate(tokens), np.array(runs, np.int32).reshape(-1, 4)

    def _passing(self, number: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        common = self.lengths[number]
        for other in range(number + 1, len(self.paths)):
            common = min(common, self.new[other])
            if common <= self.new[number]:
                break
            if found and found[-1][0] == common:
                found.pop()
            found.append((common, other))
        return found

    def _goes_on(self, number: int) -> bool:
        """Whether a longer path begins with the whole of this one: only then has its last token a slot."""
        length = self.lengths[number]
        if not self.passing[number]:
            return False
        depth, last = self.passing[number][0]
        return depth == length and self.lengths[last] > length

    def _shared(self, number: int) -> list[tuple[int, int]]:
        """(depth, last) of what a path brings, from above: `last` passes what is above the depth."""
        return [*reversed(self.passing[number]), (self.lengths[number], number)]

    def _changes(self, number: int, last: int, begin: int, end: int) -> list[int]:
        """Depths in (begin, end] up to which the same of these paths learn the tokens a path brings."""
        if begin >= end:
            return []
        among = self.paths[number : last + 1]
        depths = {depth for path in among for depth in path.ends if begin < depth < end}
        # The first token that a path brings is predicted from what another one brought.
        first = self.new[number] + 1
        if begin < first < end:
            depths.add(first)
        return [*sorted(depths), end]

    def _learning(self, number: int, last: int, depth: int) -> list[tuple[int, int]]:
        """Those of the paths number … last that learn the token at a depth, as intervals."""
        learning = [i for i in range(number, last + 1) if self.paths[i].learns(depth)]
        if not learning:
            return []
        if learning[-1] - learning[0] == len(learning) - 1:
            return [(learning[0], learning[-1] + 1)]
        cuts = [i for i, (a, b) in enumerate(itertools.pairwise(learning), 1) if b > a + 1]
        bounds = itertools.pairwise([0, *cuts, len(learning)])
        return [(learning[first], learning[behind - 1] + 1) for first, behind in bounds]

    def _append_targets(
        self,
        runs: list[list[int]],
        number: int,
        begin: int,
        until: int,
        groups: list[tuple[int, int]],
    ) -> None:
        source = self._source(number, begin)
        if len(groups) == 1:
            _append(runs, until - begin, source, *groups[0])
            return
        for further in range(until - begin):
            for group in groups:
                _append(runs, 1, source + further, *group)

    def _source(self, number: int, depth: int) -> int:
        """The slot that predicts the token which a path brings at a depth."""
        if depth == 0:
            return -1
        while self.new[number] > depth - 1:
            number -= 1
        return self.first[number] + depth - 1


def _append(runs: list[list[int]], count: int, rising: int, *constant: int) -> None:
    """Another run, or more of the last one where it goes on."""
    if runs and runs[-1][0] + runs[-1][1] == rising and runs[-1][2:] == [*constant]:
        runs[-1][0] += count
    else:
        runs.append([count, rising, *constant])


def _array(segment: Ids) -> np.ndarray:
    if isinstance(segment, np.ndarray):
        return segment.astype(np.int32)
    return np.fromiter(segment, np.int32, len(segment))


def _depth_first(given: list[np.ndarray]) -> tuple[list[int], list[int]]:
    """The numbers of sequences in the order of a walk through their tree; what each has in common with
    the one before it, 0 for the first.

    Branches are walked as they were given. Where two part, first comes the one that ends there, else the
    one whose branch the earliest took.
    """
    # Any order of bytes puts those together that begin alike.
    keys = [ids.tobytes() for ids in given]
    order = sorted(range(len(given)), key=keys.__getitem__)
    common = [0, *(_alike(given[i], given[j]) for i, j in itertools.pairwise(order))]

    def walked(first: int, last: int) -> list[tuple[int, int]]:
        if last - first == 1:
            return [(order[first], 0)]
        depth = min(common[first + 1 : last])
        cuts = [first, *(k for k in range(first + 1, last) if common[k] == depth), last]

        def turn(branch: tuple[int, int]) -> tuple[bool, int]:
            return len(given[order[branch[0]]]) > depth, min(order[slice(*branch)])

        found = []
        for branch in sorted(itertools.pairwise(cuts), key=turn):
            (begins, _), *rest = walked(*branch)
            found += [(begins, depth), *rest]
        return found

    numbers, new = zip(*walked(0, len(given)), strict=True)
    return [*numbers], [0, *new[1:]]


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    first = int(differ.argmax())
    return first if differ[first] else shorter
