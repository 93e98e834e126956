"""The product's own gradient rule against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.product import einsum

SPECS = [
    ("abd,dfg->abfg", (2, 3, 4), (4, 5, 6)),
    ("bskgd,bckd->bkgsc", (2, 3, 2, 2, 4), (2, 5, 2, 4)),
]


@pytest.mark.parametrize(("spec", "a", "b"), SPECS)
def test_float32_gradients_equal_jax_own(spec, a, b):
    a, b = jax.random.normal(jax.random.key(0), a), jax.random.normal(jax.random.key(1), b)
    ours = lambda a, b: jnp.sin(einsum(spec, a, b, "float32")).sum()
    theirs = lambda a, b: jnp.sin(jnp.einsum(spec, a, b)).sum()
    for got, want in zip(*(jax.grad(f, (0, 1))(a, b) for f in (ours, theirs)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("out", ["float32", "bfloat16"])
def test_narrow_inputs_are_summed_wide_in_both_directions(out):
    n = 4096
    a, b = jnp.ones((1, n), jnp.bfloat16), jnp.ones((n, 1), jnp.bfloat16)
    value, pull = jax.vjp(lambda a, b: einsum("md,df->mf", a, b, out), a, b)
    assert value.dtype == jnp.dtype(out)
    assert float(value[0, 0]) == n  # a bfloat16 sum of ones stops at 256
    _, grad = pull(jnp.ones((1, 1), out))
    assert grad.dtype == jnp.bfloat16
