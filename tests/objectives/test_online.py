"""RLOO, CoPG and PPO against hand-worked values, each other, and the optimum of a bandit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srpo_jax.objectives import online

BETA = 0.3


def array(*values):
    return jnp.array(values, jnp.float32)


# --- hand-worked ------------------------------------------------------------------------------------


def test_leave_one_out_takes_the_mean_of_the_others_off():
    found = online.leave_one_out(array([1.0, 2.0, 6.0], [3.0, 3.0, 3.0]))
    np.testing.assert_allclose(found, [[1 - 4, 2 - 3.5, 6 - 1.5], [0, 0, 0]], atol=1e-6)


def test_rloo_has_the_kl_in_its_reward_and_reinforces_by_the_advantage():
    scores, reference, rewards = array([-1.0, -2.0]), array([-3.0, -2.0]), array([1.0, 0.0])

    def loss(scores):
        value, metrics = online.rloo(scores, scores_old, reference, rewards, beta=0.5, clip=0.2)
        return value[0], metrics

    scores_old = scores
    slope, _ = jax.grad(loss, has_aux=True)(scores)
    # R = (1 - 0.5 * 2, 0): both 0, so nothing is preferred.
    np.testing.assert_allclose(slope, [[0.0, 0.0]], atol=1e-7)
    reference = scores  # R = (1, 0), A = (1, -1)
    slope, metrics = jax.grad(loss, has_aux=True)(scores)
    np.testing.assert_allclose(slope, [[-0.5, 0.5]], atol=1e-7)
    assert metrics["ratio"] == 1
    assert metrics["clip_fraction"] == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0),
        (1.5, 2.0, -2.4, 1),  # no more than 1.2 is gained
        (0.5, 2.0, -1.0, 0),  # what is lost counts in full
        (0.5, -2.0, 1.6, 1),
        (1.5, -2.0, 3.0, 0),
    ],
)
def test_the_clipped_loss(ratio, advantage, loss, clipped):
    found = online.clipped_loss(jnp.log(array(ratio)), array(advantage), 0.2)
    np.testing.assert_allclose(found[0], [loss], rtol=1e-6)
    np.testing.assert_allclose(found[1], [ratio], rtol=1e-6)
    assert found[2] == clipped


@pytest.mark.parametrize("advantage", [2.0, 0.0, -2.0])
def test_a_ratio_that_float32_cannot_hold_leaves_loss_and_gradient_finite(advantage):
    """exp(89) is infinite: the loss was, too, or with an advantage of 0 no number."""

    def loss(log_ratio):
        return online.clipped_loss(log_ratio, array(advantage), 0.2)[0].sum()

    for log_ratio in (20.5, 89.0, 1e6):
        value, slope = jax.value_and_grad(loss)(array(log_ratio))
        assert np.isfinite(value)
        assert slope == 0


def test_ratios_below_the_bound_are_what_they_were_to_the_bit():
    log_ratio = jnp.linspace(-200, online.LARGEST_LOG_RATIO, 4001)[:-1]

    def plain(log_ratio):
        ratio = jnp.exp(log_ratio)
        return jnp.maximum(3 * ratio, 3 * jnp.clip(ratio, 0.8, 1.2))

    def bounded(log_ratio):
        return online.clipped_loss(log_ratio, -3.0, 0.2)[0]

    found, expected = (jax.vmap(jax.value_and_grad(loss))(log_ratio) for loss in (bounded, plain))
    np.testing.assert_array_equal(found, expected)


def test_copg_of_two_is_the_papers_loss():
    """l = -(r - r' - beta/2 (g - g')) (g - g'), here with g - g' = 2 and r - r' = 3."""
    loss, _ = online.copg(array([-1.0, -4.0]), array([-2.0, -3.0]), array([3.0, 0.0]), beta=0.5)
    np.testing.assert_allclose(loss, [-(3 - 0.25 * 2) * 2], rtol=1e-6)


def test_copg_of_fresh_completions_has_twice_the_gradient_of_rloo():
    rng = np.random.default_rng(0)
    scores, reference, rewards = (jnp.array(rng.normal(size=(3, 5))) for _ in range(3))
    copg = jax.grad(lambda s: online.copg(s, reference, rewards, beta=BETA)[0].sum())(scores)
    rloo = jax.grad(
        lambda s: online.rloo(s, scores, reference, rewards, beta=BETA, clip=0.2)[0].sum()
    )(scores)
    np.testing.assert_allclose(copg, 2 * rloo, rtol=1e-5, atol=1e-6)


MASK = jnp.array([[True, True, True], [True, True, False]])


def test_the_reward_stands_on_the_last_token_and_the_kl_on_each():
    rewards = online.token_rewards(
        array(5.0, -1.0),
        array([0.0, 1.0, 2.0], [1.0, 1.0, 9.0]),
        array([0.0, 0.0, 0.0], [0.0, 3.0, -9.0]),
        MASK,
        beta=0.5,
    )
    np.testing.assert_allclose(rewards, [[0, -0.5, 5 - 1], [-0.5, -1 + 1, 0]], atol=1e-6)
    assert rewards.dtype == jnp.float32, "whole numbers as rewards do not make it whole"


def test_gae_by_hand():
    """V is of the state before a token, and there is none behind the last."""
    rewards, values = array([0.0, 0.0, 1.0], [0.0, 2.0, 99.0]), array([0.5, 0.25, 0.75], [1, 1, 9])
    found = online.gae(rewards, values, MASK, discount=0.9, trace=0.5)
    third = 1 - 0.75
    second = 0.9 * 0.75 - 0.25 + 0.45 * third
    first = 0.9 * 0.25 - 0.5 + 0.45 * second
    np.testing.assert_allclose(found.advantages[0], [first, second, third], rtol=1e-6)
    np.testing.assert_allclose(found.advantages[1], [0.9 - 1 + 0.45 * 1, 2 - 1, 0], rtol=1e-6)
    np.testing.assert_allclose(
        found.returns, found.advantages + jnp.where(MASK, values, 0), rtol=1e-6
    )


def test_gae_with_trace_1_is_the_return_less_the_value():
    rewards, values = array([1.0, 2.0, 4.0], [3.0, 5.0, 0.0]), array([1.0, 1.0, 1.0], [2, 2, 0])
    found = online.gae(rewards, values, MASK, discount=1.0, trace=1.0)
    np.testing.assert_allclose(found.returns, [[7, 6, 4], [8, 5, 0]], rtol=1e-6)


def test_whitening_knows_tokens_that_are_there_alone():
    values = array([1.0, 2.0, 3.0], [4.0, 5.0, 1e9])
    found = online.whiten(values, MASK)
    np.testing.assert_allclose(
        found, [[-math.sqrt(2), -math.sqrt(0.5), 0], [math.sqrt(0.5), math.sqrt(2), 0]], atol=1e-5
    )


def ppo(logp, values, old, **changed):
    given = {
        "advantages": array([1.0, -1.0, 2.0], [0.5, 1.0, 0.0]),
        "returns": jnp.ones((2, 3)),
        "mask": MASK,
        "clip": 0.2,
        "value_clip": 0.0,
        "value_weight": 0.5,
    } | changed
    return online.ppo(logp, values, old, jnp.zeros((2, 3)), **given)


def test_ppo_begins_with_ratio_1_and_the_policy_gradient():
    logp, values = array([-1.0, -2.0, -3.0], [-1.0, -1.0, 0.0]), jnp.zeros((2, 3))
    losses, metrics = ppo(logp, values, logp)
    np.testing.assert_allclose(metrics["ratio"], MASK.astype(float))
    np.testing.assert_allclose(losses, np.where(MASK, [[-0.75, 1.25, -1.75], [-0.25, -0.75, 0]], 0))
    slope = jax.grad(lambda logp: ppo(logp, values, old)[0].sum())
    old = logp
    np.testing.assert_allclose(slope(logp), [[-1, 1, -2], [-0.5, -1, 0]])


def test_what_a_mask_leaves_out_is_not_exponentiated():
    """The ratio of padding would be infinite, and its gradient no number."""
    logp, old = (
        array([-1.0, -2.0, -3.0], [-1.0, -1.0, 500.0]),
        array([-1.0, -2, -3], [-1, -1, -500]),
    )
    losses, _ = ppo(logp, jnp.zeros((2, 3)), old)
    assert np.isfinite(losses).all()
    slope = jax.grad(lambda logp: ppo(logp, jnp.zeros((2, 3)), old)[0].sum())(logp)
    assert np.isfinite(slope).all()
    assert slope[1, 2] == 0


def test_a_clipped_value_counts_where_it_is_further_from_the_return():
    logp, values = jnp.zeros((2, 3)), jnp.full((2, 3), 0.9)
    free, _ = ppo(logp, values, logp, value_weight=2.0, advantages=jnp.zeros((2, 3)))
    held, _ = ppo(
        logp, values, logp, value_weight=2.0, advantages=jnp.zeros((2, 3)), value_clip=0.2
    )
    np.testing.assert_allclose(free[0, 0], 0.01, rtol=1e-5)
    np.testing.assert_allclose(held[0, 0], 0.64, rtol=1e-5)  # (0.2 - 1)^2


def test_the_coefficient_follows_its_target():
    assert online.adapted(0.1, 7.0, 0.0, 0.1) == 0.1
    assert online.adapted(0.1, 6.6, 6.0, 0.1) == pytest.approx(0.1 * 1.01)
    assert online.adapted(0.1, 60.0, 6.0, 0.1) == pytest.approx(0.1 * 1.02)
    assert online.adapted(0.1, 0.0, 6.0, 0.1) == pytest.approx(0.1 * 0.98)


def test_explained_variance():
    returns = array([1.0, 2.0, 3.0], [4.0, 5.0, 1e9])
    assert online.explained_variance(returns, returns, MASK) == 1
    assert online.explained_variance(jnp.ones((2, 3)), returns, MASK) == pytest.approx(0, abs=1e-6)


# --- the optimum of a bandit ------------------------------------------------------------------------

REWARDS = jnp.array([1.0, 0.2, 0.0, 0.6])
REFERENCE = jax.nn.log_softmax(jnp.array([-1.0, 0.5, 1.0, 0.0]))
OPTIMUM = jax.nn.softmax(REFERENCE + REWARDS / BETA)
K = len(REWARDS)
A, B = (x.reshape(-1) for x in jnp.meshgrid(jnp.arange(K), jnp.arange(K)))


def pairs(values):
    return jnp.stack([values[A], values[B]], axis=-1)


def rloo_loss(parameters, old):
    """Of the population: each pair of actions as often as the policy draws it."""
    logp, before = (jax.nn.log_softmax(x["logits"]) for x in (parameters, old))
    given = (pairs(x) for x in (logp, before, REFERENCE, REWARDS))
    losses, _ = online.rloo(*given, beta=BETA, clip=0.2)
    return (jnp.exp(pairs(before).sum(-1)) * losses).sum()


def copg_loss(parameters, old):
    """Off-policy: pairs as a policy draws them that likes the worst action best."""
    drawn = jnp.exp(pairs(jax.nn.log_softmax(-3 * REWARDS)).sum(-1))
    logp = jax.nn.log_softmax(parameters["logits"])
    losses, _ = online.copg(pairs(logp), pairs(REFERENCE), pairs(REWARDS), beta=BETA)
    return (drawn * losses).sum()


def ppo_loss(parameters, old):
    """Completions of one token."""
    logp, before = (jax.nn.log_softmax(x["logits"])[:, None] for x in (parameters, old))
    value, value_before = (jnp.full((K, 1), x["value"]) for x in (parameters, old))
    mask = jnp.ones((K, 1), bool)
    rewards = online.token_rewards(REWARDS, before, REFERENCE[:, None], mask, beta=BETA)
    found = online.gae(rewards, value_before, mask, discount=1.0, trace=0.95)
    given = logp, value, before, value_before, *found, mask
    losses, _ = online.ppo(*given, clip=0.2, value_clip=0.0, value_weight=0.5)
    return (jnp.exp(before) * losses).sum()


@pytest.mark.parametrize("loss", [rloo_loss, copg_loss, ppo_loss])
def test_the_minimiser_is_the_reference_tilted_by_the_reward(loss):
    start = {"logits": REFERENCE, "value": jnp.zeros(())}
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 1500), eps=1e-5)

    @jax.jit
    def fit():
        def step(_, carry):
            parameters, state = carry
            slope = jax.grad(loss)(parameters, parameters)
            updates, state = optimizer.update(slope, state)
            return optax.apply_updates(parameters, updates), state

        return jax.lax.fori_loop(0, 1500, step, (start, optimizer.init(start)))[0]

    found = jax.nn.softmax(fit()["logits"])
    assert 0.5 * float(jnp.abs(jax.nn.softmax(REFERENCE) - OPTIMUM).sum()) > 0.3
    assert 0.5 * float(jnp.abs(found - OPTIMUM).sum()) < 1e-4
