"""The cost of programs whose cost is known."""

import jax
import jax.numpy as jnp
import pytest

from srpo_jax.planning import hlo_cost

MODULE = """HloModule example

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused (x: bf16[8,16], w: bf16[16,32]) -> bf16[8,32] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  ROOT %product = bf16[8,32]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[8,16], bf16[16,32])) -> (s32[], bf16[8,16], bf16[16,32]) {
  %state = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x.1 = bf16[8,16]{1,0} get-tuple-element(%state), index=1
  %w.1 = bf16[16,32]{1,0} get-tuple-element(%state), index=2
  %matmul = bf16[8,32]{1,0} fusion(%x.1, %w.1), kind=kOutput, calls=%fused, backend_config={ESTIMATE}
  %gather = bf16[64,16]{1,0} all-gather(%x.1), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %kernel.1 = bf16[8,16]{1,0} custom-call(%x.1), custom_call_target="tpu_custom_call"
  ROOT %out = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%next, %x.1, %w.1)
}

%condition (state: (s32[], bf16[8,16], bf16[16,32])) -> pred[] {
  %state = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %end = s32[] constant(5)
  ROOT %less = pred[] compare(%i, %end), direction=LT
}

ENTRY %main (x: bf16[8,16], w: bf16[16,32]) -> f32[4] {
  %x = bf16[8,16]{1,0} parameter(0)
  %w = bf16[16,32]{1,0} parameter(1)
  %two = s32[] constant(2)
  %start = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) tuple(%two, %x, %w)
  %loop = (s32[], bf16[8,16]{1,0}, bf16[16,32]{1,0}) while(%start), condition=%condition, body=%body
  %total = f32[4]{0} constant({1, 2, 3, 4})
  ROOT %reduced = f32[4]{0} all-reduce(%total), channel_id=2, replica_groups={{0,1,2,3}}, to_apply=%add
}
""".replace("ESTIMATE", '"estimated_cycles":"100"')


@pytest.fixture(scope="module")
def cost():
    return hlo_cost.analyse(MODULE)


def test_estimates_are_multiplied_by_the_trips_of_their_loop(cost):
    """The counter runs from 2 to 5."""
    assert cost.loops == {"loop": 3}
    assert cost.cycles_by_kind == {"matmul": 300, "other": 0, "collective": 0, "custom call": 0}
    assert cost.flops == 3 * 2 * 8 * 16 * 32
    assert not cost.warnings


def test_collectives_are_counted_in_bytes_that_a_chip_sends(cost):
    """A ring sends (n - 1) / n of the gathered array, and twice that of a reduced one."""
    assert cost.collective_bytes["all-gather"] == 3 * (64 * 16 * 2) * 7 / 8
    assert cost.collective_bytes["all-reduce"] == 2 * (4 * 4) * 3 / 4


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("source_target_pairs={{0,1},{1,0}}", (0, 1)),
        ("", None),
    ],
)
def test_a_group_is_read_in_every_notation(written, group):
    text = MODULE.replace("replica_groups={{0,1,2,3}}", written)
    found = hlo_cost.analyse(text).collectives
    assert [one.group for one in found if one.kind == "all-reduce"] == [group]


def test_what_hosts_send_between_slices_is_a_collective(cost):
    handler = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
    sent = (
        "  %token = token[] after-all()\n"
        "  %send = (f32[4]{0}, u32[], token[]) send(%total, %token), channel_id=9, is_host_transfer=true, "
        f'frontend_attributes={{{handler},_xla_megascale_transfer_type="ALL_REDUCE"}}\n'
    )
    found = hlo_cost.analyse(MODULE.replace("  ROOT %reduced", sent + "  ROOT %reduced"))
    new = [one for one in found.collectives if one not in cost.collectives]
    assert new == [hlo_cost.Collective(hlo_cost.SLICES + "ALL_REDUCE", 16.0, 1, None)]


def test_loops_without_a_known_end_may_be_given_one():
    text = MODULE.replace(
        "%end = s32[] constant(5)", "%end = s32[] get-tuple-element(%state), index=1"
    )
    cost = hlo_cost.analyse(text)
    assert cost.cycles == 100
    assert cost.warnings == ["loop: trip count unknown, counted once"]
    cost = hlo_cost.analyse(text, unknown=7)
    assert (cost.cycles, cost.warnings) == (700, [])


def test_kernels_are_listed_with_their_calls(cost):
    (call,) = cost.custom_calls
    assert (call.target, call.name, call.executions) == (hlo_cost.PALLAS, "kernel.1", 3)


def test_trip_counts_and_products_of_a_real_program():
    def program(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    shapes = (
        jax.ShapeDtypeStruct((8, 32), jnp.float32),
        jax.ShapeDtypeStruct((7, 32, 32), jnp.float32),
    )
    compiled = jax.jit(program).lower(*shapes).compile()
    cost = hlo_cost.analyse(compiled.as_text())
    assert list(cost.loops.values()) == [7]
    assert cost.flops == 7 * 2 * 8 * 32 * 32


def test_what_is_no_module_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo_cost.parse("ENTRY?")
