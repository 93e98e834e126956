"""What a run does behind its steps, and what it says of its data and model; see `loop.Hook`."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from srpo_jax.prompts import TEMPLATES
from srpo_jax.runtime import rules
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, Progress, status
from srpo_jax.training.best import Compared, is_highest
from srpo_jax.training.loop import Done
from srpo_jax.training.pipeline import PairTrees
from srpo_jax.training.settings import TrainSettings
from srpo_jax.training.speed import Speed
from srpo_jax.trees.packing import Packing, RowShape

FILLED = (
    1000  # batches that are laid out to say how full rows are; of a million pairs all take 20 s
)


def check_best(train: TrainSettings, evaluated: bool) -> None:
    """UserError where checkpoints are to be compared by what is never measured, or tells of no best one.

    evaluated: whether the program evaluates during the run.
    """
    by = train.keep_best_by
    if train.keep_best:
        is_highest(by)
    if train.keep_best and by.startswith(("held_out/", "revision/")) and not evaluated:
        raise UserError(
            f"config.train.keep_best={train.keep_best} compares checkpoints by config.train.keep_best_by="
            f"{by}, which nothing measures: `train` does with config.train.evaluate_every above 0; or name "
            "another metric, which every step has"
        )


def require_finite(checkpoints: Checkpoints, before: Callable[[], None]) -> Callable[[Done], None]:
    """Ends the run on a loss or gradient that is no number; the state before it is saved.

    before: see `save`.
    """

    def act(done: Done) -> None:
        if done.finite:
            return
        name = "grad_norm" if np.isfinite(done.metrics["loss"]) else "loss"
        if done.number > 1 and done.state is not None:
            before()
            checkpoints.save(done.number - 1, done.state, force=True)
        checkpoints.wait()
        kept = checkpoints.latest()
        where = f"the checkpoint of step {kept} is kept" if kept else "nothing was learned before"
        raise UserError(
            f"{name} is {done.metrics[name]} at step {done.number}; {where}. Lower "
            "config.optimizer.learning_rate, and look at config.objective.beta and metrics.jsonl"
        )

    return act


def write_metrics(
    log: Metrics, schedule: optax.Schedule, speed: Speed, every: int
) -> Callable[[Done], None]:
    """A line behind each `every`-th step and the last: what the step said, and the speed since the last."""

    def act(done: Done) -> None:
        speed.add(done)
        if done.last or done.number % every == 0:
            rate = {"learning_rate": float(schedule(done.number - 1))}
            log.write(done.number, done.metrics | rate | speed.take())

    return act


def show(progress: Progress) -> Callable[[Done], None]:
    """The progress line."""
    return lambda done: progress.advance(work=done.tokens, note=f"loss {done.metrics['loss']:.4f}")


def save(
    checkpoints: Checkpoints,
    log: Metrics,
    speed: Speed,
    train: TrainSettings,
    before: Callable[[], None],
) -> Callable[[Done], None]:
    """A checkpoint; the loop asks for it where one is due, and where the run ends or stops.

    before: writes the reference scores that it relies on. The lines of its steps are written first, too: a
    later attempt, which goes on behind it, writes none of them. train: says by which metric checkpoints are
    compared, where it was measured at that very step.
    """
    compared = Compared(train)

    def act(done: Done) -> None:
        with speed.saving():
            before()
            log.flush()
            best = compared(done.number, log.last.get(compared.by, {}).get(done.number))
            checkpoints.save(done.number, done.state, force=True, best=best)

    return act


def announced(
    batches: Iterator[dict[str, Any]], foreseen: Iterable[RowShape], first: int
) -> Iterator[dict[str, Any]]:
    """The batches of step `first` and on; says which are of an unforeseen shape, and compiled."""
    known = set(foreseen)
    for number, batch in enumerate(batches, first):
        rows = batch["rows"]
        shape = RowShape(rows.tokens.shape[1], rows.target_token.shape[1], rows.pair.shape[1])
        if shape not in known:
            known.add(shape)
            status(f"step {number} has rows of a new shape ({shape}) and is compiled once more")
        yield batch


def report_data(data: PairTrees, packing: Packing, train: TrainSettings, template: str) -> None:
    """How many pairs, how large their trees, what was left out, how well the rows are filled.

    And what settings made for other data hide: how prompts are put, how often the run sees a pair.
    """
    status(f"template {template}: {TEMPLATES[template].asked}")
    saved = 1 - data.tokens / data.separate_tokens
    status(
        f"data: {len(data)} pairs, {data.left_out}; {data.tokens / len(data):.0f} tokens a tree "
        f"({saved:.0%} saved by shared prefixes)"
    )
    # Each batch has its share of long and of short trees, so some say what all would; a last one that the
    # pairs do not fill is never trained on.
    fills = [
        packing.fill(layout)
        for layout in itertools.islice(packing.once(), FILLED)
        if sum(map(len, layout.rows)) == packing.batch_size
    ]
    fill = np.mean(fills or [packing.fill(packing.batch(packing.start))])
    lengths = " or ".join(str(shape.length) for shape in packing.shapes)
    status(f"rows: {packing.rows} a batch, of {lengths} slots, {fill:.0%} filled")
    times = train.steps * train.batch_size / len(data)
    status(f"steps: {train.steps} of {train.batch_size} pairs, {times:,.1f} times through the data")


def report_model(trained: Any, frozen: Any, mesh: Mesh) -> None:
    """Sizes of what is trained and what is not, the mesh, and what kind of devices it is of."""

    def count(tree: Any) -> float:
        return float(sum(x.size for x in jax.tree.leaves(tree)) / 1e6)

    # Rules that the run has changed are the name of an axis.
    shape = ", ".join(
        f"{axis} {size}" if axis in rules.AXES else axis for axis, size in mesh.shape.items()
    )
    status(
        f"model: {count(trained):.2f} M parameters trained, {count(frozen):.2f} M frozen; mesh {shape}: "
        f"{mesh.size} x {mesh.devices.flat[0].device_kind}"
    )
