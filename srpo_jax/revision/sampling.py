"""How the next token is chosen."""

import dataclasses

import jax
import jax.numpy as jnp

from srpo_jax.runtime.errors import UserError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_p: sample from the likeliest tokens that hold this probability.

    batch_size rows are decoded at a time; results do not depend on it. Raises UserError for values
    out of range.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for key, good, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or positive"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        ):
            if not good:
                raise UserError(f"config.sampling.{key}={getattr(self, key)} must be {wanted}")


def sample(logits: Array, keys: Array, sampling: Sampling) -> Array:
    """One token a row, int32 [B], from float32 logits [B, V] with a key a row."""
    if sampling.temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1:
        logits = jnp.where(logits >= _nucleus(logits, sampling.top_p)[:, None], logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


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
