"""GPU machines that are not here: how XLA's compiler for them is told of one, and what its programs take.

The GPU compiler estimates no times. Here a kernel takes the longer of its products at the chip's peak and
of the bytes that it reads and writes at the speed of its memory, which none is faster than.
"""

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from srpo_jax.planning.hlo_cost import Computation, Cost, Instruction, Walk, parse
from srpo_jax.runtime.chips import Chip
from srpo_jax.runtime.errors import UserError

HOST = 8  # GPUs
# What no kernel is launched for.
FREE = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
)
# Compute capability, multiprocessors, shared memory of one and of a block, level-2 cache, clock in GHz.
_SM90, _SM80 = (
    (9, 132, 233_472, 232_448, 50 << 20, 1.98),
    (8, 108, 167_936, 166_912, 40 << 20, 1.41),
)
GPUS = {"H200": _SM90, "H100": _SM90, "A100": _SM80}
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: {shared}  shared_memory_per_block_optin: {optin}
  core_count: {cores}  fpus_per_core: {lanes}  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535
  block_dim_limit_z: 65535  memory_bandwidth: {bandwidth}  l2_cache_size: {cache}  clock_rate_ghz: {clock}
  device_memory_size: {memory}  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}}
platform_name: "CUDA"  dnn_version_info {{ major: 9 minor: 8 }}  runtime_version {{ major: 12 minor: 9 }}
device_description_str: "NVIDIA {name}"
"""


def devices(chip: Chip, count: int) -> Sequence[jax.Device]:
    """Described, not there, HOST to a host. UserError without the compiler."""
    _prepare()
    major, cores, shared, optin, cache, clock = GPUS[chip.name]
    description = _DESCRIPTION.format(
        name=chip.name,
        major=major,
        cores=cores,
        lanes=128 if major == 9 else 64,
        shared=shared,
        optin=optin,
        cache=cache,
        clock=clock,
        bandwidth=int(chip.bandwidth),
        memory=int(chip.memory),
    )
    hosts, each = max(1, count // HOST), min(count, HOST)
    described = topologies.get_topology_desc(
        platform="cuda", target_config=description, topology=f"1x{hosts}x{each}"
    )
    return list(described.devices)


def compiler() -> Any:
    """Where the GPU's compiler is; None if it is not installed."""
    plugins = importlib.util.find_spec("jax_plugins")
    return plugins and importlib.util.find_spec("jax_plugins.xla_cuda12")


@functools.cache
def _prepare() -> None:
    """What has to be set before the compiler is loaded: it can try no kernels, as there is no GPU."""
    if compiler() is None:
        raise UserError("the GPU's compiler is not installed: run pip install 'srpo_jax[plan_gpu]'")
    options = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0"
    graphs = "--xla_gpu_enable_command_buffer="
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options} {graphs}".strip()


def seconds(text: str, chip: Chip, unknown: int | None = None) -> tuple[Cost, float]:
    """The cost of an optimised HLO module for GPUs, and how long its kernels take at least.

    unknown: as in `hlo_cost.analyse`.
    """
    module = parse(text)
    walk = _Kernels(module, unknown, chip)
    walk.visit(module.entry, 1)
    return walk.cost, walk.seconds


class _Kernels(Walk):
    """Adds up the kernels of a chip."""

    def __init__(self, module: Any, unknown: int | None, chip: Chip):
        super().__init__(module, unknown)
        self.chip, self.seconds = chip, 0.0

    def count(self, at: Instruction, computation: str, executions: int) -> None:
        before = self.cost.flops
        super().count(at, computation, executions)
        beside = self.computations[computation]
        if _is_gemm(at):
            self.cost.flops += executions * gemm_flops(beside, at)
        if at.opcode in FREE or at.collective or at.opcode.endswith("-done"):
            return
        products = (self.cost.flops - before) / executions if executions else 0.0
        moved = self._moved(at, beside)
        self.seconds += executions * max(products / self.chip.flops, moved / self.chip.bandwidth)

    def _moved(self, at: Instruction, beside: Computation) -> float:
        """Bytes read and written. Of an operand that only slices are taken of, these alone are read."""
        inside = self.computations.get(at.computation("calls"), {})
        if not inside:
            if at.opcode in ("dynamic-slice", "slice", "gather"):
                return 2 * at.bytes
            if at.opcode == "dynamic-update-slice":
                return 2 * beside[at.operands[1]].bytes
            # A gemm's room for work, the second of its results, is not counted.
            written = (
                dataclasses.replace(at, type=at.type.split(", s8[")[0]) if _is_gemm(at) else at
            )
            return written.bytes + sum(beside[name].bytes for name in at.operands)
        parameters = {i.name: i for i in inside.values() if i.opcode == "parameter"}
        read = sum(_read(one, inside) for one in parameters.values())
        root = inside[self.module.roots[at.computation("calls")]]
        return read + _written(root, inside)


def _read(parameter: Instruction, inside: Computation) -> float:
    users = [one for one in inside.values() if parameter.name in one.operands]
    sliced = [u for u in users if u.opcode in ("dynamic-slice", "slice", "gather")]
    updated = [
        u for u in users if u.opcode == "dynamic-update-slice" and u.operands[0] == parameter.name
    ]
    if len(sliced) + len(updated) < len(users):
        return parameter.bytes
    return sum(one.bytes for one in sliced)


def _written(root: Instruction, inside: Computation) -> float:
    """What is updated in place is written where it changes."""
    if root.opcode == "tuple":
        return sum(_written(inside[name], inside) for name in root.operands)
    if root.opcode == "bitcast":
        return _written(inside[root.operands[0]], inside)
    if root.opcode == "dynamic-update-slice":
        return inside[root.operands[1]].bytes
    return root.bytes


def _is_gemm(at: Instruction) -> bool:
    return at.find(r'custom_call_target="([^"]*)"').startswith("__cublas")


def gemm_flops(beside: Computation, at: Instruction) -> float:
    """2 x the multiplications of a call of cuBLAS."""
    result = next(shape for _, shape in at.shapes)
    left = beside[at.operands[0]].shapes[0][1]
    contracted = at.find(r'"lhs_contracting_dimensions":\[([^\]]*)\]')
    product = 2.0
    for size in (*result, *(left[int(i)] for i in re.findall(r"\d+", contracted))):
        product *= size
    return product
