"""Adapters are only where they were asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax.models import lora
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.runtime.errors import UserError

CONFIG = DecoderConfig(
    vocab_size=16,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_width=24,
    dtype="float32",
)
ADAPTED = dataclasses.replace(CONFIG, lora_rank=3, lora_alpha=6.0, lora_targets=(".*",))


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (("query",), {"query"}),
        (("key", "up|down"), {"key", "up", "down"}),
        ((".*",), set(lora.PROJECTIONS)),
        (lora.PROJECTIONS, set(lora.PROJECTIONS)),
    ],
)
def test_targets_are_patterns_of_whole_names(targets, adapted):
    lora.check_targets(targets)
    config = dataclasses.replace(ADAPTED, lora_targets=targets)
    abstract = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(abstract, lora.Adapter))]
    assert {path[-2] for path in paths} == adapted
    assert {path[-1] for path in paths} == {"lora_a", "lora_b"}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ((), "empty"),
        (("query", "qeury"), "'qeury' is none of the projections query, key"),
        (("quer",), "'quer' is none"),
        (("(",), r"'\(' is no pattern"),
    ],
)
def test_targets_that_adapt_nothing_are_refused(targets, said):
    with pytest.raises(UserError, match=rf"config\.lora\.targets.*{said}"):
        lora.check_targets(targets)


@pytest.mark.parametrize("scale", [16 / 12, 2.0])
def test_a_scale_is_not_rounded_to_bfloat16(scale):
    product = jax.random.normal(jax.random.key(0), (64,), jnp.bfloat16)
    found = jax.jit(lora.scaled, static_argnums=1)(product, scale)
    exact = scale * np.asarray(product, np.float64)
    np.testing.assert_array_equal(found, exact.astype(np.float32).astype(jnp.bfloat16))
    if scale == 2.0:  # which bfloat16 has
        np.testing.assert_array_equal(found, jax.jit(lambda x: scale * x)(product))


def test_a_bfloat16_adapter_is_the_float32_one_but_for_rounding():
    """An adapter of 16/12 was scaled by 1.3359 in bfloat16: .2 % too much, everywhere."""
    given = {"config": dataclasses.replace(ADAPTED, lora_alpha=16.0, lora_rank=12)}
    x = jax.random.normal(jax.random.key(1), (1, 8, 16))
    part = lora.Projection("up", (16,), (24,), ("embed", "mlp"), **given, rngs=nnx.Rngs(0))
    part.kernel.set_value(jnp.zeros_like(part.kernel[...]))
    part.lora_b.set_value(jax.random.normal(jax.random.key(2), (12, 24)))
    exact = part(x)
    part.dtype = "bfloat16"
    ratio = (part(x.astype(jnp.bfloat16)).astype(jnp.float32) * exact).sum() / (exact**2).sum()
    assert ratio == pytest.approx(1, abs=1e-3)
