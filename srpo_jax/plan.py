"""Says what a run would cost on TPUs or GPUs that are not here: does it fit, how fast is it, at what price?

    python -m srpo_jax.plan --config=configs/NAME.py --topology=v5p-256 [--output=DIR] [--price=DOLLARS]
    python -m srpo_jax.plan --config=configs/NAME.py --topology=v5e-4 --online [--output=DIR]

The real train step and the real programs of revision are compiled on this machine, by the TPU's own
compiler (extra `plan`) or XLA's for GPUs (`plan_gpu`); nothing is allocated, no weights are read. Lengths
are those of config.data.pairs where that is a file, else of --prompt and --completion. --search tries
meshes, remat and batch sizes, and ranks what fits. --online plans a round of `train_online`.
"""

import dataclasses
import importlib.metadata
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from srpo_jax import objectives, train
from srpo_jax.config import Settings, command
from srpo_jax.models import DecoderConfig, attention, decoding_mesh, loading
from srpo_jax.models.creation import abstract
from srpo_jax.pairing import rounds
from srpo_jax.planning import compiling, lowering, machine, online, report, roofline
from srpo_jax.planning import search as trials
from srpo_jax.planning.compiling import DoesNotFit
from srpo_jax.planning.lowering import Program
from srpo_jax.planning.machine import Machine
from srpo_jax.planning.report import Part, Plan, Range
from srpo_jax.planning.workload import EOS, Workload, as_data
from srpo_jax.revision.plan import rounded
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import refuse_arguments, run_program
from srpo_jax.training import pipeline
from srpo_jax.training.optimizer import make_optimizer
from srpo_jax.training.speed import model_flops
from srpo_jax.training.step import TrainStep
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.order import RULE

SECTIONS = (
    "model",
    "lora",
    "mesh",
    "data",
    "objective",
    "train",
    "optimizer",
    "sampling",
    "evaluate",
    "online",
)
SURVEYED = 64  # batches, in which the largest shape is looked for


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Of synthetic pairs, in tokens, the end of sequence counted with the completion."""

    prompt: int
    completion: int


def plan(
    settings: Settings,
    where: Machine,
    lengths: Lengths,
    *,
    price: float = 0.0,
    revise: bool = True,
) -> Plan:
    """The plan of a configuration. price: of a chip for an hour.

    revise: compiles the programs of revision too. Raises UserError for a setting that makes no sense.
    """
    with attention.lowered_for("gpu" if where.platform == "cuda" else where.platform):
        return _plan(settings, where, lengths, price, revise)


def _plan(settings: Settings, where: Machine, lengths: Lengths, price: float, revise: bool) -> Plan:
    mesh = mesh_module.of_settings(settings.mesh, where.devices)
    train.check_batch(settings, mesh)
    objective = objectives.get(settings.objective.name)
    architecture = _architecture(settings)
    revise = revise and not objective.rewards
    batch, said = make_batch(settings, architecture, mesh, lengths)
    step, held = lowering.train_step(train_step(settings, architecture, mesh), architecture, batch)
    if settings.reference.when == "first_epoch" and objective.needs_reference:
        step, held = lowering.beside_reference(step, held, bool(settings.reference.source))
    programs, chosen = [(step, mesh)], _said(settings, architecture)
    if revise:
        decoder = loading.for_inference(architecture, settings.model.dtype)
        decoder = dataclasses.replace(decoder, lora_rank=0, lora_targets=(), lora_dropout=0.0)
        copies = decoding_mesh.choose(settings.mesh, decoder, where.devices, where.chip.memory)
        chosen["decoding"] = report.in_words(copies.shape)
        programs += ((one, copies) for one in revision(settings, decoder, copies, lengths))
    parts, excess = _compiled(programs, architecture, where)
    rows = jax.tree.map(lambda x: x[:1], batch["rows"])
    work = model_flops(architecture, objective.needs, rows) * len(batch["rows"].tokens)
    known: dict[str, Any] = {"model_flops": work, "pairs_per_second": None, "mfu": None}
    known |= {"hours": None, "cost": None, "answers_per_second": None}
    if step.name not in excess:
        known |= _speed(settings, parts[0], work, where.chip.flops * mesh.size, mesh.size, price)
    if revise and not excess:
        answers = _answers(settings, copies) * (settings.evaluate.revisions + 1)
        known["answers_per_second"] = report.together(parts[1:]).of(answers)
    return Plan(
        machine=where.name,
        chip=where.chip.name,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        settings=chosen,
        batch=said,
        memory=where.chip.memory,
        held=held,
        excess=excess,
        parts=parts,
        versions={name: importlib.metadata.version(name) for name in ("jax", where.compiler)},
        **known,
    )


def _architecture(settings: Settings) -> DecoderConfig:
    """Of what is trained; shapes of models are found from any folder."""
    model = dataclasses.replace(settings.model, source=command.shape(settings.model.source))
    objective = objectives.get(settings.objective.name)
    return train.decoder_config(dataclasses.replace(settings, model=model), objective)


def plan_online(settings: Settings, where: Machine, lengths: Lengths, price: float = 0.0) -> Plan:
    """The plan of a round of `train_online`; UserError for a setting that makes no sense."""
    mesh = mesh_module.of_settings(settings.mesh, where.devices)
    rounds.check(settings)
    architecture = _architecture(settings)
    with attention.lowered_for("gpu" if where.platform == "cuda" else where.platform):
        step = rounds.make_step(settings, abstract(architecture, mesh)[0], mesh)
        work = Workload(settings.train.batch_size, lengths.prompt, lengths.completion)
        prompts = [prompt.direct for prompt, _, _ in work.prompts()]
        drawn = dataclasses.replace(rounds.sampling(settings), max_new_tokens=lengths.completion)
        given = online.Round(prompts, drawn, mesh_module.batch_parts(mesh) * step.accumulate)
        apart = bool(settings.reference.source)
        programs, held = online.lower(step, architecture, given, apart)
        parts, excess = _compiled([(one, mesh) for one in programs], architecture, where)
    own = {
        "objective": settings.online.objective,
        "written at a time": settings.sampling.batch_size,
    }
    revised = ("revisions", "answers at a time", "new tokens")
    said = {k: v for k, v in _said(settings, architecture).items() if k not in revised} | own
    hours = None if excess else report.together(parts).times(settings.train.steps / 3600)
    return Plan(
        machine=where.name,
        chip=where.chip.name,
        chips=mesh.size,
        mesh=dict(mesh.shape),
        settings=said,
        batch=given.said(settings.online, architecture.vocab_size),
        memory=where.chip.memory,
        held=held,
        excess=excess,
        parts=parts,
        versions={name: importlib.metadata.version(name) for name in ("jax", where.compiler)},
        hours=hours,
        cost=hours.times(mesh.size * price) if hours and price else None,
    )


def _compiled(
    programs: Iterable[tuple[Program, Mesh]],
    architecture: DecoderConfig,
    where: Machine,
) -> tuple[tuple[Part, ...], dict[str, float]]:
    """What each costs and, of those that do not fit, the bytes that are missing."""
    parts, excess = [], {}
    for program, mesh in programs:
        try:
            parts.append(compiled(program, architecture, where, mesh))
            missing = parts[-1].peak - where.chip.memory
        except DoesNotFit as error:
            missing = error.needed + program.beside - error.available
        if missing > 0:
            excess[program.name] = missing
            status(f"{program.name} does not fit")
    return tuple(parts), excess


def _speed(
    settings: Settings, part: Part, work: float, peak: float, chips: int, price: float
) -> dict[str, Range]:
    """Of the train step."""
    spent = part.seconds
    hours = spent.times(settings.train.steps / 3600)
    found = {"mfu": spent.of(work / peak), "pairs_per_second": spent.of(settings.train.batch_size)}
    found["hours"] = hours
    if price:
        found["cost"] = hours.times(chips * price)
    return found


def compiled(program: Program, architecture: DecoderConfig, where: Machine, mesh: Mesh) -> Part:
    """A program's costs; raises DoesNotFit."""
    found = compiling.estimate(
        program.lowered, program.trees, architecture, where, mesh, program.loops
    )
    time = roofline.seconds(found, where.chip, mesh)
    status(f"{program.name}: compiled in {found.seconds:.0f} s")
    return Part(
        name=program.name,
        executions=program.executions,
        seconds=Range(time.least, time.most),
        cycles=found.cycles,
        kernel_cycles=found.kernel_cycles,
        flops=found.flops,
        sent=roofline.sent_by_axis(found.collectives, mesh),
        peak=found.peak + program.beside,
        temporaries=found.temporaries,
        compiled_in=found.seconds,
        warnings=found.warnings,
    )


def train_step(settings: Settings, architecture: DecoderConfig, mesh: Mesh) -> TrainStep:
    """As `train` makes it, from shapes."""
    objective = objectives.get(settings.objective.name)
    optimizer, _ = make_optimizer(settings.optimizer, settings.train.steps)
    graphdef, _, _ = abstract(architecture, mesh)
    hyper = train.hyperparameters(settings.objective)
    options = train.step_options(settings)
    return TrainStep(graphdef, optimizer, objective, hyper, mesh, **options)


def make_batch(
    settings: Settings, architecture: DecoderConfig, mesh: Mesh, lengths: Lengths
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The largest batch of the run, numpy, and what there is to say of it."""
    objective = objectives.get(settings.objective.name)
    if settings.data.pairs and Path(settings.data.pairs).exists():
        with tempfile.TemporaryDirectory() as folder:
            source = loading.open_source(settings.model.source)
            data, _ = train.prepare_data(settings, Path(folder), source, objective)
            said = f"those of {settings.data.pairs}"
            return _largest(settings, data, mesh, said)
    work = Workload(
        settings.train.batch_size,
        lengths.prompt,
        lengths.completion,
        vocabulary=architecture.vocab_size,
    )
    trees = [prefix_tree.build(parts) for parts in work.sequences(objective.needs)]
    said = f"prompts of {lengths.prompt}, completions of {lengths.completion} tokens"
    if settings.data.pairs:
        said += f"; {settings.data.pairs} is no file here"
    return _largest(settings, as_data(trees, objective.needs), mesh, said)


def _largest(
    settings: Settings, data: pipeline.PairTrees, mesh: Mesh, said: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    data.reference = data.reference or {
        name: np.zeros(len(data), np.float32) for name in data.names
    }
    packing = train.pack(settings, data, mesh, [(0, settings.train.batch_size)], RULE)
    layouts = (packing.batch(step) for step in range(SURVEYED))
    layout = max(layouts, key=lambda one: one.shape)
    batch = pipeline.collate([data.row(row, layout.shape) for row in layout.rows])
    return batch, {
        "pairs": settings.train.batch_size,
        "rows": len(layout.rows),
        "slots": layout.shape.length,
        "targets": layout.shape.targets,
        "fill": packing.fill(layout),
        "lengths": said,
    }


def _answers(settings: Settings, mesh: Mesh) -> int:
    """Rows of a batch of revision."""
    return rounded(settings.sampling.batch_size, mesh_module.batch_parts(mesh))


def revision(
    settings: Settings, architecture: DecoderConfig, mesh: Mesh, lengths: Lengths
) -> Iterator[Program]:
    """What `evaluate` runs for a batch of answers and their revisions. architecture: for inference."""
    work = Workload(1, lengths.prompt, lengths.completion, vocabulary=architecture.vocab_size)
    prompts = [work.prompts()[0][0]] * _answers(settings, mesh)
    return lowering.revision(
        architecture,
        mesh,
        prompts,
        settings.sampling,
        (EOS,),
        settings.evaluate.revisions,
    )


def search(settings: Settings, where: Machine, lengths: Lengths, price: float) -> list[Plan]:
    """Plans of what --search tries, those that fit first, by pairs a second at worst.

    Where a batch does not fit, no larger one of the same mesh and remat is compiled.
    """
    found: list[Plan] = []
    for batches in trials.candidates(settings, where, _architecture(settings).width):
        for changed in batches:
            try:
                found.append(plan(changed, where, lengths, price=price, revise=False))
            except UserError as error:
                sizes = changed.mesh
                status(f"replica {sizes.replica}, tensor {sizes.tensor}: {error}")
                break
            status(report.in_short(found[-1]))
            if not found[-1].fits:
                break
    if not found:
        raise UserError(f"--search: no mesh of {where.name} serves this model and batch, see above")
    rank = lambda one: (
        one.pairs_per_second.worst if one.pairs_per_second else -sum(one.excess.values())
    )
    return sorted(found, key=rank, reverse=True)


def _said(settings: Settings, architecture: DecoderConfig) -> dict[str, Any]:
    trained = f"LoRA {settings.lora.rank}" if settings.lora.rank else "all"
    if frozen := settings.train.frozen:
        trained += f" but {', '.join(frozen)}"
    return {
        "objective": settings.objective.name,
        "model": settings.model.source,
        "trained": trained,
        "remat": architecture.remat,
        "dtype": architecture.dtype,
        "parameters": architecture.parameters,
        "accumulate": settings.train.accumulate,
        "steps": settings.train.steps,
        "revisions": settings.evaluate.revisions,
        "answers at a time": settings.sampling.batch_size,
        "new tokens": settings.sampling.max_new_tokens,
    }


def main(arguments: list[str]) -> int:
    refuse_arguments(arguments[1:])
    jax.config.update("jax_platforms", "cpu")
    settings, given = command.given(), flags.FLAGS
    if not given.topology:
        raise UserError("--topology is missing: name a machine, v5p-256 for instance")
    if given.output:
        storage.check_writable(folder := storage.folder(given.output, "--output"), "--output")
    where = machine.named(given.topology)
    lengths = Lengths(given.prompt, given.completion)
    if given.online and given.search:
        raise UserError("--search is of the train step, --online of a round of train_online")
    if given.online:
        best = plan_online(settings, where, lengths, given.price)
    elif given.search:
        plans = search(settings, where, lengths, given.price)
        status(f"\n{len(plans)} plans, the fastest first:")
        for one in plans:
            status(report.in_short(one))
        best = plans[0]
    else:
        best = plan(settings, where, lengths, price=given.price, revise=given.revision)
    for what, much in report.lines(best):
        status(f"{what:28} {much}")
    if given.output:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(report.record(best), indent=1))
        (folder / "plan.html").write_text(report.page(best))
        status(f"written to {folder}: plan.json, plan.html")
    return 0 if best.fits else 1


if __name__ == "__main__":
    flags.DEFINE_string(
        "topology", "", "the machine: v5e-64, v5p-256, v6e:4x4, 2xv5e-256, H100-64, …"
    )
    flags.DEFINE_string("output", None, "folder for plan.json and plan.html")
    flags.DEFINE_float("price", 0.0, "of a chip for an hour", 0.0)
    flags.DEFINE_integer("prompt", 400, "tokens of a prompt, where there are no pairs", 1)
    flags.DEFINE_integer("completion", 40, "tokens of a completion, where there are no pairs", 2)
    flags.DEFINE_bool("search", False, "tries meshes, remat and batch sizes of the train step")
    flags.DEFINE_bool("revision", True, "plans revision too")
    flags.DEFINE_bool("online", False, "plans a round of train_online, and nothing else")
    command.define_config(SECTIONS, "file with the settings")
    command.show_in_help(
        *("topology", "output", "price", "prompt", "completion", "search", "revision", "online")
    )
    run_program(main)
