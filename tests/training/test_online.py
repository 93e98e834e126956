"""Learning from what the policy wrote: what a first update sees, on any mesh, and where it ends."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax.models import creation
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.revision import LocalRollout, Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import online
from srpo_jax.training.online import Learner, OnlineStep
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer
from srpo_jax.training.settings import OnlineSettings
from srpo_jax.training.step import TrainState
from srpo_jax.trees.completions import Layout

pytestmark = pytest.mark.usefixtures("compiled_once")
CONFIG = DecoderConfig(
    vocab_size=8,
    width=16,
    layers=1,
    heads=2,
    kv_heads=1,
    head_dim=8,
    mlp_width=16,
    dtype="float32",
    remat="none",
)
PROMPTS, STOPS, TOKENS = [[4, 5, 6], [7], [4, 4], [6, 5, 4]], (2,), 3
OWN = OnlineSettings(samples=4, temperature=0.7, beta=0.1)


def learner(own, mesh, *, prompts=4, tokens=TOKENS, steps=10, rate=1e-2, config=CONFIG):
    graphdef, trained, frozen = creation.create(config, None, mesh, 3)
    before = None if config.lora_rank else (jax.tree.map(jnp.copy, trained), frozen)
    if own.objective == "ppo":
        trained = online.with_value_head(trained, config.width, mesh)
    optimizer, _ = make_optimizer(OptimizerSettings(rate, warmup_steps=2), steps, epsilon=1e-5)
    step = OnlineStep(graphdef, optimizer, own, mesh)
    layout = Layout.of(
        prompts // own.minibatches,
        parts=mesh_module.batch_parts(mesh),
        longest=3,
        samples=own.samples,
        tokens=tokens,
    )
    programs = step.compile(trained)
    state = TrainState(trained, programs.init(trained))
    return Learner(step, programs, layout, frozen, before), state


def wrote(learner, state, prompts=PROMPTS, tokens=TOKENS, draw=1):
    own = learner.step.settings
    sampling = Sampling(tokens, own.temperature, batch_size=len(prompts) * own.samples)
    policy = learner.step.policy(state.model, learner.frozen)
    rollout = LocalRollout(policy, sampling, stops=STOPS, width=3, seed=0)
    return rollout.generate(prompts, own.samples, draw)


def ended_early(written):
    return -written.lengths.astype(float)


@functools.cache
def one_device():
    return mesh_module.make(devices=jax.devices()[:1])


@pytest.mark.parametrize("objective", ["rloo", "copg", "ppo"])
def test_a_first_update_begins_at_ratio_1_and_without_kl(objective):
    own = dataclasses.replace(OWN, objective=objective)
    adapters = dataclasses.replace(
        CONFIG, lora_rank=2, lora_dropout=0.5, lora_targets=("query|value",)
    )
    learns, state = learner(own, one_device(), config=adapters)
    written = wrote(learns, state)
    rewards = ended_early(written)
    rewards[1, 0] = np.nan
    lessons = learns.experience(state.model, PROMPTS, written, rewards, 0.1)
    assert lessons.used.tolist() == [True, False, True, True]
    assert lessons.metrics["rollout_gap"] < 1e-4
    assert lessons.metrics["kl"] == pytest.approx(0, abs=1e-5)
    assert lessons.metrics["unjudged"] == 0.25
    assert lessons.metrics["reward"] == pytest.approx(rewards[[0, 2, 3]].mean())
    before = jax.tree.map(np.array, state.model)
    state, metrics = learns.learn(state, lessons, (0, 1))
    assert metrics["finite"] == 1
    if objective != "copg":
        assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
        assert metrics["clip_fraction"] == 0
    moved = jax.tree.map(lambda a, b: bool(np.any(a != np.array(b))), before, state.model)
    assert any(jax.tree.leaves(moved))


def test_no_end_costs_what_the_settings_say_and_rewards_stay_float32():
    learns, state = learner(OWN, one_device())
    written = wrote(learns, state)
    assert 0 < written.ended.mean() < 1
    whole = np.full(written.lengths.shape, 3)  # integers
    lessons = learns.experience(state.model, PROMPTS, written, whole, 0.1)
    np.testing.assert_array_equal(lessons.values["rewards"], np.where(written.ended, 3, 2))
    assert lessons.values["rewards"].dtype == np.float32


def test_advantages_of_ppo_are_whitened_over_the_round_and_end_with_the_completion():
    own = dataclasses.replace(OWN, objective="ppo")
    learns, state = learner(own, one_device())
    written = wrote(learns, state)
    values = learns.experience(state.model, PROMPTS, written, ended_early(written), 0.1).values
    valid = written.valid
    assert values["advantages"][valid].mean() == pytest.approx(0, abs=1e-5)
    assert values["advantages"][valid].std() == pytest.approx(1, abs=1e-4)
    # V is 0 and the KL too, so with trace 0.95 the last advantage is the reward, before whitening.
    plain = dataclasses.replace(own, whiten=False)
    learns, state = learner(plain, one_device())
    values = learns.experience(state.model, PROMPTS, written, ended_early(written), 0.1).values
    last = np.take_along_axis(values["advantages"], written.lengths[..., None] - 1, axis=-1)
    given = ended_early(written) - ~written.ended
    np.testing.assert_allclose(last[..., 0], given, atol=1e-5)
    assert np.all(values["advantages"][~valid] == 0)


@pytest.mark.slow
def test_every_mesh_and_every_cut_learns_the_same():
    own = dataclasses.replace(OWN, objective="ppo")
    found = []
    for mesh in (one_device(), mesh_module.make(fsdp=4, tensor=2)):
        config = dataclasses.replace(CONFIG, kv_heads=2)
        learns, state = learner(own, mesh, config=config)
        written = wrote(learns, state)
        lessons = learns.experience(state.model, PROMPTS, written, ended_early(written), 0.1)
        state, metrics = learns.learn(state, lessons, (0, 1))
        found.append((written.tokens, metrics["grad_norm"], jax.tree.map(np.array, state.model)))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-4)
    for one, other in zip(*(jax.tree.leaves(x[2]) for x in found), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# --- the bandit with a transformer: completions of one token ----------------------------------------

VALUES = np.linspace(1, 0, CONFIG.vocab_size) ** 2
BETA, ROUNDS = 0.3, 150


@nnx.jit
def said(model):
    """What the model says behind the prompt, by a plain forward pass."""
    hidden = model(jnp.array([[4]]), jnp.array([[0]]), jnp.ones((1, 1, 1), bool))
    return jax.nn.softmax(model.logits(hidden[:, -1])[0])


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["rloo", "copg", "ppo"])
def test_the_policy_becomes_the_reference_tilted_by_the_reward(objective):
    """Drawn completions, so up to their noise: total variation, above 0.25 before, is below 1e-3."""
    own = OnlineSettings(objective, samples=64, beta=BETA, missing_end=0.0)
    prompts = [[4]] * 4
    learns, state = learner(own, one_device(), prompts=4, tokens=1, steps=ROUNDS, rate=2e-2)
    reference = np.array(said(learns.step.policy(state.model, learns.frozen)))
    optimum = reference * np.exp(VALUES / BETA)
    optimum /= optimum.sum()
    for number in range(ROUNDS):
        written = wrote(learns, state, prompts, tokens=1, draw=number)
        rewards = VALUES[written.tokens[..., 0]]
        lessons = learns.experience(state.model, prompts, written, rewards, BETA)
        state, _ = learns.learn(state, lessons, (0, number))
    policy = np.array(said(learns.step.policy(state.model, learns.frozen)))
    assert 0.5 * np.abs(reference - optimum).sum() > 0.25
    assert 0.5 * np.abs(policy - optimum).sum() < 1e-3
