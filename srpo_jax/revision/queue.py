"""Which row of a pool writes what next. The device knows nothing of it: see `pool`."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from srpo_jax.prompts import Prompt
from srpo_jax.revision.plan import Shape


class Rows(Protocol):
    """What a Queue needs of a pool; `engine.Pooled` is one, where the methods are described.

    rows: B. parts: in how many equal parts they lie over the devices, one after the other. size: R, rows of
    a group, of each part equally many. enough: how many of a group's rows must be used for it to be worth
    its prefill.
    """

    rows: int
    parts: int
    size: int
    enough: int
    shape: Shape

    def answer(self, prompts: Sequence[Prompt], keys: np.ndarray, into: Sequence[int]) -> None: ...

    def improve(
        self,
        prompts: Sequence[Prompt],
        shown: Sequence[Sequence[int]],
        revisions: Sequence[int],
        keys: np.ndarray,
        into: Sequence[int],
    ) -> None: ...

    def decode(self, done: int, asked: Sequence[int]) -> Mapping[int, list[int]]: ...


@dataclass
class Queue:
    """The prompts of one shape, through one pool.

    keys: [N, …] data of a random key for each prompt. waiting: indices of prompts that have no row yet.
    holds: of each row its prompt, None in an idle one. written: of each row the completions of its prompt.
    ready: rows whose next improve prompt waits.
    """

    pool: Rows
    prompts: Sequence[Prompt]
    n_revisions: int
    keys: np.ndarray
    waiting: deque[int]
    holds: list[int | None] = field(init=False)
    written: list[list[list[int]]] = field(init=False)
    ready: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.holds = [None] * self.pool.rows
        self.written = [[] for _ in self.holds]

    def run(self) -> Iterator[tuple[int, list[list[int]]]]:
        """(index, its completions) of each prompt, as it is done."""
        while True:
            if self._put_in():
                continue
            decoding = self._decoding()
            if not decoding:
                return
            done = self.pool.rows - len(decoding) + self._shortest()
            yield from self._settle(self.pool.decode(done, decoding))

    def _put_in(self) -> bool:
        """Prefills a group of prompts if one is due: enough, or all that will come, or none decodes."""
        answers, edits = self._answers(), self._edits()
        stuck = not self._decoding()
        if edits and (len(edits) >= self._enough(self._to_improve())):
            self._improve(edits)
        elif answers and (len(answers) >= self._enough(len(self.waiting))):
            self._answer(answers)
        elif stuck and edits:
            self._improve(edits)
        elif stuck and answers:
            self._answer(answers)
        else:
            return False
        return True

    def _shortest(self) -> int:
        """How many rows must be done, at least, before a group can be due."""
        short = [len(self._decoding())]
        if self.waiting:
            short.append(self._enough(len(self.waiting)) - len(self._answers()))
        if coming := self._to_improve():
            short.append(self._enough(coming) - len(self._edits()))
        return max(1, min(short))

    def _enough(self, coming: int) -> int:
        return min(self.pool.enough, coming)

    def _answers(self) -> list[int]:
        """Rows for a group of direct prompts."""
        idle = [row for row, prompt in enumerate(self.holds) if prompt is None]
        return self._group(idle)[: len(self.waiting)]

    def _edits(self) -> list[int]:
        """Rows for a group of improve prompts."""
        return self._group(self.ready)

    def _group(self, rows: Sequence[int]) -> list[int]:
        """Of these, no more of each part than a group has: what is put in does not leave its devices."""
        pool, taken, chosen = self.pool, Counter[int](), []
        for row in rows:
            part = row * pool.parts // pool.rows
            if taken[part] < pool.size // pool.parts:
                taken[part] += 1
                chosen.append(row)
        return chosen

    def _decoding(self) -> list[int]:
        held = (row for row, prompt in enumerate(self.holds) if prompt is not None)
        return [row for row in held if row not in self.ready]

    def _to_improve(self) -> int:
        """How many prompts are ready for a revision, or will be."""
        more = sum(len(self.written[row]) < self.n_revisions for row in self._decoding())
        return len(self.ready) + more + (len(self.waiting) if self.n_revisions else 0)

    def _answer(self, into: Sequence[int]) -> None:
        chosen = [self.waiting.popleft() for _ in into]
        for row, i in zip(into, chosen, strict=True):
            self.holds[row], self.written[row] = i, []
        self.pool.answer([self.prompts[i] for i in chosen], self.keys[chosen], into)

    def _improve(self, into: Sequence[int]) -> None:
        self.ready = [row for row in self.ready if row not in into]
        chosen = [i for i in (self.holds[row] for row in into) if i is not None]
        shown = [self.written[row][-1] for row in into]
        revisions = [len(self.written[row]) for row in into]
        prompts = [self.prompts[i] for i in chosen]
        self.pool.improve(prompts, shown, revisions, self.keys[chosen], into)

    def _settle(self, done: Mapping[int, list[int]]) -> Iterator[tuple[int, list[list[int]]]]:
        """Takes what was done; a prompt with all its revisions leaves its row."""
        for row, completion in done.items():
            i = self.holds[row]
            assert i is not None
            self.written[row].append(completion)
            if len(self.written[row]) <= self.n_revisions:
                self.ready.append(row)
            else:
                self.holds[row] = None
                yield i, self.written[row]
