"""What a train step costs on TPUs that are not here: the real step, compiled by the real TPU compiler.

    python -m benchmarks.tpu [--topology=v5e-64,v5p-64,v6e-64] [--layers=32] [--only=REGEX] [--output=DIR]

A decoder of Llama 3.1 8B's shape on 64 chips: all axes of the mesh to fsdp, full rematerialisation,
products in bfloat16, parameters and AdamW in float32; prompts of 400 and completions of 40 tokens,
reference scores stored. Nothing is allocated and no TPU is needed, only its compiler (extra `plan`).

Cycles are the compiler's own estimates times the trip counts of loops (benchmarks/hlo_cost.py). They are
of computation alone: collectives carry no estimate, so the bytes that a chip sends stand beside them.
Attention kernels carry none either; theirs are counted from the compiler's schedule of each kernel and
the blocks that its trees make it visit (benchmarks/kernel_schedule.py).
"""

import dataclasses
import functools
import importlib.util
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from benchmarks import common, hlo_cost, workload
from benchmarks.kernel_schedule import kernel_cycles, read_schedule
from benchmarks.workload import Workload
from srpo_jax import config as config_module
from srpo_jax import objectives
from srpo_jax.models import attention
from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.objectives import Objective
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import run_program
from srpo_jax.training import step
from srpo_jax.training.optimizer import make_optimizer
from srpo_jax.trees.prefix_tree import Rows

TOPOLOGY = flags.DEFINE_list("topology", ["v5e-64", "v5p-64", "v6e-64"], "which chips, of CHIPS")
LAYERS = flags.DEFINE_integer("layers", 32, "of the decoder")
ONLY = flags.DEFINE_string("only", "", "only steps whose group and name match this pattern")
OUTPUT = flags.DEFINE_string("output", None, "folder for tpu.md and tpu.json")

HYPER = {"beta": 0.1, "alpha": 0.5}
LLAMA_8B = DecoderConfig(
    vocab_size=128256,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp_width=14336,
    layer_kinds=(LayerKind(rope=Rope(500_000.0)),),
    tied=False,
)
# Products of block x block x head_dim a query head that each kernel computes for a pair of blocks.
PRODUCTS = {"forward_kernel": 2, "query_kernel": 3, "key_kernel": 4}


@dataclasses.dataclass(frozen=True)
class Chip:
    """A topology of libtpu; clock in Hz; flops in a cycle: the published bfloat16 peak over the clock.

    cores: how many a chip has, which share the work of a kernel.
    """

    topology: str
    clock: float
    flops: int
    cores: int = 1


CHIPS = {
    "v5e-64": Chip("v5e:8x8", 1.5e9, 131_072),
    "v5p-64": Chip("v5:4x4x4", 1.75e9, 262_144, cores=2),
    "v6e-64": Chip("v6e:8x8", 1.75e9, 524_288),
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to train on the same pairs.

    layout: "trees" packs the trees of a chip into one row; "rows" puts each sequence into a row of its
    own, of `row` slots (0: without padding). usual: all slots of a row are projected to the vocabulary.
    reference: the reference's scores are computed at each step, not stored. pairs: of a chip.
    """

    objective: str
    layout: str
    template: str = "paper"
    row: int = 512
    usual: bool = False
    reference: bool = False
    attention: str = "pallas"
    pairs: int = 4


# Ratios are within a group: both sides have the same pairs and the same attention.
SIX, TWO, USUAL = "SRPO, six rows", "DPO, two rows", "DPO, two rows, all projected"
GROUPS: dict[str, dict[str, Variant]] = {
    "4 pairs a chip": {
        SIX: Variant("srpo", "rows"),
        f"{SIX}, all projected": Variant("srpo", "rows", usual=True),
        TWO: Variant("dpo", "rows"),
        USUAL: Variant("dpo", "rows", usual=True),
        f"{TWO}, reference computed": Variant("dpo", "rows", reference=True),
        "SRPO, trees": Variant("srpo", "trees"),
        "SRPO, chained trees": Variant("srpo", "trees", "chained"),
        "DPO, trees": Variant("dpo", "trees"),
    },
    "4 pairs a chip, dense attention": {
        TWO: Variant("dpo", "rows", attention="dense"),
        "SRPO, trees": Variant("srpo", "trees", attention="dense"),
    },
    "1 pair a chip, rows as long as needed": {
        TWO: Variant("dpo", "rows", row=0, pairs=1),
        "SRPO, trees": Variant("srpo", "trees", pairs=1),
        "SRPO, chained trees": Variant("srpo", "trees", "chained", pairs=1),
    },
}


@functools.cache
def schedules_folder() -> tempfile.TemporaryDirectory:
    """Where the compiler writes how it schedules a program's parts. To be called before libtpu loads."""
    folder = tempfile.TemporaryDirectory(prefix="srpo_jax_schedules_")
    options = f"--xla_jf_dump_to={folder.name} --xla_jf_dump_llo_text=true"
    only = "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{given} {options} {only}"
    return folder


def chip_mesh(chip: Chip) -> Mesh:
    """A mesh of TPUs that are only described. UserError without their compiler."""
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU's compiler is not installed: run pip install -e '.[plan]'")
    schedules_folder()
    # Without these the compiler looks for a TPU, and a second process cannot load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    described = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology)
    return mesh_module.make(devices=described.devices)


def make_batch(variant: Variant, work: Workload, chips: int) -> tuple[Objective, dict[str, Any]]:
    """The objective, and a batch of `variant.pairs` pairs for each chip, numpy."""
    work = dataclasses.replace(work, pairs=variant.pairs * chips, template=variant.template)
    objective = objectives.get(variant.objective)
    if variant.layout == "trees":
        return objective, workload.trees_batch(work, objective.needs, rows=chips)
    batch = workload.separate_batch(work, objective.needs, variant.row, variant.usual)
    return workload.by_rows(variant.objective), batch


def lowered_programs(
    architecture: DecoderConfig,
    objective: Objective,
    batch: Mapping[str, Any],
    mesh: Mesh,
    reference: bool,
) -> list[jax.stages.Lowered]:
    """The train step and, if asked for, the reference's scores, from shapes alone."""
    model = nnx.eval_shape(lambda: Decoder(architecture, nnx.Rngs(0)))
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    trained, frozen = states
    optimizer, _ = make_optimizer(config_module.default())
    hyper = {name: value for name, value in HYPER.items() if name in objective.hyperparameters}
    programs: Any = step.TrainStep(graphdef, optimizer, objective, hyper, mesh).compile(trained)

    def place(array: Any, sharding: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    trained = jax.tree.map(place, trained, mesh_module.parameter_shardings(mesh, trained))
    split = mesh_module.batch_sharding(mesh)
    given = jax.tree.map(lambda x: place(x, split), dict(batch))
    state = step.TrainState(trained, jax.eval_shape(programs.init, trained))
    traced = [programs.train.trace(state, frozen, given)]
    if reference:
        traced.append(programs.reference.trace(trained, frozen, given["rows"]))
    return [one.lower(lowering_platforms=("tpu",)) for one in traced]


def visited_blocks(rows: Rows, chips: int) -> tuple[np.ndarray, np.ndarray, int]:
    """How many blocks of keys each block of queries visits, the reverse, and the slots of a block.

    Visits are int [chips, rows, N].
    """
    mask = jax.jit(functools.partial(attention.tree_mask, kind="pallas"))(rows.end, rows.positions)
    count, query_count = np.asarray(mask.lists.key_count), np.asarray(mask.lists.query_count)
    split = (chips, -1, count.shape[-1])
    return count.reshape(split), query_count.reshape(split), mask.block


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One train step on one chip: cycles, those of attention kernels among them; bytes.

    kernels: a row for each call of a kernel, for the table.
    """

    cycles: float
    kernel_cycles: float
    sent: float
    arguments: float
    temporaries: float
    peak: float
    kernels: list[dict[str, Any]]
    warnings: list[str]


def estimate(
    variant: Variant, architecture: DecoderConfig, chip: Chip, work: Workload | None = None
) -> Estimate:
    """Compiles a variant and adds up what it costs."""
    mesh = chip_mesh(chip)
    work = work or Workload(0, vocabulary=architecture.vocab_size)
    architecture = dataclasses.replace(architecture, attention=variant.attention)
    objective, batch = make_batch(variant, work, mesh.size)
    programs = lowered_programs(architecture, objective, batch, mesh, variant.reference)
    costs: list[hlo_cost.Cost] = []
    memory: list[Any] = []
    kernels: list[dict[str, Any]] = []
    for program in programs:
        for old in Path(schedules_folder().name).iterdir():
            old.unlink()
        compiled = program.compile()
        memory.append(compiled.memory_analysis())
        costs.append(hlo_cost.analyse(compiled.as_text() or ""))
        calls = [c for c in costs[-1].custom_calls if c.target == hlo_cost.PALLAS]
        kernels += count_kernels(calls, batch["rows"], architecture, chip, mesh.size)
    in_kernels = sum(kernel["cycles"] for kernel in kernels)
    held = sum(m.argument_size_in_bytes for m in memory)
    return Estimate(
        cycles=sum(cost.cycles for cost in costs) + in_kernels,
        kernel_cycles=in_kernels,
        sent=sum(sum(cost.collective_bytes.values()) for cost in costs),
        arguments=held,
        temporaries=max(m.temp_size_in_bytes for m in memory),
        # While one program runs, the other's arguments stay.
        peak=max(held - m.argument_size_in_bytes + m.peak_memory_in_bytes for m in memory),
        kernels=kernels,
        warnings=[warning for cost in costs for warning in cost.warnings],
    )


def count_kernels(
    calls: Sequence[hlo_cost.CustomCall],
    rows: Rows,
    architecture: DecoderConfig,
    chip: Chip,
    chips: int,
) -> list[dict[str, Any]]:
    """What each call of an attention kernel costs, by the schedule that was just written for it."""
    if not calls:
        return []
    by_query, by_key, block = visited_blocks(rows, chips)
    counted = []
    for call in calls:
        kernel = next(name for name in PRODUCTS if name in call.name)
        # Equal kernels are scheduled once, under the name of the first call.
        listing = next(
            Path(schedules_folder().name).glob(f"*{kernel}*-[0-9][0-9]-final_bundles.txt")
        )
        schedule = read_schedule(listing.read_text())
        visits = by_key if kernel == "key_kernel" else by_query
        cycles = kernel_cycles(schedule, visits, architecture.kv_heads, chip.cores)
        group = architecture.heads // architecture.kv_heads
        product = 2 * block**2 * architecture.head_dim * group
        ideal = PRODUCTS[kernel] * product / (chip.flops / chip.cores)
        counted.append(
            {
                "kernel": kernel,
                "calls": call.executions,
                "pairs of blocks": int(visits.sum((1, 2)).max()),
                **dataclasses.asdict(schedule),
                "of peak in a turn": ideal / schedule.turn,
                "cycles": call.executions * cycles,
            }
        )
    return counted


def table(estimates: Mapping[str, Estimate], chip: Chip) -> list[dict[str, Any]]:
    """Rows of one group, with ratios to its baselines."""

    def ratio(name: str, baseline: str) -> float | str:
        known = estimates.get(baseline)
        return estimates[name].cycles / known.cycles if known else ""

    return [
        {
            "step": name,
            "cycles / 1e6": round(one.cycles / 1e6),
            "/ DPO": ratio(name, TWO),
            "/ DPO, all projected": ratio(name, USUAL),
            "/ six rows": ratio(name, SIX),
            "kernels, %": 100 * one.kernel_cycles / one.cycles,
            "seconds": one.cycles / chip.clock,
            "GB sent": one.sent / 1e9,
            "GB arguments": one.arguments / 1e9,
            "GB temporaries": one.temporaries / 1e9,
            "GB peak": one.peak / 1e9,
        }
        for name, one in estimates.items()
    ]


def main(_: list[str]) -> None:
    unknown = [name for name in TOPOLOGY.value if name not in CHIPS]
    if unknown:
        raise UserError(f"--topology={unknown[0]} is none of {', '.join(CHIPS)}")
    titles = [f"{group}: {name}" for group, variants in GROUPS.items() for name in variants]
    if not any(re.search(ONLY.value, title) for title in titles):
        raise UserError(f"--only={ONLY.value!r} finds none of: {'; '.join(titles)}")
    jax.config.update("jax_platforms", "cpu")
    architecture = dataclasses.replace(LLAMA_8B, layers=LAYERS.value)
    sections: dict[str, list[dict[str, Any]]] = {}
    for topology in TOPOLOGY.value:
        chip = CHIPS[topology]
        kernels: list[dict[str, Any]] = []
        for group, variants in GROUPS.items():
            estimates = {}
            for name, variant in variants.items():
                if not re.search(ONLY.value, f"{group}: {name}"):
                    continue
                began = time.perf_counter()
                estimates[name] = one = estimate(variant, architecture, chip)
                spent = time.perf_counter() - began
                row = table({name: one}, chip)[0]
                print(f"{topology}, {group}: {row}, {spent:.0f} s", *one.warnings, file=sys.stderr)
                kernels += [{"pairs": group, "train step": name} | kernel for kernel in one.kernels]
            if estimates:
                sections[f"{topology}, {group}"] = table(estimates, chip)
        if kernels:
            sections[f"{topology}, attention kernels: bundles of their parts"] = kernels
    common.report("tpu", OUTPUT.value, sections)


if __name__ == "__main__":
    run_program(main)
