"""What programs take on a GPU, on a module whose kernels can be counted by hand."""

import subprocess
import sys

import pytest

from srpo_jax.planning import gpu
from srpo_jax.runtime.chips import CHIPS, Chip
from srpo_jax.runtime.errors import UserError

CHIP = Chip("x", (), flops=1e6, memory=1, link=1, network=1, bandwidth=1e3)
MODULE = """HloModule example

%update (p0: f32[10,64], p1: f32[10,64], p2: s32[]) -> f32[10,64] {
  %p0 = f32[10,64]{1,0} parameter(0)
  %p1 = f32[10,64]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %slice = f32[1,64]{1,0} dynamic-slice(%p1, %p2, %zero), dynamic_slice_sizes={1,64}
  %twice = f32[1,64]{1,0} add(%slice, %slice)
  ROOT %put = f32[10,64]{1,0} dynamic-update-slice(%p0, %twice, %p2, %zero)
}

%body (s: (s32[], f32[10,64], f32[10,64])) -> (s32[], f32[10,64], f32[10,64]) {
  %s = (s32[], f32[10,64]{1,0}, f32[10,64]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %a = f32[10,64]{1,0} get-tuple-element(%s), index=1
  %b = f32[10,64]{1,0} get-tuple-element(%s), index=2
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %updated = f32[10,64]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%update
  ROOT %out = (s32[], f32[10,64]{1,0}, f32[10,64]{1,0}) tuple(%next, %updated, %b)
}

%condition (s: (s32[], f32[10,64], f32[10,64])) -> pred[] {
  %s = (s32[], f32[10,64]{1,0}, f32[10,64]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: bf16[8,1000], w: bf16[16,1000], a: f32[10,64]) -> (bf16[8,16], s8[4096]) {
  %x = bf16[8,1000]{1,0} parameter(0)
  %w = bf16[16,1000]{1,0} parameter(1)
  %a = f32[10,64]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], f32[10,64]{1,0}, f32[10,64]{1,0}) tuple(%zero, %a, %a)
  %loop = (s32[], f32[10,64]{1,0}, f32[10,64]{1,0}) while(%start), condition=%condition, body=%body, KNOWN
  ROOT %gemm = (bf16[8,16]{1,0}, s8[4096]{0}) custom-call(%x, %w), CONFIG
}
"""
KNOWN = 'backend_config={"known_trip_count":{"n":"10"}}'
CONFIG = (
    'custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":'
    '{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],'
    '"rhs_contracting_dimensions":["1"]}}}'
)


def test_a_kernel_takes_the_longer_of_its_products_and_its_bytes():
    cost, seconds = gpu.seconds(MODULE.replace("KNOWN", KNOWN).replace("CONFIG", CONFIG), CHIP)
    assert cost.flops == 2 * 8 * 16 * 1000
    gemm = 2 * (8 * 1000 + 16 * 1000 + 8 * 16) / 1e3
    assert gemm > cost.flops / 1e6
    # Of one row of b and the counter: read; the same row of a: written. Then the counter's own kernel.
    turn = (64 * 4 + 4 + 64 * 4) + (4 + 4 + 4)
    assert seconds == pytest.approx(gemm + 10 * turn / 1e3)
    assert cost.warnings == []


def test_products_at_the_peak_are_the_limit_where_memory_is_fast():
    fast = Chip("x", (), flops=1e6, memory=1, link=1, network=1, bandwidth=1e12)
    cost, seconds = gpu.seconds(MODULE.replace("KNOWN", KNOWN).replace("CONFIG", CONFIG), fast)
    assert seconds == pytest.approx(cost.flops / 1e6, rel=1e-5)


PROGRAM = """
import jax
jax.config.update("jax_platforms", "cpu")
import jax.numpy as jnp
from srpo_jax.planning import gpu, machine
from srpo_jax.runtime import mesh
where = machine.named("H100-16")
made = mesh.make(tensor=8, devices=where.devices)
assert [len({d.process_index for d in group}) for group in made.devices.reshape(-1, 8)] == [1, 1]
made = mesh.make(devices=where.devices)
x = jax.ShapeDtypeStruct((8192, 4096), jnp.bfloat16, sharding=mesh.batch_sharding(made))
w = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=mesh.batch_sharding(made))
rows = mesh.batch_sharding(made)
lowered = jax.jit(lambda x, w: x @ w, out_shardings=rows).trace(x, w).lower(lowering_platforms=("cuda",))
cost, seconds = gpu.seconds(lowered.compile().as_text(), where.chip)
assert cost.flops == 2 * 512 * 4096 * 4096, cost.flops
sent = [(c.kind, c.bytes) for c in cost.collectives]
assert sent == [("all-gather", 2 * 4096 * 4096 * 15 / 16)], sent
assert 0.99 < seconds / (cost.flops / where.chip.flops) < 4, seconds
print("planned")
"""


@pytest.mark.skipif(
    gpu.compiler() is None, reason="the GPU's compiler is not installed (extra plan_gpu)"
)
def test_the_compiler_compiles_for_machines_that_are_not_here():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout.strip() == "planned", done.stderr[-3000:]


def test_without_the_compiler_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gpu, "compiler", lambda: None)
    gpu._prepare.cache_clear()
    with pytest.raises(UserError, match=r"pip install 'srpo_jax\[plan_gpu\]'"):
        gpu.devices(next(chip for chip in CHIPS if chip.name == "H100"), 8)
