"""From sequences of token ids to the runs of their prefix tree, depth first.

Tokens are compared by numpy and never one at a time in Python. What remains are numbers of runs, about ten
for the six sequences of a pair: for so few, plain integers are faster than arrays.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np

Ids = Sequence[SupportsIndex] | np.ndarray
_Branch = tuple[int, list[int]]  # the first given of its sequences; all of them, depth first


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
        sizes = [*map(len, made)]
        if len(made) % 2 or 0 in sizes:
            empty = sizes.index(0) if 0 in sizes else 1
            raise ValueError(f"sequence {i} has an empty {'completion' if empty % 2 else 'prompt'}")
        found.append(Path(np.concatenate(made), [*itertools.accumulate(sizes)]))
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
                for first, until, groups in self._learned(number, last, begin, depth):
                    ids = path.ids[first:until]
                    tokens.append(ids if len(groups) == 1 else np.repeat(ids, len(groups)))
                    self._append_targets(runs, number, first, until, groups)
                begin = depth
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

    def _learned(
        self, number: int, last: int, begin: int, end: int
    ) -> Iterator[tuple[int, int, list[tuple[int, int]]]]:
        """What is a target of the tokens that a path brings between two depths: (first, until, groups).

        The paths number … last pass them; groups are the intervals of those that learn a piece of them.
        """
        if number == last:
            alone = [(number, number + 1)]
            bounds = iter(self.paths[number].ends)
            for prompt, completion in zip(bounds, bounds, strict=True):
                first, until = max(prompt, begin), min(completion, end)
                if first < until:
                    yield first, until, alone
            return
        among = self.paths[number : last + 1]
        if begin >= end or end <= min(path.ends[0] for path in among):
            return
        changes = {depth for path in among for depth in path.ends if begin < depth < end}
        for first, until in itertools.pairwise([begin, *sorted(changes), end]):
            groups = self._learning(number, last, first)
            if groups:
                yield first, until, groups

    def _learning(self, number: int, last: int, depth: int) -> list[tuple[int, int]]:
        """Those of the paths number … last that learn the token at a depth, as intervals."""
        learning = [i for i in range(number, last + 1) if self.paths[i].learns(depth)]
        cuts = [i for i, (a, b) in enumerate(itertools.pairwise(learning), 1) if b > a + 1]
        bounds = itertools.pairwise([0, *cuts, len(learning)]) if learning else ()
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
        if begin == self.new[number] and until > begin + 1:
            # Its first token is predicted from what another path brought.
            self._append_targets(runs, number, begin, begin + 1, groups)
            self._append_targets(runs, number, begin + 1, until, groups)
        elif len(groups) == 1:
            _append(runs, until - begin, source, *groups[0])
        else:
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
    # Of each, what it has in common with the next one; the last one closes all branches.
    common = [*(_alike(given[i], given[j]) for i, j in itertools.pairwise(order)), -1]
    new = [0] * len(given)

    def joined(depth: int, branches: list[_Branch]) -> _Branch:
        """The branches that part at a depth as one."""
        branches.sort(key=lambda one: (len(given[one[1][0]]) > depth, one[0]))
        numbers = branches[0][1]
        for _, further in branches[1:]:
            new[further[0]] = depth
            numbers += further
        return min(branches)[0], numbers

    parting: list[tuple[int, list[_Branch]]] = []  # what is not closed yet, the deepest last
    for number, depth in zip(order, common, strict=True):
        branch = (number, [number])
        while parting and parting[-1][0] > depth:
            above, branches = parting.pop()
            branch = joined(above, [*branches, branch])
        if parting and parting[-1][0] == depth:
            parting[-1][1].append(branch)
        else:
            parting.append((depth, [branch]))
    ((_, (whole,)),) = parting
    walked = whole[1]
    return walked, [new[number] for number in walked]


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    differ = one[:shorter] != other[:shorter]
    first = int(differ.argmax())
    return first if differ[first] else shorter
