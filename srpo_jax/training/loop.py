"""The loop over steps, and what hangs on it.

A hook is called behind every n-th step, and behind the last one of a run: it logs, saves, stops or
evaluates, so that the loop itself has no branch for any of them.
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

    number: from 1. last: nothing follows, because the run is complete or was asked to stop. state: what the
    step left; the next step donates it, so a hook must not keep it. metrics: as floats. rows: this
    process's share of the batch, numpy. seconds: wall time of the step.
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
        return int(np.count_nonzero(self.rows.end)) * jax.process_count()

    @property
    def slots(self) -> int:
        """Slots of the batch's rows, over all processes."""
        return int(self.rows.tokens.size) * jax.process_count()


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
) -> bool:
    """Takes the steps of `numbers`, which is not empty; False if it was asked to stop before the last.

    train: the step, which donates the state. place: brings a batch of this process onto the mesh. stop: is
    asked behind each step, with its number, on every process. The next batch is prepared while the devices
    work.
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
        last = stop(number) or number == numbers[-1]
        done = Done(number, last, state, values, rows, time.perf_counter() - began)
        for hook in hooks:
            if last or number % hook.every == 0:
                hook.act(done)
        if last:
            break
    return number == numbers[-1]
