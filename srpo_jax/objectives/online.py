"""What is learned from completions that the policy itself wrote: RLOO, CoPG and PPO, pure functions.

They maximise E[r(x, y)] - beta KL(pi || ref), whose optimum is pi*(y|x) ∝ ref(y|x) exp(r(x, y) / beta).
Notation of the docstrings:

    g(y)     = log pi(y|x) - log ref(y|x)      log-ratio of a completion, summed over its tokens
    rho      = pi / pi_old                     pi_old: the policy that wrote the completion
    sg[.]    no gradient flows through it

k completions of a prompt stand along the last axis of sequences [*B, k]; tokens [*B, k, G] have one more,
with a mask, bool, of those that were written. All is float32 (float64 if the input is); rewards too.
Nothing is exponentiated that a mask leaves out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from srpo_jax.objectives.losses import Metrics, Number

Prompts = Float[Array, "*B"]
Sequences = Float[Array, "*B k"]
Tokens = Float[Array, "*B k G"]
Mask = Bool[Array, "*B k G"]
ONLINE = ("rloo", "copg", "ppo")
# A log-ratio above counts as this much: exp of more than 88 is infinite in float32. verl and Tunix have the
# same bound. There is none from below: exp goes to 0 there, and its slope with it.
LARGEST_LOG_RATIO = 20.0


# --- sequences: RLOO and CoPG -------------------------------------------------------------------------


def leave_one_out(rewards: Sequences) -> Sequences:
    """A_i = R_i - mean of the k - 1 others' R_j: the baseline does not depend on y_i, so it is unbiased."""
    k = rewards.shape[-1]
    return (rewards - rewards.mean(axis=-1, keepdims=True)) * (k / (k - 1))


def rloo(
    scores: Sequences,
    old: Sequences,
    reference: Sequences,
    rewards: Sequences,
    *,
    beta: Number,
    clip: Number,
) -> tuple[Prompts, Metrics]:
    """REINFORCE with a leave-one-out baseline (Ahmadian et al., arXiv:2402.14740).

        R_i = r_i - beta [log pi_old(y_i|x) - log ref(y_i|x)],    A_i as of `leave_one_out`
        L   = mean over i of max(-A_i rho_i, -A_i clip(rho_i, 1 - clip, 1 + clip))

    with rho_i the ratio of whole completions. In the first update rho = 1, and the gradient is that of
    REINFORCE, -A_i grad log pi(y_i|x); the clipping, PPO's, only matters in later ones.
    """
    advantages = jax.lax.stop_gradient(leave_one_out(rewards - beta * (old - reference)))
    loss, ratio, clipped = clipped_loss(scores - old, advantages, clip)
    return loss.mean(axis=-1), {
        "ratio": ratio.mean(axis=-1),
        "clip_fraction": clipped.mean(axis=-1),
    }


def copg(
    scores: Sequences, reference: Sequences, rewards: Sequences, *, beta: Number
) -> tuple[Prompts, Metrics]:
    """Contrastive policy gradient (Flet-Berliac et al., arXiv:2406.19185), of all pairs of k completions.

        l(y, y') = -(r(y) - r(y') - beta/2 [g(y) - g(y')]) [g(y) - g(y')]
        grad l   = -(R(y) - R(y')) grad [log pi(y|x) - log pi(y'|x)],    R(y) = r(y) - beta g(y)

    It asks nobody who wrote the completions: its minimiser, beta [g(y) - g(y')] = r(y) - r(y') for all
    pairs, is the same for those of any policy. Its gradient on fresh completions is twice that of `rloo`.
    """
    g = scores - reference
    k = g.shape[-1]
    difference = g[..., :, None] - g[..., None, :]
    gain = rewards[..., :, None] - rewards[..., None, :]
    # Each pair is in the table twice, a completion with itself adds nothing.
    losses = -(gain - beta / 2 * difference) * difference
    return losses.sum(axis=(-2, -1)) / (k * (k - 1)), {}


# --- tokens: PPO --------------------------------------------------------------------------------------


def token_rewards(
    rewards: Sequences, old: Tokens, reference: Tokens, mask: Mask, *, beta: Number
) -> Tokens:
    """-beta [log pi_old - log ref] of each token, and on the last one r(x, y) too; 0 where none is."""
    kl = jnp.where(mask, old - reference, 0.0)
    last = mask & ~jnp.pad(mask[..., 1:], [(0, 0)] * (mask.ndim - 1) + [(0, 1)])
    return -beta * kl + jnp.where(last, rewards[..., None], 0.0)


class Estimate(NamedTuple):
    """advantages, and what the values are fitted to; [*B, k, G], 0 where no token is."""

    advantages: Tokens
    returns: Tokens


def gae(
    rewards: Tokens, values: Tokens, mask: Mask, *, discount: Number, trace: Number
) -> Estimate:
    """Generalised advantage estimation (Schulman et al., arXiv:1506.02438).

        delta_t = r_t + discount V_{t+1} - V_t,    A_t = delta_t + discount trace A_{t+1}

    values: V_t is of the state *before* token t, the prompt and the tokens in front of it; r_t is for
    writing token t. Behind the last token there is nothing: V = A = 0. returns: A_t + V_t.
    """
    values, rewards = jnp.where(mask, values, 0.0), jnp.where(mask, rewards, 0.0)

    def back(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[Any, Array]:
        advantage, after = carry
        reward, value = at
        advantage = reward + discount * after - value + discount * trace * advantage
        return (advantage, value), advantage

    steps = jnp.moveaxis(rewards, -1, 0), jnp.moveaxis(values, -1, 0)
    nothing = jnp.zeros_like(values[..., 0])
    _, advantages = jax.lax.scan(back, (nothing, nothing), steps, reverse=True)
    advantages = jnp.where(mask, jnp.moveaxis(advantages, 0, -1), 0.0)
    return Estimate(advantages, advantages + values)


def whiten(values: Tokens, mask: Mask) -> Tokens:
    """Mean 0 and variance 1 over all tokens that are there, of the whole batch; 0 elsewhere."""
    count = jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, values, 0.0).sum() / count
    centred = jnp.where(mask, values - mean, 0.0)
    return centred * jax.lax.rsqrt((centred**2).sum() / count + 1e-8)


def ppo(
    logp: Tokens,
    values: Tokens,
    old: Tokens,
    old_values: Tokens,
    advantages: Tokens,
    returns: Tokens,
    mask: Mask,
    *,
    clip: Number,
    value_clip: Number,
    value_weight: Number,
) -> tuple[Tokens, Metrics]:
    """Proximal policy optimisation (Schulman et al., arXiv:1707.06347), the loss of each token.

        L = max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + value_weight / 2 (V - return)^2

    value_clip > 0: the value's loss is the larger one of V's and of V's held within value_clip of the old
    one. Advantages are taken as they are given (see `gae`, `whiten`). Zero where no token is. The reference
    has no part in it: the KL is in the rewards, by `token_rewards`.
    """
    advantages, returns = jax.lax.stop_gradient((advantages, returns))
    loss, ratio, clipped = clipped_loss(jnp.where(mask, logp - old, 0.0), advantages, clip)
    error = (values - returns) ** 2
    if value_clip > 0:
        held = old_values + jnp.clip(values - old_values, -value_clip, value_clip)
        error = jnp.maximum(error, (held - returns) ** 2)
    parts = {"loss_value": error / 2, "ratio": ratio, "clip_fraction": clipped}
    total = loss + value_weight * parts["loss_value"]
    return jnp.where(mask, total, 0.0), {k: jnp.where(mask, v, 0.0) for k, v in parts.items()}


def adapted(beta: float, kl: float, target: float, rate: float) -> float:
    """The next coefficient of the KL (Ziegler et al., arXiv:1909.08593, section 2.2).

    beta (1 + rate e), with e = kl / target - 1, kept within 0.2. kl: nats a completion. target 0: as it is.
    """
    if target == 0:
        return beta
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + rate * error)


# --- shared pieces ------------------------------------------------------------------------------------


def clipped_loss(log_ratio: Array, advantages: Array, clip: Number) -> tuple[Array, Array, Array]:
    """max(-A rho, -A clip(rho)), rho = exp(log_ratio), and where the clipped one is larger (1, else 0).

    A log-ratio above `LARGEST_LOG_RATIO` is held there and has no gradient, so that loss and gradient are
    finite; one below is as it is, to the bit.
    """
    ratio = jnp.exp(jnp.minimum(log_ratio, LARGEST_LOG_RATIO))
    free = -advantages * ratio
    held = -advantages * jnp.clip(ratio, 1 - clip, 1 + clip)
    return jnp.maximum(free, held), ratio, (held > free).astype(free.dtype)


def explained_variance(values: Tokens, returns: Tokens, mask: Mask) -> Array:
    """1 - Var[return - V] / Var[return] over the tokens that are there: 1 is perfect, 0 is a constant."""
    count = jnp.maximum(mask.sum(), 1)

    def variance(x: Array) -> Array:
        mean = jnp.where(mask, x, 0.0).sum() / count
        return jnp.where(mask, (x - mean) ** 2, 0.0).sum() / count

    return 1 - variance(returns - values) / jnp.maximum(variance(returns), 1e-8)
