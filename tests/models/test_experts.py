"""Routed experts: against a loop over tokens, on every mesh, and their load-balancing loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from srpo_jax import objectives
from srpo_jax.models import creation, experts
from srpo_jax.models.architecture import DecoderConfig, Routing
from srpo_jax.models.experts import Experts, Load
from srpo_jax.models.lora import check_dropout
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import step
from srpo_jax.training.speed import model_flops
from srpo_jax.trees import prefix_tree

CONFIG = DecoderConfig(
    vocab_size=64,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_width=12,
    routing=Routing(4, 2, normed=True),
    dtype="float32",
    remat="dots",
)
ADAPTED = dataclasses.replace(
    CONFIG, lora_rank=2, lora_alpha=1.0, lora_targets=("query", "gate", "up", "down")
)


def layer(config):
    made = Experts(config, config.routing, jax.nn.silu, nnx.Rngs(0))
    if config.lora_rank:
        for part in (made.gate, made.up, made.down):
            value = jax.random.normal(jax.random.key(7), part.lora_b[...].shape)
            part.lora_b[...] = 0.3 * value
    return made


def by_token(made, config, x):
    """The definition: for each token, one expert after the other; float64 [B, S, D]."""
    wide = lambda a: np.asarray(a, np.float64)

    def kernel(part, e):
        merged = wide(part.kernel[...])[e]
        if part.lora_a is None:
            return merged
        return merged + part.scale * wide(part.lora_a[...])[e] @ wide(part.lora_b[...])[e]

    out = np.zeros(x.shape)
    for place in np.ndindex(x.shape[:2]):
        token = wide(x[place])
        logits = token @ wide(made.router.kernel[...])
        shares = np.exp(logits) / np.exp(logits).sum()
        chosen = np.argsort(-shares)[: config.routing.each]
        weights = shares[chosen] / (shares[chosen].sum() if config.routing.normed else 1.0)
        for e, weight in zip(chosen, weights, strict=True):
            gate, up = token @ kernel(made.gate, e), token @ kernel(made.up, e)
            hidden = gate / (1 + np.exp(-gate)) * up
            out[place] += weight * (hidden @ kernel(made.down, e))
    return out


@pytest.mark.parametrize("config", [CONFIG, ADAPTED], ids=["plain", "adapted"])
@pytest.mark.parametrize("normed", [True, False])
def test_each_token_goes_through_its_own_experts_and_none_is_left_out(config, normed):
    config = dataclasses.replace(config, routing=Routing(4, 2, normed))
    made = layer(config)
    x = jax.random.normal(jax.random.key(1), (2, 9, 16))
    # All tokens of the first row choose the same experts: no expert is ever full.
    x = x.at[0].set(x[0, 0])
    graphdef, state = nnx.split(made)
    got = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x, True)[0])(state, x)
    np.testing.assert_allclose(got, by_token(made, config, x), atol=2e-6)


def test_what_no_token_chose_has_no_gradient_and_the_rest_that_of_a_sum_over_all():
    made = layer(CONFIG)
    graphdef, state = nnx.split(made)
    x = jax.random.normal(jax.random.key(1), (1, 3, 16))
    x = jnp.broadcast_to(x[:, :1], x.shape)

    def through_all(state, x):
        held = nnx.merge(graphdef, state)
        shares = jax.nn.softmax(x @ held.router.kernel[...])
        weights, chosen = jax.lax.top_k(shares, 2)
        weights = weights / weights.sum(-1, keepdims=True)
        dense = (jax.nn.one_hot(chosen, 4) * weights[..., None]).sum(-2)
        gate, up = (jnp.einsum("bsd,edf->bsef", x, p.kernel[...]) for p in (held.gate, held.up))
        every = jnp.einsum("bsef,efd->bsed", jax.nn.silu(gate) * up, held.down.kernel[...])
        return jnp.sum(jnp.sin(jnp.einsum("bse,bsed->bsd", dense, every)))

    def ours(state, x):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, state)(x, True)[0]))

    both = (jax.jit(jax.grad(f, argnums=(0, 1))) for f in (through_all, ours))
    expected, got = (gradient(state, x) for gradient in both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    kernel = got[0]["gate"]["kernel"][...]
    assert [bool(jnp.any(part != 0)) for part in kernel].count(True) == 2


MIXED = "expert 2, fsdp 2, tensor 2"
MESHES = {MIXED: {"fsdp": 2, "expert": 2, "tensor": 2}, "expert 4": {"fsdp": 2, "expert": 4}}


@pytest.mark.parametrize(("name", "rows"), [(MIXED, 8), (MIXED, 3), ("expert 4", 8)])
def test_a_mesh_changes_no_result(name, rows):
    """8 devices against 1, forward and backward; 3 rows cannot be cut, and are everywhere."""
    mesh = mesh_module.make(**MESHES[name])
    graphdef, state = nnx.split(layer(ADAPTED))
    x = jax.random.normal(jax.random.key(1), (rows, 5, 16))

    def total(state, x):
        return jnp.sum(jnp.sin(nnx.merge(graphdef, state)(x, True)[0]))

    expected = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(state, x)
    placed = jax.device_put(state, mesh_module.parameter_shardings(mesh, state))

    def on_mesh(state, x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(total, argnums=(0, 1))(state, x)

    got = jax.jit(on_mesh)(placed, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


def batch(rows):
    rng = np.random.default_rng(3)
    draw = lambda n: [int(t) for t in rng.integers(3, 64, n)]
    trees = [prefix_tree.build([(x := draw(7), draw(3)), (x, draw(4))]) for _ in range(rows)]
    packed = prefix_tree.stack([prefix_tree.pad(tree, 16, 8) for tree in trees])
    empty = {name: np.ones((rows, 1), np.float32) for name in ("w", "l")}
    packed = packed._replace(pair=np.arange(rows, dtype=np.int32)[:, None])
    return {
        "rows": packed,
        "label_prob": np.ones((rows, 1), np.float32),
        "lengths": empty,
        "reference": empty,
    }


def gradients(mesh, config, given, **options):
    graphdef, trained, frozen = creation.create(config, None, mesh, 5)
    one = step.TrainStep(
        graphdef, optax.sgd(0.1), objectives.get("dpo"), {"beta": 0.1}, mesh, **options
    )
    placed = mesh_module.host_to_global(mesh, given)
    return jax.jit(one.gradient)(trained, frozen, placed, jax.random.key(0))


@pytest.mark.slow
def test_a_step_with_its_router_loss_is_the_same_on_experts_devices():
    """Of all weights, the router's among them; 8 devices against 1, to 1e-5."""
    given = batch(8)
    alone = mesh_module.make(devices=jax.devices()[:1])
    plain, said = gradients(alone, CONFIG, given)
    assert "router_loss" not in said
    expected, said = gradients(alone, CONFIG, given, router_loss=0.5)
    mesh = mesh_module.make(fsdp=2, expert=2, tensor=2)
    got, there = gradients(mesh, CONFIG, given, router_loss=0.5)
    for a, b in ((got, expected), (there, said)):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)
    assert 2.0 <= said["router_loss"] < 4.0  # each token chooses 2 of 4
    router = lambda found: found["blocks"]["mlp"]["router"]["kernel"][...]
    assert np.abs(router(expected) - router(plain)).max() > 1e-3


def test_of_a_step_only_the_chosen_experts_count():
    """One expert more a token: three products, forward and the two of the backward pass, in each layer."""
    rows = batch(2)["rows"]

    def operations(experts, each):
        config = dataclasses.replace(CONFIG, routing=Routing(experts, each, normed=True))
        return model_flops(config, ("w", "l"), rows)

    one = 2 * rows.tokens.size * 16 * 12
    assert operations(4, 3) - operations(4, 2) == 2 * 3 * 3 * one
    router = 2 * rows.tokens.size * 16 * 4
    assert operations(8, 2) - operations(4, 2) == 2 * 3 * router


def test_the_load_balancing_loss_is_that_of_transformers_without_padding():
    torch = pytest.importorskip("torch", reason="the yardstick is an extra: install srpo_jax[dev]")
    mixtral = pytest.importorskip("transformers.models.mixtral.modeling_mixtral")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 5, 4)).astype(np.float32)  # of layers, rows, tokens, experts
    known = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    gates = tuple(torch.from_numpy(layer.reshape(-1, 4)) for layer in logits)
    expected = mixtral.load_balancing_loss_func(gates, 4, 2, torch.from_numpy(known)).item()
    shares = jax.nn.softmax(jnp.asarray(logits))
    chosen = jax.lax.top_k(shares, 2)[1]
    each = [
        experts._load(c, p, jnp.asarray(known, bool)) for c, p in zip(chosen, shares, strict=True)
    ]
    loads = Load(*(jnp.stack(part) for part in zip(*each, strict=True)))
    np.testing.assert_allclose(experts.balance(loads), expected, rtol=1e-6)


def test_dropout_of_experts_adapters_is_refused():
    with pytest.raises(UserError, match=r"config\.lora\.dropout=0\.1: adapters of routed experts"):
        check_dropout(("query", "up|down"), 0.1)
    check_dropout(("query", "output"), 0.1)


def test_a_token_goes_through_no_more_experts_than_there_are():
    with pytest.raises(ValueError, match="a token cannot go through 5 of 4 experts"):
        Routing(4, 5, normed=True)
