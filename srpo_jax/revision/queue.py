"""Which row of a pool writes what next. The device knows nothing of it: see `pool`.

Shapes: B rows of the pool, R of them at a time, G tokens of a completion at most.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Int

from srpo_jax.revision import plan
from srpo_jax.revision.prompt_arrays import Shown

Numbers = Int[np.ndarray, " R"]


class Done(NamedTuple):
    """rows: int [R], ascending, that are done. completions: of them."""

    rows: Numbers
    completions: Shown


class Rows(Protocol):
    """What a Queue needs of a pool; `engine.Pooled` is one, where the methods are described.

    rows: B. parts: in how many equal parts they lie over the devices, one after the other. size: R, rows of
    a group, of each part equally many. enough: how many of a group's rows must be used for it to be worth
    its prefill. new: G.
    """

    rows: int
    parts: int
    size: int
    enough: int
    new: int

    def answer(self, chosen: Numbers, into: Numbers) -> None: ...

    def improve(self, chosen: Numbers, shown: Shown, revisions: Numbers, into: Numbers) -> None: ...

    def decode(self, done: int, asked: Numbers) -> Done: ...


@dataclass
class Queue:
    """The prompts of one shape, through one pool.

    waiting: numbers of prompts that have no row yet. holds: int [B], of each row its prompt, -1 in an idle
    one. decoding: bool [B]. count: int [B], how many completions of its prompt are done, the last one in
    `shown`, all in `written`. ready: rows whose next improve prompt waits, in the order in which they came.
    """

    pool: Rows
    n_revisions: int
    waiting: Numbers
    holds: Int[np.ndarray, " B"] = field(init=False)
    decoding: Bool[np.ndarray, " B"] = field(init=False)
    count: Int[np.ndarray, " B"] = field(init=False)
    shown: Shown = field(init=False)
    written: list[list[list[int]]] = field(init=False)
    ready: Numbers = field(init=False)

    def __post_init__(self) -> None:
        rows = self.pool.rows
        self.holds, self.decoding = np.full(rows, -1), np.zeros(rows, bool)
        self.count, self.ready = np.zeros(rows, int), np.zeros(0, int)
        self.shown = Shown(np.zeros((rows, self.pool.new), np.int32), np.zeros(rows, np.int32))
        self.written = [[] for _ in range(rows)]

    def run(self) -> Iterator[tuple[int, list[list[int]]]]:
        """(number, its completions) of each prompt, as it is done."""
        while True:
            if self._put_in():
                continue
            decoding = np.flatnonzero(self.decoding)
            if not len(decoding):
                return
            done = self.pool.rows - len(decoding) + self._shortest()
            yield from self._settle(self.pool.decode(done, decoding))

    def _put_in(self) -> bool:
        """Prefills a group of prompts if one is due: enough, or all that will come, or none decodes."""
        answers, edits = self._answers(), self._edits()
        stuck = not self.decoding.any()
        if len(edits) and len(edits) >= self._enough(self._to_improve()):
            self._improve(edits)
        elif len(answers) and len(answers) >= self._enough(len(self.waiting)):
            self._answer(answers)
        elif stuck and len(edits):
            self._improve(edits)
        elif stuck and len(answers):
            self._answer(answers)
        else:
            return False
        return True

    def _shortest(self) -> int:
        """How many rows must be done, at least, before a group can be due."""
        short = [int(self.decoding.sum())]
        if len(self.waiting):
            short.append(self._enough(len(self.waiting)) - len(self._answers()))
        if coming := self._to_improve():
            short.append(self._enough(coming) - len(self._edits()))
        return max(1, min(short))

    def _enough(self, coming: int) -> int:
        return min(self.pool.enough, coming)

    def _answers(self) -> Numbers:
        """Rows for a group of direct prompts."""
        return self._group(np.flatnonzero(self.holds < 0))[: len(self.waiting)]

    def _edits(self) -> Numbers:
        """Rows for a group of improve prompts."""
        return self._group(self.ready)

    def _group(self, rows: Numbers) -> Numbers:
        """Of these, no more of each part than a group has: what is put in does not leave its devices."""
        pool = self.pool
        place = plan.numbered(rows * pool.parts // pool.rows)
        return rows[place < pool.size // pool.parts]

    def _to_improve(self) -> int:
        """How many prompts are ready for a revision, or will be."""
        more = int((self.count[self.decoding] < self.n_revisions).sum())
        return len(self.ready) + more + (len(self.waiting) if self.n_revisions else 0)

    def _answer(self, into: Numbers) -> None:
        chosen, self.waiting = np.split(self.waiting, [len(into)])
        self.holds[into], self.decoding[into], self.count[into] = chosen, True, 0
        for row in into.tolist():
            self.written[row] = []
        self.pool.answer(chosen, into)

    def _improve(self, into: Numbers) -> None:
        self.decoding[into] = True
        self.ready = self.ready[~self.decoding[self.ready]]
        self.pool.improve(self.holds[into], self.shown.of(into), self.count[into], into)

    def _settle(self, done: Done) -> Iterator[tuple[int, list[list[int]]]]:
        """Takes what was done; a prompt with all its revisions leaves its row."""
        rows, completions = done
        for row, completion in zip(rows.tolist(), completions.as_lists(), strict=True):
            self.written[row].append(completion)
        self.shown.tokens[rows], self.shown.lengths[rows] = completions
        self.count[rows] += 1
        self.decoding[rows] = False
        more = self.count[rows] <= self.n_revisions
        self.ready = np.concatenate([self.ready, rows[more]])
        ended = rows[~more]
        prompts, self.holds[ended] = self.holds[ended], -1
        for prompt, row in zip(prompts.tolist(), ended.tolist(), strict=True):
            yield prompt, self.written[row]
