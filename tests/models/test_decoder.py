"""The decoder against itself: cache against full rows, masks, adapters, dtypes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax.models.decoder import Cache, Decoder, DecoderConfig
from srpo_jax.models.lora import Adapter

TINY = DecoderConfig(
    vocab_size=64,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
)
LORA = dataclasses.replace(TINY, lora_rank=4, lora_targets=("query", "value", "down"))


def causal(batch, length):
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    return positions, jnp.broadcast_to(
        jnp.tril(jnp.ones((length, length), bool)), (batch, length, length)
    )


@pytest.fixture(scope="module")
def tokens():
    return jax.random.randint(jax.random.key(1), (2, 7), 0, TINY.vocab_size)


@pytest.mark.parametrize(("tied", "unrolled"), [(True, False), (False, False), (True, True)])
def test_tokens_in_pieces_equal_all_at_once(tokens, tied, unrolled):
    config = dataclasses.replace(TINY, tied=tied)
    model = Decoder(config, nnx.Rngs(0))
    positions, mask = causal(2, 7)
    whole = model.logits(model(tokens, positions, mask))
    cache, parts = Cache.zeros(config, 2, 9, unrolled), []
    layers = model.unrolled_layers() if unrolled else None
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        piece = jnp.pad(mask[:, start:stop], ((0, 0), (0, 0), (0, 2)))
        hidden, cache = model.extend(
            tokens[:, start:stop], positions[:, start:stop], piece, cache, start, layers=layers
        )
        parts.append(model.logits(hidden))
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=1e-5)


def test_a_hidden_token_has_no_influence(tokens):
    model = Decoder(TINY, nnx.Rngs(0))
    positions, mask = causal(2, 7)
    mask = mask.at[:, 3:, 2].set(False)
    changed = tokens.at[:, 2].set((tokens[:, 2] + 1) % TINY.vocab_size)
    one, other = (model(t, positions, mask) for t in (tokens, changed))
    np.testing.assert_array_equal(one[:, 3:], other[:, 3:])
    assert not np.allclose(one[:, 2], other[:, 2])


def test_scores_depend_on_relative_positions_only(tokens):
    model = Decoder(TINY, nnx.Rngs(0))
    positions, mask = causal(2, 7)
    np.testing.assert_allclose(
        model(tokens, positions, mask), model(tokens, positions + 100, mask), atol=1e-4
    )


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_can_be_switched_off(tokens):
    positions, mask = causal(2, 7)
    model = Decoder(LORA, nnx.Rngs(0))
    base = model(tokens, positions, mask, adapter=False)
    np.testing.assert_array_equal(model(tokens, positions, mask), base)
    graphdef, adapter, rest = nnx.split(model, Adapter, ...)
    trained = nnx.merge(graphdef, jax.tree.map(lambda a: a + 0.1, adapter), rest)
    assert not np.allclose(trained(tokens, positions, mask), base)
    np.testing.assert_array_equal(trained(tokens, positions, mask, adapter=False), base)
    # query, value and down have two factors each, stacked over the layers
    assert len(jax.tree.leaves(adapter)) == 6
    assert all(leaf.shape[0] == TINY.layers for leaf in jax.tree.leaves(adapter))


def test_dots_computes_no_projection_again(tokens):
    positions, mask = causal(2, 7)

    def operations(remat):
        model = Decoder(dataclasses.replace(TINY, remat=remat), nnx.Rngs(0))
        program = nnx.jit(nnx.grad(lambda m: m(tokens, positions, mask).sum()))
        return program.lower(model).cost_analysis()["flops"]

    none, dots, full = (operations(remat) for remat in ("none", "dots", "full"))
    assert full > 1.2 * none  # a third product for every two of the backward pass, at the least
    assert dots - none < 0.3 * (full - none)  # attention in one block, norms, the MLP's gate


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_remat_changes_no_gradient(tokens, remat):
    positions, mask = causal(2, 7)

    def gradient(policy):
        model = Decoder(dataclasses.replace(TINY, remat=policy), nnx.Rngs(0))
        graphdef, state = nnx.split(model)
        loss = lambda s: jnp.sum(nnx.merge(graphdef, s)(tokens, positions, mask) ** 2)
        return jax.jit(jax.grad(loss))(state)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5),
        gradient("none"),
        gradient(remat),
    )


def test_bfloat16_stays_near_float32(tokens):
    positions, mask = causal(2, 7)
    exact = Decoder(TINY, nnx.Rngs(0))(tokens, positions, mask)
    narrow = Decoder(dataclasses.replace(TINY, dtype="bfloat16"), nnx.Rngs(0))
    hidden = narrow(tokens, positions, mask)
    assert hidden.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 2^-8 a rounding, a few roundings a layer
    np.testing.assert_allclose(hidden.astype(jnp.float32), exact, atol=0.1)
    assert narrow.embedder.embedding[...].dtype == jnp.float32


def test_impossible_head_counts_are_refused():
    with pytest.raises(ValueError, match="kv_heads=3"):
        dataclasses.replace(TINY, kv_heads=3)
