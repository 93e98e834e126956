"""What a run does behind its steps, and what it says of its data and model; see `loop.Hook`."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, Progress, status
from srpo_jax.training.loop import Done
from srpo_jax.training.pipeline import PairTrees
from srpo_jax.trees.packing import Packing, RowShape


def require_finite(checkpoints: Checkpoints) -> Callable[[Done], None]:
    """Ends the run on a loss or gradient that is no number; what is saved stays as it is."""

    def act(done: Done) -> None:
        for name in ("loss", "grad_norm"):
            if not np.isfinite(done.metrics[name]):
                checkpoints.wait()  # the last save may still be under way
                kept = checkpoints.latest()
                where = (
                    f"the checkpoint of step {kept} is kept"
                    if kept
                    else "no checkpoint was due yet"
                )
                raise UserError(
                    f"{name} is {done.metrics[name]} at step {done.number}; {where}. Lower "
                    "config.optimizer.learning_rate or config.objective.beta, and look at metrics.jsonl"
                )

    return act


def write_metrics(log: Metrics, schedule: optax.Schedule, pairs: int) -> Callable[[Done], None]:
    """A line of metrics with the learning rate and the speed. pairs: of a batch, over all devices."""

    def act(done: Done) -> None:
        speed = {
            "learning_rate": float(schedule(done.number - 1)),
            "tokens_per_second": done.tokens / done.seconds,
            "pairs_per_second": pairs / done.seconds,
            "row_fill": done.tokens / done.slots,
        }
        log.write(done.number, done.metrics | speed)

    return act


def show(progress: Progress) -> Callable[[Done], None]:
    """The progress line."""
    return lambda done: progress.advance(work=done.tokens, note=f"loss {done.metrics['loss']:.4f}")


def save(checkpoints: Checkpoints) -> Callable[[Done], None]:
    """A checkpoint when one is due, and of the last step in any case."""

    def act(done: Done) -> None:
        checkpoints.save(done.number, done.state, force=done.last)

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


def report_data(data: PairTrees, packing: Packing) -> None:
    """How many pairs, how large their trees, what was left out, how well the rows are filled."""
    saved = 1 - data.tokens / data.separate_tokens
    status(
        f"data: {len(data)} pairs, {data.dropped} left out as too long; {data.tokens / len(data):.0f} "
        f"tokens a tree ({saved:.0%} saved by shared prefixes)"
    )
    fill = np.mean([packing.fill(layout) for layout in packing.once()])
    lengths = " or ".join(str(shape.length) for shape in packing.shapes)
    status(f"rows: {packing.rows} a batch, of {lengths} slots, {fill:.0%} filled")


def report_model(trained: Any, frozen: Any, mesh: Mesh) -> None:
    """Sizes of what is trained and what is not, and the mesh."""

    def count(tree: Any) -> float:
        return float(sum(x.size for x in jax.tree.leaves(tree)) / 1e6)

    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    status(
        f"model: {count(trained):.2f} M parameters trained, {count(frozen):.2f} M frozen; mesh {shape}"
    )
