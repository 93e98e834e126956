"""What a train step costs on TPUs that are not here: the real step, compiled by the real TPU compiler.

    python -m benchmarks.tpu [--topology=v5e-64,v5p-128,v6e-64] [--layers=32] [--only=REGEX] [--output=DIR]

A decoder of Llama 3.1 8B's shape on 64 chips: all axes of the mesh to fsdp, full rematerialisation,
products in bfloat16, parameters and AdamW in float32; prompts of 400 and completions of 40 tokens,
reference scores stored. Nothing is allocated and no TPU is needed, only its compiler (extra `plan`).

Cycles are the compiler's own estimates times the trip counts of loops. They are of computation alone:
collectives carry no estimate, so the bytes that a chip sends stand beside them. Attention kernels carry
none either; theirs are counted from the compiler's schedule of each kernel and the blocks that its trees
make it visit. `srpo_jax.plan` does the same for a configuration; srpo_jax/planning has the parts.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import flags
from jax.sharding import Mesh

from benchmarks import common, workload
from benchmarks.workload import Workload
from srpo_jax import objectives
from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.creation import abstract
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.objectives import Objective
from srpo_jax.planning import compiling, lowering, machine
from srpo_jax.planning.compiling import Estimate, Trees
from srpo_jax.planning.machine import Machine
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.chips import Chip
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import refuse_arguments, run_program
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer
from srpo_jax.training.step import TrainStep

MACHINES = ["v5e-64", "v5p-128", "v6e-64"]  # 64 chips each
TOPOLOGY = flags.DEFINE_list("topology", MACHINES, "see srpo_jax/planning/machine.py")
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
    # What MaxText's own step computes: every position of full rows is projected and learned from.
    "2 rows of 512 a chip": {
        "SFT, all projected": Variant("sft", "rows", usual=True, pairs=2),
    },
    "1 pair a chip, rows as long as needed": {
        TWO: Variant("dpo", "rows", row=0, pairs=1),
        "SRPO, trees": Variant("srpo", "trees", pairs=1),
        "SRPO, chained trees": Variant("srpo", "trees", "chained", pairs=1),
    },
}


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
    graphdef, trained, frozen = abstract(architecture, mesh)
    optimizer, _ = make_optimizer(OptimizerSettings(), steps=100)
    hyper = {name: value for name, value in HYPER.items() if name in objective.hyperparameters}
    step = TrainStep(graphdef, optimizer, objective, hyper, mesh)
    program, _ = lowering.train_step(step, architecture, batch)
    if not reference:
        return [program.lowered]
    rows = lowering.over_batch(mesh, batch["rows"])
    scores = step.compile(trained).reference
    return [program.lowered, lowering.lowered(scores, mesh, trained, frozen, rows)]


def estimate(
    variant: Variant, architecture: DecoderConfig, where: Machine, work: Workload | None = None
) -> Estimate:
    """Compiles a variant's programs and adds up what they cost."""
    mesh = mesh_module.make(devices=where.devices)
    work = work or Workload(0, vocabulary=architecture.vocab_size)
    architecture = dataclasses.replace(architecture, attention=variant.attention)
    objective, batch = make_batch(variant, work, mesh.size)
    trees = Trees(batch["rows"].end, batch["rows"].positions)
    found = [
        compiling.estimate(program, trees, architecture, where, mesh)
        for program in lowered_programs(architecture, objective, batch, mesh, variant.reference)
    ]
    held = sum(one.arguments for one in found)
    join = lambda name: tuple(x for one in found for x in getattr(one, name))
    return Estimate(
        computing=sum(one.computing for one in found),
        cycles=sum(one.cycles for one in found),
        kernel_cycles=sum(one.kernel_cycles for one in found),
        flops=sum(one.flops for one in found),
        collectives=join("collectives"),
        arguments=held,
        temporaries=max(one.temporaries for one in found),
        # While one program runs, the other's arguments stay.
        peak=max(held - one.arguments + one.peak for one in found),
        kernels=join("kernels"),
        warnings=join("warnings"),
        seconds=sum(one.seconds for one in found),
    )


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


def main(arguments: list[str]) -> None:
    refuse_arguments(arguments[1:])
    machines = [machine.named(name) for name in TOPOLOGY.value]
    titles = [f"{group}: {name}" for group, variants in GROUPS.items() for name in variants]
    if not any(re.search(ONLY.value, title) for title in titles):
        raise UserError(f"--only={ONLY.value!r} finds none of: {'; '.join(titles)}")
    jax.config.update("jax_platforms", "cpu")
    architecture = dataclasses.replace(LLAMA_8B, layers=LAYERS.value)
    sections: dict[str, list[dict[str, Any]]] = {}
    for where in machines:
        chip, topology = where.chip, where.name
        kernels: list[dict[str, Any]] = []
        for group, variants in GROUPS.items():
            estimates = {}
            for name, variant in variants.items():
                if not re.search(ONLY.value, f"{group}: {name}"):
                    continue
                began = time.perf_counter()
                estimates[name] = one = estimate(variant, architecture, where)
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
