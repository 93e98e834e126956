"""Operations counted from a program, against counts by hand."""

import functools

import jax
import jax.numpy as jnp
import pytest

from srpo_jax.models.product import grouped
from srpo_jax.runtime import flops

F = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)


def test_a_product_and_its_gradient():
    product = lambda a, b: jnp.sum(a @ b)
    one = 2 * 3 * 5 * 7
    assert flops.count(product, F((3, 5)), F((5, 7))) == one
    assert flops.count(jax.grad(product, argnums=(0, 1)), F((3, 5)), F((5, 7))) == 2 * one
    assert flops.count(jax.grad(product), F((3, 5)), F((5, 7))) == one


@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_counts_as_often_as_it_runs(remat):
    def layers(x, weights):
        body = lambda x, w: (jnp.tanh(x @ w), None)
        return jax.lax.scan(jax.checkpoint(body) if remat else body, x, weights)[0].sum()

    one = 4 * 2 * 3 * 5 * 5
    assert flops.count(layers, F((3, 5)), F((4, 5, 5))) == one
    gradient = flops.count(jax.grad(layers, argnums=1), F((3, 5)), F((4, 5, 5)))
    assert gradient == (4 if remat else 3) * one


def test_of_branches_the_dearest_counts():
    def either(x, y):
        return jax.lax.cond(x.sum() > 0, lambda: x @ y, lambda: (x @ y) @ y)

    assert flops.count(either, F((5, 5)), F((5, 5))) == 2 * 2 * 5**3


def test_what_no_result_depends_on_does_not_count():
    assert flops.count(lambda x: (x @ x, x)[1], F((5, 5))) == 0


def test_a_program_for_several_devices_counts_whole():
    mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("fsdp")
    product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=split, out_specs=split)
    assert flops.count(product, F((8, 3))) == 4 * (2 * 2 * 3 * 2)


def test_of_a_grouped_product_only_what_a_row_goes_through_counts():
    """Three experts, of which each of 8 rows has one; forward, and the gradients of both."""
    sizes = jax.ShapeDtypeStruct((3,), jnp.int32)
    product = lambda a, b, n: jnp.sum(grouped(a, b, n, "float32"))
    one = 2 * 8 * 5 * 7
    assert flops.count(product, F((8, 5)), F((3, 5, 7)), sizes) == one
    both = jax.grad(product, argnums=(0, 1))
    assert flops.count(both, F((8, 5)), F((3, 5, 7)), sizes) == 2 * one
