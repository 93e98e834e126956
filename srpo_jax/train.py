"""Trains a model on preference pairs: SRPO (arXiv:2406.01660), or DPO, IPO, SFT, … on the same pairs.

    python -m srpo_jax.train --config=configs/NAME.py --workdir=DIR [--config.objective.beta=0.05]

The same command resumes an interrupted run where it stopped, on any number of devices; a finished run
says so. DIR receives config.json, run.json, checkpoints/, metrics.jsonl, tensorboard/ and
reference_scores.npz.
"""

import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from srpo_jax import config as config_module
from srpo_jax import objectives
from srpo_jax.config import command
from srpo_jax.config.workdir import claim
from srpo_jax.data import records
from srpo_jax.models import loading
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, Progress, is_main, status
from srpo_jax.runtime.program import INTERRUPTED
from srpo_jax.training import pipeline, reference, step
from srpo_jax.training.optimizer import make_optimizer
from srpo_jax.trees.packing import Packing, RowShape
from srpo_jax.trees.prefix_tree import Rows

# A run may go on with another value of these: they change neither the loss nor the data order.
MAY_CHANGE = (
    *("mesh.", "data.workers", "train.log_every", "train.checkpoint_", "train.keep_"),
    *("sampling.", "pairs.", "evaluate.", "judge.", "quickstart."),  # settings of other programs
)


def train(config: ConfigDict, workdir: Path) -> bool:
    """One run, from its pairs to its last checkpoint. Returns False if it was asked to stop early.

    Raises UserError for every setting, file or pair at fault, and when the loss stops being finite.
    """
    mesh = mesh_module.make(**config.mesh)
    check_settings(config, mesh)
    objective = objectives.get(config.objective.name)
    hyper = objective_settings(config)
    architecture = loading.decoder_config(config)
    optimizer, schedule = make_optimizer(config)

    # The pairs, as prefix trees
    source = loading.open_source(config.model.source)
    pairs = records.read_pairs(
        config.data.pairs,
        format=config.data.format,
        split=config.data.split,
        fields=config.data.fields,
        rejected=any("l" in name for name in objective.needs),
    )
    data = pipeline.prepare(
        pairs,
        Renderer(config.data.template, source.tokenizer),
        objective.needs,
        max_length=source.config.max_length,
        row_length=config.data.row_length,
        overlong=config.data.overlong,
        source=config.data.pairs,
    )
    if is_main():
        identity = {"tokenizer": source.tokenizer.fingerprint, "data": data.fingerprint}
        claim(workdir, config, identity, MAY_CHANGE)
    packing = data.packing(
        config.train.batch_size,
        config.seed,
        parts=mesh_module.batch_parts(mesh) * config.train.accumulate,
        packed=config.data.pack,
    )
    report_data(data, packing)

    # The policy and its reference, which is the policy as it starts
    parameters = source.read_parameters() if source.read_parameters else None
    graphdef, trained, frozen = loading.create(architecture, parameters, mesh, config.seed)
    del parameters
    programs = step.TrainStep(
        graphdef,
        optimizer,
        objective,
        hyper,
        mesh,
        accumulate=config.train.accumulate,
        master=config.optimizer.master,
        seed=config.seed,
    ).compile(trained)
    if objective.needs_reference:
        score = lambda rows: programs.reference(trained, frozen, rows)
        path, weights = workdir / "reference_scores.npz", (trained, frozen)
        data.reference = reference.load_or_score(path, data, weights, score, packing, mesh)
    report_model(trained, frozen, mesh)

    # Where an earlier attempt stopped, or the beginning
    state = step.TrainState(trained, programs.init(trained))
    with (
        Checkpoints(
            workdir / "checkpoints", config.train.keep_checkpoints, config.train.checkpoint_every
        ) as checkpoints,
        distributed.StopSignal() as stop,
    ):
        restored = checkpoints.restore_latest(state, replace=True)
        start, state = restored or (0, state)
        if start >= config.train.steps:
            status(f"{workdir} is finished: step {start} of {config.train.steps}")
            return True
        if start:
            status(f"resuming at step {start} of {config.train.steps}")

        stream = pipeline.batches(
            data,
            packing,
            start,
            process=jax.process_index(),
            processes=jax.process_count(),
            workers=config.data.workers,
        )
        with (
            Metrics(workdir, resume=start) as log,
            Progress("train", config.train.steps, unit="tokens", done=start) as progress,
        ):
            upcoming, known = next(stream), set(packing.shapes)
            batch = mesh_module.host_to_global(mesh, upcoming)
            for number in range(start + 1, config.train.steps + 1):
                began = time.perf_counter()
                rows = upcoming["rows"]
                report_shape(rows, known, number)
                tokens = int(np.count_nonzero(rows.end)) * jax.process_count()
                slots = rows.tokens.size * jax.process_count()

                state, metrics = programs.train(state, frozen, batch)

                if number < config.train.steps:  # the next batch, while the devices work
                    upcoming = next(stream)
                    batch = mesh_module.host_to_global(mesh, upcoming)
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                check_finite(values, number, checkpoints)
                if number % config.train.log_every == 0 or number == config.train.steps:
                    seconds = time.perf_counter() - began
                    values["learning_rate"] = float(schedule(number - 1))
                    values["tokens_per_second"] = tokens / seconds
                    values["pairs_per_second"] = config.train.batch_size / seconds
                    values["row_fill"] = tokens / slots
                    log.write(number, values)
                progress.advance(work=tokens, note=f"loss {values['loss']:.4f}")
                stopping = stop.requested(number)
                last = stopping or number == config.train.steps
                checkpoints.save(number, state, force=last)
                if last:
                    break
    if stopping:
        status(
            f"stopped at step {number} of {config.train.steps}; the same command goes on from there"
        )
    return not stopping


def check_settings(config: ConfigDict, mesh: Mesh) -> None:
    """UserError for a number of config.train, .optimizer or .data that is out of range."""
    at_least_1 = ["train.steps", "train.batch_size", "train.accumulate", "train.log_every"]
    at_least_1 += ["train.checkpoint_every", "train.keep_checkpoints"]
    at_least_0 = ["optimizer.learning_rate", "optimizer.warmup_steps", "optimizer.weight_decay"]
    at_least_0 += ["data.row_length", "data.workers"]
    checks = [(key, lambda v: v >= 1, "at least 1") for key in at_least_1]
    checks += [(key, lambda v: v >= 0, "0 or more") for key in at_least_0]
    checks += [(f"optimizer.{key}", lambda v: 0 <= v < 1, "in [0, 1)") for key in ("b1", "b2")]
    checks += [("optimizer.clip_norm", lambda v: v > 0, "positive")]
    values = config_module.flatten(config.to_dict())
    for key, good, wanted in checks:
        if not good(values[key]):
            raise UserError(f"config.{key}={values[key]} must be {wanted}")
    size, parts = config.train.batch_size, config.train.accumulate
    devices = mesh.shape["replica"] * mesh.shape["fsdp"]
    if size % (parts * devices):
        raise UserError(
            f"config.train.batch_size={size} must be a multiple of {parts * devices}: "
            f"config.train.accumulate={parts} parts, each over config.mesh.replica * config.mesh.fsdp = "
            f"{devices} devices"
        )


def objective_settings(config: ConfigDict) -> dict[str, Any]:
    """The hyperparameters that the objective reads, checked; says which settings it leaves unread."""
    objective = objectives.get(config.objective.name)
    given = {k: v for k, v in config.objective.items() if k != "name" and v is not None}
    hyper = {k: v for k, v in given.items() if k in objective.hyperparameters}
    objectives.check_hyperparameters(objective.name, **hyper)
    unread = [k for k in given if k not in hyper]
    values = ", ".join(f"{k}={v}" for k, v in hyper.items()) or "no hyperparameters"
    status(
        f"objective {objective.name}: {values}"
        + (f" (not read: {', '.join(unread)})" if unread else "")
    )
    return hyper


def report_data(data: pipeline.PairTrees, packing: Packing) -> None:
    """How many pairs, how large their trees, what was left out, how well the rows are filled."""
    saved = 1 - data.tokens / data.separate_tokens
    status(
        f"data: {len(data)} pairs, {data.dropped} left out as too long; {data.tokens / len(data):.0f} "
        f"tokens a tree ({saved:.0%} saved by shared prefixes)"
    )
    fill = np.mean([packing.fill(layout) for layout in packing.once()])
    lengths = " or ".join(str(shape.length) for shape in packing.shapes)
    status(f"rows: {packing.rows} a batch, of {lengths} slots, {fill:.0%} filled")


def report_shape(rows: Rows, known: set[RowShape], number: int) -> None:
    """Says that a step will be compiled once more, for rows that were not foreseen."""
    shape = RowShape(rows.tokens.shape[1], rows.target_token.shape[1], rows.pair.shape[1])
    if shape not in known:
        known.add(shape)
        status(f"step {number} has rows of a new shape ({shape}) and is compiled once more")


def report_model(trained: Any, frozen: Any, mesh: Any) -> None:
    """Sizes of what is trained and what is not, and the mesh."""
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree)) / 1e6
    shape = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    status(
        f"model: {count(trained):.2f} M parameters trained, {count(frozen):.2f} M frozen; mesh {shape}"
    )


def check_finite(values: dict[str, float], number: int, checkpoints: Checkpoints) -> None:
    """Stops the run on a loss or gradient that is no number; what is saved stays as it is."""
    for name in ("loss", "grad_norm"):
        if not np.isfinite(values[name]):
            checkpoints.wait()  # the last save may still be under way
            kept = checkpoints.latest()
            where = (
                f"the checkpoint of step {kept} is kept" if kept else "no checkpoint was due yet"
            )
            raise UserError(
                f"{name} is {values[name]} at step {number}; {where}. Lower "
                "config.optimizer.learning_rate or config.objective.beta, and look at metrics.jsonl"
            )


def main(config: ConfigDict, workdir: Path) -> int:
    distributed.initialize()
    return 0 if train(config, workdir) else INTERRUPTED


if __name__ == "__main__":
    command.run(main, ("model", "lora", "mesh", "data", "objective", "train", "optimizer"))
