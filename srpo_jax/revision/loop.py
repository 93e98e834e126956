"""N-step self-revision: y_0 ~ pi(. | x), y_{k+1} ~ pi+(. | y_k, x), prefilling each token once.

(arXiv:2406.01660, section 4.) A prompt takes a row of a pool: its direct prompt is prefilled and y_0
decoded; then, N times, what an improve prompt has that the cache lacks is prefilled, and the next
completion decoded. A row whose completion is done goes on, or takes up the next prompt, while others still
decode. `plan` says what is prefilled and where in the cache it goes, `pool` are the programs, three for all
prompts of a shape, `engine` runs them.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.revision import plan, programs
from srpo_jax.revision.engine import Engine, Spent
from srpo_jax.revision.plan import Shape
from srpo_jax.revision.sampling import Sampling

Array = jax.Array


class Progress(Protocol):
    """What is told how far the work is; runtime.metrics.Progress is one."""

    def advance(self, steps: int) -> None: ...


def revise(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    foreseen: Sequence[Shape] = (),
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[str]]:
    """For each prompt the texts [y_0, …, y_N]; only the last revision is shown, not the history.

    What is drawn for a prompt depends on seed and its number in `rows` (by default its index) alone:
    batch size and order of work change nothing. foreseen: the `shapes` of a larger set, of which these
    prompts are a part; by default their own. progress is advanced by the prompts done; the time
    taken is added to `spent`.
    Raises UserError when a prompt and what must follow it do not fit the model's positions.
    """
    ids = revise_ids(
        model,
        prompts,
        n_revisions,
        sampling,
        eos=tokenizer.stop_ids,
        seed=seed,
        rows=rows,
        foreseen=foreseen,
        progress=progress,
        spent=spent,
    )
    return [[tokenizer.decode(y).strip() for y in row] for row in ids]


def revise_ids(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    eos: int | Sequence[int],
    seed: int = 0,
    rows: Sequence[int] | None = None,
    foreseen: Sequence[Shape] = (),
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[list[int]]]:
    """`revise` in token ids, [prompt][revision][token], without end of sequence.

    eos: what ends a completion, one token or any of several.
    """
    results: list[list[list[int]]] = [[] for _ in prompts]
    for i, ys in revising(
        model,
        prompts,
        n_revisions,
        sampling,
        eos=eos,
        seed=seed,
        rows=rows,
        foreseen=foreseen,
        spent=spent,
    ):
        results[i] = ys
        if progress is not None:
            progress.advance(1)
    return results


def revising(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    eos: int | Sequence[int],
    seed: int = 0,
    rows: Sequence[int] | None = None,
    foreseen: Sequence[Shape] = (),
    spent: Spent | None = None,
) -> Iterator[tuple[int, list[list[int]]]]:
    """`revise_ids` of one prompt after another, (index, [revision][token]), in the order they are done.

    The same order on every process.
    """
    stops = (eos,) if isinstance(eos, int) else tuple(eos)
    new = sampling.max_new_tokens
    needs = [prompt.room(new) for prompt in prompts]
    plan.check_fit(needs, new, model.config.max_length)
    numbers = jnp.array(range(len(prompts)) if rows is None else rows, jnp.uint32)
    keys = programs.keys(seed, numbers)
    engine = Engine.of(model, sampling, stops, Spent() if spent is None else spent)
    foreseen = foreseen or plan.shapes([prompts], new, sampling.batch_size)
    # The largest first, so that what does not fit into memory fails at once.
    for shape, mine in plan.by_shape(prompts, new, sampling.batch_size, foreseen):
        pool = engine.pool(shape, len(prompts))
        yield from Queue(pool, prompts, n_revisions, keys, deque(mine)).run()


class Batch(Protocol):
    """What a Queue needs of a pool of rows; `engine.Pooled` is one. See there."""

    rows: int
    size: int
    shape: Shape

    def answer(self, prompts: Sequence[Prompt], keys: Array, into: Sequence[int]) -> None: ...

    def improve(
        self,
        prompts: Sequence[Prompt],
        shown: Sequence[Sequence[int]],
        revisions: Sequence[int],
        keys: Array,
        into: Sequence[int],
    ) -> None: ...

    def decode(self, done: int) -> list[list[int] | None]: ...


@dataclass
class Queue:
    """Which row writes what next: the prompts of one shape, through one pool.

    waiting: indices of prompts that have no row yet. holds: of each row, its prompt, None in an idle one.
    written: of each row, the completions of its prompt. ready: rows whose next improve prompt waits.
    """

    pool: Batch
    prompts: Sequence[Prompt]
    n_revisions: int
    keys: Array
    waiting: deque[int]
    holds: list[int | None] = field(init=False)
    written: list[list[list[int]]] = field(init=False)
    ready: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.holds = [None] * self.pool.rows
        self.written = [[] for _ in self.holds]

    def run(self) -> Iterator[tuple[int, list[list[int]]]]:
        while True:
            if self._put_in():
                continue
            if not self._decoding():
                return
            completions = self.pool.decode(
                self.pool.rows - len(self._decoding()) + self._shortest()
            )
            yield from self._settle(completions)

    def _put_in(self) -> bool:
        """Prefills a group of prompts if one is due: it is full, or all that will come, or none decodes."""
        idle, size = self._idle(), self.pool.size
        direct, improve = min(len(self.waiting), len(idle)), len(self.ready)
        if improve and (improve >= min(size, improve + self._to_improve())):
            self._improve(self.ready[:size])
        elif direct and direct >= min(size, len(self.waiting)):
            self._answer(idle[:size])
        elif improve and not self._decoding():
            self._improve(self.ready[:size])
        else:
            return False
        return True

    def _shortest(self) -> int:
        """How many rows must be done, at least, before a group can be due."""
        decoding, size = len(self._decoding()), self.pool.size
        short = [decoding]
        if self.waiting:
            short.append(min(size, len(self.waiting)) - len(self._idle()))
        if more := self._to_improve():
            short.append(min(size - len(self.ready), more))
        return max(1, min(short))

    def _idle(self) -> list[int]:
        return [row for row, prompt in enumerate(self.holds) if prompt is None]

    def _decoding(self) -> list[int]:
        held = (row for row, prompt in enumerate(self.holds) if prompt is not None)
        return [row for row in held if row not in self.ready]

    def _to_improve(self) -> int:
        """How many prompts that have not been answered, or are decoded, have a revision to come."""
        more = sum(len(self.written[row]) < self.n_revisions for row in self._decoding())
        return more + (len(self.waiting) if self.n_revisions else 0)

    def _answer(self, into: Sequence[int]) -> None:
        chosen = [self.waiting.popleft() for _ in into[: len(self.waiting)]]
        into = into[: len(chosen)]
        for row, i in zip(into, chosen, strict=True):
            self.holds[row], self.written[row] = i, []
        self.pool.answer([self.prompts[i] for i in chosen], self.keys[np.array(chosen)], into)

    def _improve(self, into: Sequence[int]) -> None:
        self.ready = self.ready[len(into) :]
        chosen = [i for i in (self.holds[row] for row in into) if i is not None]
        shown = [self.written[row][-1] for row in into]
        revisions = [len(self.written[row]) for row in into]
        prompts = [self.prompts[i] for i in chosen]
        self.pool.improve(prompts, shown, revisions, self.keys[np.array(chosen)], into)

    def _settle(
        self, completions: Sequence[list[int] | None]
    ) -> Iterator[tuple[int, list[list[int]]]]:
        """Takes what was done of the rows that decode; a prompt with all its revisions leaves its row."""
        for row in self._decoding():
            completion, i = completions[row], self.holds[row]
            if completion is None or i is None:
                continue
            self.written[row].append(completion)
            if len(self.written[row]) <= self.n_revisions:
                self.ready.append(row)
            else:
                self.holds[row] = None
                yield i, self.written[row]
