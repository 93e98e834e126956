"""Adapters: off at the start, merged without a trace, and only where they were asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax.errors import UserError
from srpo_jax.models import lora
from srpo_jax.models.decoder import Decoder, DecoderConfig

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
TOKENS = jnp.array([[3, 5, 7, 9, 11]])
POSITIONS = jnp.arange(5)[None]
MASK = jnp.tril(jnp.ones((1, 5, 5), bool))


def hidden(model, adapter=True):
    return model(TOKENS, POSITIONS, MASK, adapter=adapter)


def moved(config):
    """A model whose adapters are no longer zero."""
    graphdef, adapters, rest = nnx.split(Decoder(config, nnx.Rngs(0)), lora.Adapter, ...)
    return nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.3, adapters), rest)


def flat(model):
    return {".".join(map(str, p)): v.get_value() for p, v in nnx.to_flat_state(nnx.state(model))}


def test_merged_weights_compute_what_weights_and_adapters_do():
    model = moved(ADAPTED)
    merged = lora.merged(model)
    base = Decoder(CONFIG, nnx.Rngs(0))
    assert merged.keys() == flat(base).keys()
    graphdef, state = nnx.split(base)
    placed = [
        (path, v.replace(jnp.array(merged[".".join(map(str, path))])))
        for path, v in nnx.to_flat_state(state)
    ]
    plain = nnx.merge(graphdef, nnx.from_flat_state(placed))
    np.testing.assert_allclose(hidden(plain), hidden(model), atol=1e-4)
    assert np.abs(hidden(model) - hidden(model, adapter=False)).max() > 0.1


def test_an_adapter_is_w_plus_alpha_over_rank_a_b():
    model = moved(ADAPTED)
    weights = flat(model)
    name = "blocks.attention.output"
    a, b = (weights[f"{name}.lora_{part}"][1] for part in "ab")
    delta = np.einsum("hkr,rd->hkd", a, b) * 6.0 / 3
    merged = lora.merged(model)[f"{name}.kernel"][1]
    np.testing.assert_allclose(merged, weights[f"{name}.kernel"][1] + delta, rtol=1e-5, atol=1e-6)


def test_without_adapters_merging_changes_nothing():
    model = Decoder(CONFIG, nnx.Rngs(0))
    merged = lora.merged(model)
    for name, value in flat(model).items():
        np.testing.assert_array_equal(merged[name], value)
        assert merged[name].dtype == np.float32


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
