"""The loop over steps, and what hangs on it.

A hook is called behind every n-th step, and behind the last one of a run: it logs, shows, checks or
evaluates, so that the loop itself has no branch for any of them. Saving comes behind the hooks, when it is
known whether the run goes on.
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

    number: from 1. last: nothing follows, because the run is complete or (known when it is saved) was asked
    to stop. state: what the step left; the next step donates it, so a hook must not keep it. metrics: as
    floats. rows: this process's share of the batch, numpy. seconds: wall time of the step.
    """

    number: int
    last: bool
    state: TrainState
    metrics: dict[str, float]
    rows: Rows
    seconds: float

    @property
    def tokens(self) -> int:
        """Slots that hold a token, over all processes."""
        return int(np.count_nonzero(self.rows.end) * jax.process_count())

    @property
    def slots(self) -> int:
        """Slots of the batch's rows, over all processes."""
        return int(self.rows.tokens.size * jax.process_count())


class Hook(NamedTuple):
    """act is called behind every `every`-th step and behind the last; hooks act in their order."""

    act: Callable[[Done], None]
    every: int = 1


def loop(
    train: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[dict[str, Any]],
    numbers: range,
    *,
    place: Callable[[dict[str, Any]], Batch],
    hooks: Sequence[Hook],
    stop: Callable[[int], bool],
    save: Callable[[Done], None],
) -> int:
    """Takes the steps of `numbers`, which is not empty; returns the last one taken.

    train: the step, which donates the state. place: brings a batch of this process onto the mesh. stop: is
    asked behind the hooks of each step, with its number, on every process; True ends the loop. save: is
    called behind each step. The next batch is prepared while the devices work.
    """
    upcoming = next(batches)
    batch = place(upcoming)
    for number in numbers:
        began = time.perf_counter()
        rows = upcoming["rows"]
        state, metrics = train(state, batch)
        if number < numbers[-1]:
            upcoming = next(batches)
            batch = place(upcoming)
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        seconds = time.perf_counter() - began
        done = Done(number, number == numbers[-1], state, values, rows, seconds)
        for hook in hooks:
            if done.last or number % hook.every == 0:
                hook.act(done)
        done = dataclasses.replace(done, last=stop(number) or done.last)
        save(done)
        if done.last:
            break
    return number
