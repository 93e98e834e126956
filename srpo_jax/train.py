"""Trains a model on preference pairs: SRPO (arXiv:2406.01660), or DPO, IPO, SFT, … on the same pairs.

    python -m srpo_jax.train --config=configs/NAME.py --workdir=DIR [--config.objective.beta=0.05]

The same command resumes an interrupted run where it stopped, on any number of devices; a finished run
says so. DIR receives config.json, run.json, checkpoints/, metrics.jsonl, tensorboard/, trees/ and
reference_scores.npz. With --config.train.evaluate_every=N held-out pairs and a few revisions are evaluated
on the way.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from srpo_jax import objectives
from srpo_jax.config import Settings, attempt, command
from srpo_jax.evaluation import during
from srpo_jax.models import Decoder, DecoderConfig, creation, loading
from srpo_jax.models.source import Source
from srpo_jax.objectives import Objective, ObjectiveSettings
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import chips, distributed, storage
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, Progress, status
from srpo_jax.runtime.program import INTERRUPTED, keep_compiled
from srpo_jax.training import (
    batch_sizes,
    diagnosis,
    held_out,
    hooks,
    pipeline,
    reference,
    reward_scale,
    step,
    tree_files,
)
from srpo_jax.training.first_epoch import FirstEpoch
from srpo_jax.training.loop import Hook, loop
from srpo_jax.training.optimizer import make_optimizer, report_schedule
from srpo_jax.training.profiling import Profiler
from srpo_jax.training.reference import Reference
from srpo_jax.training.score_files import ScoreFiles, Scores
from srpo_jax.training.speed import Speed, model_flops
from srpo_jax.trees.packing import Packing


def train(
    settings: Settings, workdir: Path, extend: bool = False, change_batch: bool = False
) -> bool:
    """One run, from its pairs to its last checkpoint. Returns False if it was asked to stop early.

    extend, change_batch: see `attempt.own`. Raises UserError for what is at fault, and a loss not finite.
    """
    began, mesh = time.perf_counter(), mesh_module.of_settings(settings.mesh)
    check(settings, mesh)
    objective = objectives.get(settings.objective.name)
    hyper = hyperparameters(settings.objective)
    architecture = decoder_config(settings, objective)
    optimizer, schedule = make_optimizer(settings.optimizer, settings.train.steps)
    source = loading.open_source(base := attempt.base(settings, workdir))
    asked = None if objective.rewards else during.asked(settings, workdir, source)

    # The pairs, as prefix trees; some are held out
    data, held = prepare_data(settings, workdir, source, objective)
    check_labels(objective, hyper, data, held)
    sizes = attempt.own(settings, workdir, source, base, data.fingerprint, extend, change_batch)
    packing = pack(settings, data, mesh, sizes, attempt.rule_of(workdir))
    hooks.report_data(data, packing, settings.train, settings.data.template)

    # The policy and its reference, which is the policy as it starts unless another one is named
    graphdef, trained, frozen = prepare_model(architecture, source, mesh, settings.seed)
    attempt.keep_start(workdir, frozen)
    one = step.TrainStep(graphdef, optimizer, objective, hyper, mesh, **step_options(settings))
    programs = one.compile(trained)
    policy = prepare_reference(settings, source, architecture, programs, (trained, frozen), mesh)
    report = functools.partial(diagnosis.report_copying, data, hyper)
    given = score_pairs(settings, workdir, data, objective, policy, packing, mesh, report)
    hooks.report_model(trained, frozen, mesh)
    evaluation = during.prepare(
        settings, workdir, one, programs, frozen, policy, held, asked, report(data.reference)
    )
    measure = scale_of_rewards(settings, workdir, objective, programs, frozen, data, packing, mesh)
    del policy  # another model's weights are needed no more

    # The steps, from where an earlier attempt stopped
    with attempt.saved(settings.train, workdir) as checkpoints, distributed.StopSignal() as stop:
        state = step.TrainState(trained, programs.init(trained))
        start, state = restored(checkpoints, state, packing.start)
        if is_finished(workdir, start, settings.train.steps):
            return True
        speed = measured(settings, architecture, objective, mesh, began)
        with watched(settings, workdir, checkpoints, schedule, speed, start, given) as (log, watch):
            evaluate = during.begin(evaluation, log, start, state.model)
            last = loop(
                lambda state, batch, finite: programs.train(state, frozen, batch, finite),
                state,
                batches(settings, data, packing, mesh, start),
                range(start + 1, settings.train.steps + 1),
                place=given.place,
                hooks=(*watch, *evaluate, *measure),
                stop=stop.requested,
                save=hooks.save(checkpoints, log, speed, settings.train, given.write),
                due=checkpoints.due,
                finite=mesh_module.replicate(mesh, step.FINITE),
            )
    return came_to_its_end(last, settings.train.steps)


def prepare_data(
    settings: Settings, workdir: Path, source: Source, objective: Objective
) -> tuple[pipeline.PairTrees, pipeline.PairTrees | None]:
    """The pairs of config.data as trees, for what the objective needs: to train on, and held out.

    The latter are None where nothing is evaluated during the run. An earlier start has kept them on disk.
    """
    data, evaluated = settings.data, settings.train.evaluate_every > 0
    rejected = any("l" in name for name in objective.needs)
    # Where the rejected completion is a draft to improve, and no more, the best edit may be none.
    distinct = any(name.startswith("l") for name in objective.needs)
    read = functools.cache(
        lambda: held_out.read_pairs(data, rejected=rejected, evaluated=evaluated, distinct=distinct)
    )
    folder = storage.place(data.cache) if data.cache else workdir / "trees"
    limits = pipeline.Limits(source.config.max_length, data.row_length, data.overlong, data.refused)
    renderer = Renderer(data.template, source.tokenizer, data.arguments)

    def trees(held: bool, where: str) -> pipeline.PairTrees:
        origin, pairs = lambda: held_out.origin(data, read, held), lambda: read()[held]
        return tree_files.prepare(folder, origin, pairs, renderer, objective.needs, limits, where)

    asked = trees(True, data.held_out or data.pairs) if evaluated else None
    return trees(False, data.pairs), asked


def pack(
    settings: Settings, data: pipeline.PairTrees, mesh: Mesh, sizes: batch_sizes.Sizes, rule: int
) -> Packing:
    """Which pairs form the batch of a step yet to come, and which of them share a row. rule: of `Order`."""
    made: Packing | None = None
    for begin, size in sizes:
        made = data.packing(
            size,
            settings.seed,
            parts=mesh_module.batch_parts(mesh) * settings.train.accumulate,
            packed=settings.data.pack,
            rule=rule,
            after=(made, begin) if made else None,
        )
    assert made is not None
    return made


def decoder_config(settings: Settings, objective: Objective) -> DecoderConfig:
    """What is trained: a language model, or for the objective of rewards a reward model."""
    given = settings.model, settings.lora, settings.train.frozen
    config = loading.decoder_config(*given, rewards=objective.rewards)
    if settings.train.router_loss and config.routing is None:
        raise UserError(
            f"config.train.router_loss={settings.train.router_loss} is for models with routed experts, and "
            f"{settings.model.source} has none: set it to 0"
        )
    return config


def prepare_model(
    architecture: DecoderConfig, source: Source, mesh: Mesh, seed: int
) -> tuple[nnx.GraphDef[Decoder], nnx.State[Any, Any], nnx.State[Any, Any]]:
    """(graphdef, trained, frozen), every array where it belongs on the mesh."""
    parameters = source.read_parameters() if source.read_parameters else None
    return creation.create(architecture, parameters, mesh, seed)


def prepare_reference(
    settings: Settings,
    source: Source,
    architecture: DecoderConfig,
    programs: step.Programs,
    weights: tuple[nnx.State[Any, Any], nnx.State[Any, Any]],
    mesh: Mesh,
) -> Reference:
    """The policy as it starts, whose weights these are, or config.reference.source."""
    name, objective = settings.reference.source, objectives.get(settings.objective.name)
    if name and objective.needs_reference:
        weights = reference.weights_of(name, source, architecture, mesh)
    elif name:
        status(f"objective {objective.name} has no reference: config.reference.source is not read")
    return Reference(programs.reference, weights, architecture)


def scale_of_rewards(
    settings: Settings,
    workdir: Path,
    objective: Objective,
    programs: step.Programs,
    frozen: nnx.State[Any, Any],
    data: pipeline.PairTrees,
    packing: Packing,
    mesh: Mesh,
) -> tuple[Hook, ...]:
    """What measures a reward model's numbers when it is trained; nothing for other objectives."""
    if not objective.rewards:
        return ()
    score = lambda model, rows: programs.scores(model, frozen, rows)
    return (reward_scale.hook(workdir, settings.train.steps, data, score, packing, mesh),)


def score_pairs(
    settings: Settings,
    workdir: Path,
    data: pipeline.PairTrees,
    objective: Objective,
    policy: Reference,
    packing: Packing,
    mesh: Mesh,
    report: Callable[[Scores], Any],
) -> reference.Stored | FirstEpoch:
    """What gives each batch the reference's scores: those that are known already, or all, or none yet.

    report: is given scores that come later.
    """
    if not objective.needs_reference:
        return reference.Stored(mesh)
    depends = reference.fingerprint(data, policy.weights, policy.architecture)
    attempt.keep_reference(workdir, depends)
    path = reference.place(settings.data.cache, workdir, "reference_scores", depends)
    used = functools.partial(packing.used, settings.train.steps)
    if settings.reference.when == "first_epoch":
        files = ScoreFiles(path, depends)
        known, asked = files.known(data), used()
        if np.isnan(known[data.names[0]][asked]).any():
            return FirstEpoch(data, known, asked, policy, files, mesh, report)
    data.reference = reference.load_or_score(path, depends, data, policy.score, packing, mesh, used)
    return reference.Stored(mesh)


def step_options(settings: Settings) -> dict[str, Any]:
    """What `TrainStep` takes of the settings."""
    return {
        "accumulate": settings.train.accumulate,
        "master": settings.optimizer.master,
        "seed": settings.seed,
        "router_loss": settings.train.router_loss,
    }


def restored(
    checkpoints: Checkpoints, state: step.TrainState, first: int
) -> tuple[int, step.TrainState]:
    """The newest checkpoint that can be read and its step, else the state given, and 0.

    first: the step behind which the batch size has changed.
    """
    start, state = checkpoints.restore_latest(state, replace=True) or (0, state)
    if start < first:
        raise UserError(
            f"{checkpoints.directory}: the checkpoint of step {start} is used instead, and the batch size "
            f"was changed behind step {first}: the same command goes on from step {start}"
        )
    return start, state


def is_finished(workdir: Path, start: int, total: int) -> bool:
    """Whether nothing is left to do; says from where the run goes on, or that it does not."""
    if start >= total:
        status(f"{workdir} is finished: step {start} of {total}")
    elif start:
        status(f"resuming at step {start} of {total}")
    return start >= total


def came_to_its_end(last: int, total: int) -> bool:
    """Whether the last step taken is the run's; says how it goes on, if not."""
    if last < total:
        status(f"stopped at step {last} of {total}; the same command goes on from there")
    return last == total


@contextlib.contextmanager
def watched(
    settings: Settings,
    workdir: Path,
    checkpoints: Checkpoints,
    schedule: optax.Schedule,
    speed: Speed,
    start: int,
    given: reference.Stored | FirstEpoch,
) -> Iterator[tuple[Metrics, tuple[Hook, ...]]]:
    """What happens behind each step: end where it was not finite, log, show, profile."""
    train = settings.train
    with (
        Metrics(workdir, start, train.writers, train.project) as log,
        Progress("train", train.steps, unit="tokens", done=start) as progress,
        speed,
        Profiler(workdir, train.profile_at, train.profile_steps) as profile,
    ):
        write = hooks.write_metrics(log, schedule, speed, train.log_every)
        finite = hooks.require_finite(checkpoints, given.write)
        acts = (finite, write, hooks.show(progress), profile)
        yield log, tuple(Hook(act) for act in acts)


def measured(
    settings: Settings,
    architecture: DecoderConfig,
    objective: Objective,
    mesh: Mesh,
    began: float,
) -> Speed:
    """How fast the run is; with MFU where the peak of its devices is known or given. began: see `Speed`."""
    chip = chips.of(mesh.devices.flat[0])
    peak = 1e12 * settings.train.peak_tflops or (chip.flops if chip else 0.0)
    if not peak:
        return Speed(settings.train.batch_size, began)
    work = functools.partial(model_flops, architecture, objective.needs)
    return Speed(settings.train.batch_size, began, work, peak * mesh.size)


def batches(
    settings: Settings, data: pipeline.PairTrees, packing: Packing, mesh: Mesh, start: int
) -> Iterator[dict[str, Any]]:
    """This process's rows of the batches behind step `start`."""
    own = mesh_module.own_rows(mesh, packing.rows)
    stream = pipeline.batches(data, packing, start, own=own, workers=settings.data.workers)
    return hooks.announced(stream, packing.shapes, start + 1)


def check(settings: Settings, mesh: Mesh) -> None:
    """UserError for settings that contradict each other, or the mesh; says what the schedule leaves out."""
    check_batch(settings, mesh)
    report_schedule(settings.optimizer, settings.train.steps)
    hooks.check_best(settings.train, evaluated=settings.train.evaluate_every > 0)


def check_labels(
    objective: Objective, hyper: dict[str, Any], *given: pipeline.PairTrees | None
) -> None:
    """UserError for labels, of what is trained on and held out, that the objective cannot take."""
    for pairs in filter(None, given):
        objectives.check_log_odds(objective, pairs.label_prob, hyper)


def check_batch(settings: Settings, mesh: Mesh) -> None:
    """UserError for a batch that leaves devices without a row."""
    size, parts = settings.train.batch_size, settings.train.accumulate
    devices = mesh_module.batch_parts(mesh)
    if size >= parts * devices:
        return
    fewer = next((n for n in range(min(size // parts, devices), 0, -1) if devices % n == 0), 0)
    instead = f"make it {parts * devices} or more"
    if fewer and not settings.mesh.rules:
        tensor = mesh.shape["tensor"] * devices // fewer
        instead += (
            f", or let {tensor // mesh.shape['tensor']} times as many devices share a row with "
        )
        instead += f"--config.mesh.tensor={tensor}"
    raise UserError(
        f"config.train.batch_size={size} pairs are fewer than config.train.accumulate={parts} parts of "
        f"{mesh_module.settings_of(mesh, 'batch')} = {devices} rows, one a device: {instead}"
    )


def hyperparameters(settings: ObjectiveSettings) -> dict[str, Any]:
    """Those that the objective reads, checked; says which settings it leaves unread."""
    objective = objectives.get(settings.name)
    given = settings.given()
    hyper = {k: v for k, v in given.items() if k in objective.hyperparameters}
    objectives.check_hyperparameters(objective.name, **hyper)
    unread = ", ".join(k for k in given if k not in hyper)
    values = ", ".join(f"{k}={v}" for k, v in hyper.items()) or "no hyperparameters"
    status(f"objective {objective.name}: {values}" + (f" (not read: {unread})" if unread else ""))
    return hyper


def main(settings: Settings, workdir: Path, extend: bool, change_batch: bool) -> int:
    distributed.initialize()
    keep_compiled(workdir)
    done = train(settings, workdir, extend=extend, change_batch=change_batch)
    return 0 if done else INTERRUPTED


if __name__ == "__main__":
    sections = ("model", "lora", "mesh", "data", "objective", "reference", "train", "optimizer")
    switches = {
        "extend": "go on for more steps than the run was begun with, at other learning rates",
        "change_batch": "go on with another config.train.batch_size",
    }
    command.run(main, (*sections, "sampling", "evaluate"), switches=switches)
