"""Compiles a program for chips that are not here, and reads what the compiler says that it costs."""

import dataclasses
import functools
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from srpo_jax.models import DecoderConfig, attention
from srpo_jax.models.attention import blockwise
from srpo_jax.planning import gpu, hlo_cost, machine
from srpo_jax.planning.hlo_cost import Collective, CustomCall
from srpo_jax.planning.kernel_schedule import kernel_cycles, read_schedule
from srpo_jax.planning.machine import Machine
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.chips import Chip

# Products of block x block x head_dim a query head that each kernel computes for a pair of blocks.
PRODUCTS = {"forward_kernel": 2, "query_kernel": 3, "key_kernel": 4}
_UNITS = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


class DoesNotFit(Exception):
    """A program needs more memory than a chip has, its arguments included. Both in bytes."""

    def __init__(self, needed: float, available: float):
        self.needed, self.available = needed, available
        super().__init__(f"{needed / 1e9:.1f} GB of {available / 1e9:.1f} GB")


@dataclasses.dataclass(frozen=True)
class Trees:
    """What attention kernels see of a batch: ends and positions of its slots, int32 [rows, S]."""

    end: Any
    positions: Any


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What one execution of a program costs each chip.

    computing: seconds, by the compiler's cycles (TPUs) or by gpu.seconds. cycles: the compiler's, those
    counted for attention kernels among them; 0 for GPUs. flops: of matrix products outside of kernels.
    arguments, temporaries, peak: bytes of HBM. A TPU's compiler holds the peak against the chip's memory,
    and takes programs whose arguments and temporaries add up to more. kernels: a row for each kernel call,
    for a table. seconds: that compiling took.
    """

    computing: float
    cycles: float
    kernel_cycles: float
    flops: float
    collectives: tuple[Collective, ...]
    arguments: float
    temporaries: float
    peak: float
    kernels: tuple[dict[str, Any], ...]
    warnings: tuple[str, ...]
    seconds: float

    @property
    def sent(self) -> float:
        """Bytes that a chip sends."""
        return sum(one.bytes * one.executions for one in self.collectives)


def estimate(
    lowered: jax.stages.Lowered,
    trees: Trees,
    architecture: DecoderConfig,
    where: Machine,
    mesh: Mesh,
    unknown: int | None = None,
) -> Estimate:
    """Compiles a program whose batch has these trees.

    unknown: how often a loop runs whose end depends on data. Raises DoesNotFit.
    """
    if where.platform == "cuda":
        if unknown is None:
            unknown = turns(trees, mesh_module.batch_parts(mesh))
        return _on_gpus(lowered, where.chip, unknown)
    chip, folder = where.chip, Path(machine.prepare_compiler().name)
    for old in folder.iterdir():
        old.unlink()
    began = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise _refusal(error) or error from error
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    cost = hlo_cost.analyse(compiled.as_text() or "", unknown)
    calls = [call for call in cost.custom_calls if call.target == hlo_cost.PALLAS]
    kernels = count_kernels(calls, trees, architecture, chip, mesh, folder)
    in_kernels = sum(kernel["cycles"] for kernel in kernels)
    return Estimate(
        computing=(cost.cycles + in_kernels) / chip.clock,
        cycles=cost.cycles + in_kernels,
        kernel_cycles=in_kernels,
        flops=cost.flops,
        collectives=tuple(cost.collectives),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        kernels=tuple(kernels),
        warnings=tuple(cost.warnings),
        seconds=seconds,
    )


def _on_gpus(lowered: jax.stages.Lowered, chip: Chip, unknown: int | None) -> Estimate:
    """The GPU's compiler takes what does not fit; what a chip has is compared here."""
    began = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    if memory.peak_memory_in_bytes > chip.memory:
        raise DoesNotFit(memory.peak_memory_in_bytes, chip.memory)
    cost, computing = gpu.seconds(compiled.as_text() or "", chip, unknown)
    return Estimate(
        computing=computing,
        cycles=0,
        kernel_cycles=0,
        flops=cost.flops,
        collectives=tuple(cost.collectives),
        arguments=memory.argument_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        peak=memory.peak_memory_in_bytes,
        kernels=(),
        warnings=tuple(cost.warnings),
        seconds=seconds,
    )


def count_kernels(
    calls: Sequence[CustomCall],
    trees: Trees,
    architecture: DecoderConfig,
    chip: Chip,
    mesh: Mesh,
    schedules: Path,
) -> list[dict[str, Any]]:
    """What each call of an attention kernel costs, by the schedule that was just written for it."""
    if not calls:
        return []
    by_query, by_key, block = visited_blocks(trees, mesh_module.batch_parts(mesh))
    devices = mesh.shape["tensor"]
    kv_heads = attention.shared_heads(architecture.heads, architecture.kv_heads, devices)
    counted = []
    for call in calls:
        kernel = next(name for name in PRODUCTS if name in call.name)
        # Equal kernels are scheduled once, under the name of the first call.
        listing = next(schedules.glob(f"*{kernel}*-[0-9][0-9]-final_bundles.txt"))
        schedule = read_schedule(listing.read_text())
        visits = by_key if kernel == "key_kernel" else by_query
        cycles = kernel_cycles(schedule, visits, kv_heads // devices, chip.cores)
        group = architecture.heads // kv_heads
        product = 2 * block**2 * architecture.head_dim * group
        ideal = PRODUCTS[kernel] * product / (chip.flops / chip.clock / chip.cores)
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


def visited_blocks(trees: Trees, parts: int) -> tuple[np.ndarray, np.ndarray, int]:
    """How many blocks of keys each block of queries visits, the reverse, and the slots of a block.

    Visits are int [parts, rows, N].
    """
    mask = jax.jit(functools.partial(attention.tree_mask, kind="pallas"))(
        trees.end, trees.positions
    )
    count, query_count = np.asarray(mask.lists.key_count), np.asarray(mask.lists.query_count)
    split = (parts, -1, count.shape[-1])
    return count.reshape(split), query_count.reshape(split), mask.block


def turns(trees: Trees, parts: int) -> int:
    """How often the loops of blockwise attention run, on average, over a part's rows."""
    rows = len(trees.end) // parts
    mask = attention.tree_mask(trees.end[:rows], trees.positions[:rows], kind="blockwise")
    assert isinstance(mask, attention.TreeMask)
    together, _ = blockwise.in_parts(mask)
    return round(float(np.asarray(together.turns).max(-1).mean()))


def _refusal(error: Exception) -> DoesNotFit | None:
    """From what the compiler says where memory runs out, in one of two ways.

    The second one says "HLO temporaries", and has the arguments in it.
    """
    size = r"([\d.]+)([KMGT]?)"
    found = re.search(
        rf"Used {size} of {size} hbm|\({size}\) exceeds available HBM \({size}\)", str(error)
    )
    if found is None:
        return None
    needed, unit, available, its = (part for part in found.groups() if part is not None)
    return DoesNotFit(float(needed) * _UNITS[unit], float(available) * _UNITS[its])
