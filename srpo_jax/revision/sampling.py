"""How the next token is chosen."""

import dataclasses

import jax
import jax.numpy as jnp

from srpo_jax.runtime.settings import Check, at_least, check, setting

Array = jax.Array
TEMPERATURE = Check(lambda value: value >= 0, "0 (greedy) or positive")
SHARE = Check(lambda value: 0 < value <= 1, "in (0, 1]")
TOP_P = Check(lambda value: 0 < value <= 1, "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How completions are written; config.pairs has its own temperature and top_p.

    Raises UserError for values out of range.
    """

    max_new_tokens: int = setting(32, "longest completion", at_least(1))
    temperature: float = setting(0.0, "of the softmax", TEMPERATURE)
    top_p: float = setting(1.0, "the likeliest tokens that hold this probability", TOP_P)
    batch_size: int = setting(
        32, "rows decoded at a time; results do not depend on it", at_least(1)
    )

    refill: float = setting(
        0.125,
        "share of the rows that takes new prompts at a time; 1: a batch after the other",
        SHARE,
    )

    def __post_init__(self) -> None:
        check(self, "config.sampling")


def sample(logits: Array, keys: Array, sampling: Sampling) -> Array:
    """One token a row, int32 [B], from float32 logits [B, V] with a key a row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        logits = jnp.where(logits >= _nucleus(logits, sampling.top_p)[:, None], logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def log_probability(logits: Array, tokens: Array, sampling: Sampling) -> Array:
    """float32 [B], of tokens [B] under the softmax of logits [B, V] at the temperature; 0 if that is 0.

    Over the whole vocabulary: what top_p leaves out is not known to it, so with top_p < 1 this is not the
    distribution that the tokens are drawn from.
    """
    if sampling.temperature == 0:
        return jnp.zeros(tokens.shape)
    logp = jax.nn.log_softmax(logits / sampling.temperature, axis=-1)
    return jnp.take_along_axis(logp, tokens[:, None], axis=-1)[:, 0]


def _nucleus(logits: Array, top_p: float) -> Array:
    """[B]: the largest threshold such that the tokens at or above it hold probability top_p.

    By bisection: sorting a vocabulary costs more than the model on some backends. 40 halvings leave
    less than float32 can tell apart.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    high = logits.max(axis=-1)

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        held = jnp.sum(jnp.where(logits >= middle[:, None], probabilities, 0.0), axis=-1)
        enough = held >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    threshold: Array
    threshold, _ = jax.lax.fori_loop(0, 40, halve, (logits.min(axis=-1), high))
    return threshold
