"""The loop over steps, and what hangs on it.

The next step is dispatched before the numbers of this one are read, so that the devices never wait for
Python. Only where something needs the state behind a step (a checkpoint, an evaluation) the next one waits,
as it donates that state.

A hook is called behind every n-th step, and behind the last one of a run: it logs, shows, checks or
evaluates, so that the loop itself has no branch for any of them. Saving comes behind the hooks.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from srpo_jax.training.step import Batch, Metrics, TrainState
from srpo_jax.trees.prefix_tree import Rows


@dataclasses.dataclass(frozen=True)
class Done:
    """A step that has been taken.

    number: from 1. last: the run is complete. state: what the step left, for saving and for hooks that
    asked for it, which must not keep it; else None. Behind a step that was not finite: what the step before
    it left. metrics: as floats. finite: whether loss and gradient were, of this step and all before it; if
    not, the step changed nothing. rows: this process's share of the batch, numpy. slots: of the whole
    batch's rows. seconds: from the step before, or from its own dispatch if that was later, until it was
    known to be done. waited: in at most so many of them the devices had no work, for want of a batch (a
    later step's, as the next one is dispatched by then).
    """

    number: int
    last: bool
    state: TrainState | None
    metrics: dict[str, float]
    finite: bool
    rows: Rows
    slots: int
    seconds: float
    waited: float

    @property
    def tokens(self) -> int:
        """Slots of the batch that hold a token, if other processes' rows are as full as this one's."""
        filled = np.count_nonzero(self.rows.end) / self.rows.tokens.size
        return round(float(filled) * self.slots)


class Hook(NamedTuple):
    """act is called behind every `every`-th step and behind the last; hooks act in their order.

    state: it reads `Done.state`.
    """

    act: Callable[[Done], None]
    every: int = 1
    state: bool = False


class _Running(NamedTuple):
    """A step that has been dispatched."""

    number: int
    metrics: Metrics
    rows: Rows
    slots: int
    began: float


def loop(
    train: Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[dict[str, Any]],
    numbers: range,
    *,
    place: Callable[[dict[str, Any]], Batch],
    hooks: Sequence[Hook],
    stop: Callable[[int], bool],
    save: Callable[[Done], None],
    due: Callable[[int], bool],
    finite: Any = True,
) -> int:
    """Takes the steps of `numbers`, which is not empty; returns the last one taken.

    train: the step, which donates the state; its third argument is `metrics["finite"]` of the step before,
    or `finite`. place: brings a batch of this process onto the mesh. stop: is asked at each step, with its
    number, on every process; True makes it the last. save: is called behind the steps of which `due` says
    so, and behind the last.
    """
    behind = _Behind(numbers[-1], hooks, save, due)
    before: _Running | None = None
    given = next(batches)
    batch = place(given)
    for number in numbers:
        began = time.perf_counter()
        state, metrics = train(state, batch, finite)
        finite = metrics.get("finite", True)
        slots = batch["rows"].tokens.size
        step = _Running(number, metrics, given["rows"], slots, began)
        ends = number == numbers[-1] or stop(number)
        if not ends:
            began = time.perf_counter()
            given = next(batches)
            batch = place(given)
            if _is_done(step.metrics):
                behind.waited += time.perf_counter() - began
        if before is not None:
            behind.settle(before, state, ahead=True)
        before = step
        if ends or behind.needs_state(number):
            behind.settle(step, state, ends=ends)
            before = None
        if ends:
            break
    return number


@dataclasses.dataclass
class _Behind:
    """What happens behind the steps.

    settled: when the last one was known to be done. waited: seconds since then in which the devices had no
    work.
    """

    last: int
    hooks: Sequence[Hook]
    save: Callable[[Done], None]
    due: Callable[[int], bool]
    settled: float = 0.0
    waited: float = 0.0

    def needs_state(self, number: int) -> bool:
        wanted = any(hook.state and number % hook.every == 0 for hook in self.hooks)
        return wanted or self.due(number)

    def settle(
        self, step: _Running, state: TrainState, ahead: bool = False, ends: bool = False
    ) -> None:
        """Waits for a step and calls what hangs on it.

        state: as the steps that were dispatched leave it. ahead: the next one was, too. It has changed
        nothing if this one was not finite. ends: nothing follows.
        """
        values = {name: float(value) for name, value in jax.device_get(step.metrics).items()}
        now = time.perf_counter()
        good = bool(values.pop("finite", 1.0))
        done = Done(
            step.number,
            last=step.number == self.last,
            state=None if ahead and good else state,
            metrics=values,
            finite=good,
            rows=step.rows,
            slots=step.slots,
            seconds=now - max(step.began, self.settled),
            waited=self.waited,
        )
        self.settled, self.waited = now, 0.0
        for hook in self.hooks:
            if done.last or not good or step.number % hook.every == 0:
                hook.act(done)
        if ends or self.due(step.number):
            self.save(done)


def _is_done(metrics: Metrics) -> bool:
    """Whether the devices have computed them."""
    arrays: list[Any] = [x for x in jax.tree.leaves(metrics) if isinstance(x, jax.Array)]
    return all(x.is_ready() for x in arrays)
