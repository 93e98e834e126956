"""Rewards of a tree equal those of each text alone, computed here without trees; and what their head is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from srpo_jax import objectives
from srpo_jax.models import creation
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.models.lora import Adapter
from srpo_jax.objectives.losses import REWARD_SCORES
from srpo_jax.prompts import Prompt, sequences
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import step
from srpo_jax.trees import prefix_tree

CONFIG = DecoderConfig(
    vocab_size=16,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    tied=False,
    rewards=True,
    dtype="float32",
)
END = 3
# Prompt, chosen, rejected: unlike, the one a beginning of the other, and equal ones.
PAIRS = [
    ([4, 5, 6], [7, 8], [9, 7, 8, 4]),
    ([5], [6, 7, 6, 4], [6, 7]),
    ([4, 4], [5, 6], [5, 6]),
]


@pytest.fixture(scope="module")
def model():
    graphdef, state = nnx.split(Decoder(CONFIG, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: 2 * x, state))


@jax.jit
def hidden(model, ids):
    mask = jnp.tril(jnp.ones((1, len(ids), len(ids)), bool))
    return model(ids[None], jnp.arange(len(ids))[None], mask)[0]


def state_of(model, prompt, completion):
    """The hidden state [D] at the end of a text, in a row of its own."""
    text = [*prompt, *completion, END]
    ids = np.zeros(12, np.int32)  # one shape, one compilation; a causal row ignores its tail
    ids[: len(text)] = text
    return np.asarray(hidden(model, jnp.array(ids))[len(text) - 1], np.float64)


def alone(model, prompt, completion):
    kernel = np.asarray(model.score.kernel[...], np.float64)
    return float(state_of(model, prompt, completion) @ kernel[:, 0])


def rows():
    """All pairs in one row."""
    prompts = [Prompt(tuple(x), (), ()) for x, _, _ in PAIRS]
    given = zip(prompts, PAIRS, strict=True)
    trees = [
        prefix_tree.build(sequences(prompt, w, l, REWARD_SCORES, END))
        for prompt, (_, w, l) in given
    ]
    return prefix_tree.stack([prefix_tree.pack(trees, 48, 12, 4)])


def taught(mesh):
    graphdef, trained, frozen = creation.create(CONFIG, None, mesh, seed=0)
    one = step.TrainStep(graphdef, optax.sgd(0.1), objectives.get("reward"), {}, mesh)
    return one, trained, frozen


def test_packed_rewards_and_their_loss_are_those_of_each_text_alone(model):
    one, *_ = taught(mesh_module.make(devices=jax.devices()[:1]))
    trained = nnx.state(model)
    found, pair = jax.jit(one.scores)(trained, nnx.State({}), rows())
    assert pair.tolist() == [0, 1, 2, -1]
    chosen = [alone(model, x, w) for x, w, _ in PAIRS]
    rejected = [alone(model, x, l) for x, _, l in PAIRS]
    assert np.std(chosen) > 0.3
    np.testing.assert_allclose(found["w_end"][:3], chosen, atol=1e-5)
    np.testing.assert_allclose(found["l_end"][:3], rejected, atol=1e-5)

    label = np.array([[0.9, 0.2, 1.0, 0.5]], np.float32)
    batch = {"rows": rows(), "label_prob": label, "lengths": {}, "reference": {}}
    loss = lambda state: one.loss(state, nnx.State({}), batch, jnp.array(3), jax.random.key(0))
    gradient, metrics = jax.jit(jax.grad(loss, has_aux=True))(trained)
    p = 1 / (1 + np.exp(-(np.array(chosen) - np.array(rejected))))
    expected = -np.mean(label[0, :3] * np.log(p) + (1 - label[0, :3]) * np.log(1 - p))
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-5)
    assert {"accuracy", "margin", "reward_chosen", "reward_rejected"} <= metrics.keys()
    assert not {"length_chosen", "nll_chosen", "kl"} & metrics.keys()
    # Equal completions teach nothing: the head's gradient is that of the other two pairs.
    parts = [
        (p[i] - label[0, i]) * (state_of(model, x, w) - state_of(model, x, l))
        for i, (x, w, l) in enumerate(PAIRS)
    ]
    kernel = dict(nnx.to_flat_state(gradient))["score", "kernel"].get_value()
    np.testing.assert_allclose(kernel[:, 0], sum(parts) / 3, atol=1e-5)


def test_the_head_is_drawn_from_the_seed_and_trained_beside_adapters():
    mesh = mesh_module.make(devices=jax.devices()[:1])
    config = dataclasses.replace(
        CONFIG, width=1024, layers=1, lora_rank=2, lora_targets=("query",), parameters="bfloat16"
    )
    kernels = []
    for seed in (0, 1):
        _, trained, frozen = creation.create(config, None, mesh, seed)
        flat = dict(nnx.to_flat_state(trained))
        kernels.append(flat.pop(("score", "kernel")).get_value())
        assert all(isinstance(variable, Adapter) for variable in flat.values())
        assert "head" not in frozen  # the vocabulary projection, which nothing would use
    assert kernels[0].dtype == jnp.float32
    assert kernels[0].shape == (1024, 1)
    assert float(kernels[0].std()) == pytest.approx(1025**-0.5, rel=0.1)
    assert (kernels[0] != kernels[1]).any()
