"""Log-probabilities of tokens, without the logits of the whole vocabulary at once.

Shapes: B rows, T targets, D width, V vocabulary.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from srpo_jax.models.attention.logits import Logits
from srpo_jax.models.product import summed
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
# float32 logits alive at a time on a device: few enough to be small beside a layer's activations, enough
# to keep the matrix units busy.
LOGITS = 1 << 24


def log_probabilities(
    hidden: Float[Array, "B T D"],
    kernel: Float[Array, "V D"],
    targets: Int[Array | np.ndarray, "B T"],
    chunk: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Float32[Array, "B T"]:
    """log p(targets [B, T] | hidden [B, T, D]), float32 [B, T]; kernel [V, D] in hidden's dtype.

    `chunk` entries of the vocabulary at a time (default: so many that LOGITS logits are alive), forward and
    backward: a log-sum-exp that is extended part by part, and a gradient that computes the logits again.
    On a mesh each device keeps to its own part of a vocabulary that lies along "tensor", and only the
    part in use is gathered along "fsdp". scale: of the logits. softcap c: they are then c tanh(logits / c).
    """
    shards = mesh_module.current_parts("vocab")
    if chunk is None:
        local = hidden.shape[0] * hidden.shape[1] // mesh_module.current_parts("batch")
        chunk = max(128, LOGITS // max(1, local))
    split = shards, _parts(kernel.shape[0] // shards, chunk)
    return _log_probabilities(hidden, kernel, targets, split, Logits(scale, softcap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _log_probabilities(
    hidden: Array, kernel: Array, targets: Array, split: tuple[int, int], made: Logits
) -> Array:
    return _forward(hidden, kernel, targets, split, made)[0]


def _forward(
    hidden: Array, kernel: Array, targets: Array, split: tuple[int, int], made: Logits
) -> tuple[Array, tuple[Array, ...]]:
    def extend(
        carry: tuple[Array, Array, Array], part: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array, Array], None]:
        largest, total, chosen = carry
        weights, entries = part
        logits = _logits(hidden, weights, entries, made)
        higher = jnp.maximum(largest, logits.max((-2, -1)))
        summed = jnp.exp(logits - higher[..., None, None]).sum((-2, -1))
        total = total * jnp.exp(largest - higher) + summed
        # A comparison instead of an index: it stays where its part of the vocabulary is.
        here = targets[..., None, None] == entries
        chosen = chosen + jnp.where(here, logits, 0.0).sum((-2, -1))
        return (higher, total, chosen), None

    start = jnp.full(targets.shape, -jnp.inf), jnp.zeros(targets.shape), jnp.zeros(targets.shape)
    (largest, total, chosen), _ = jax.lax.scan(extend, start, _divide(kernel, split))
    normaliser = largest + jnp.log(total)
    return chosen - normaliser, (hidden, kernel, targets, normaliser)


def _backward(
    split: tuple[int, int], made: Logits, kept: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, None]:
    """d log p(v) / d logits = one-hot(v) - softmax."""
    hidden, kernel, targets, normaliser = kept

    def part(total: Array, part: tuple[Array, Array]) -> tuple[Array, Array]:
        weights, entries = part
        logits = _logits(hidden, weights, entries, made)
        softmax = jnp.exp(logits - normaliser[..., None, None])
        here = targets[..., None, None] == entries
        slope = cotangent[..., None, None] * (here - softmax)
        if made.softcap is not None:
            # The derivative of c tanh(l / c), in terms of its value; no entry has none.
            slope *= jnp.where(entries >= 0, 1 - (logits / made.softcap) ** 2, 0.0)
        if made.scale != 1.0:
            slope *= made.scale
        # Rounded to the inputs' dtype before the products, as in models/product.py.
        slope = slope.astype(hidden.dtype)
        to_kernel = _on_shards(summed("btgv,btd->gvd", slope, hidden), "embed")
        return total + summed("btgv,gvd->btd", slope, weights), to_kernel.astype(kernel.dtype)

    divided = _divide(kernel, split)
    to_hidden, parts = jax.lax.scan(part, jnp.zeros(hidden.shape, jnp.float32), divided)
    shards = split[0]
    parts = parts.swapaxes(0, 1).reshape(shards, -1, kernel.shape[1])
    to_kernel = parts[:, : kernel.shape[0] // shards].reshape(kernel.shape)
    return to_hidden.astype(hidden.dtype), to_kernel, None


_log_probabilities.defvjp(_forward, _backward)


def _logits(hidden: Array, weights: Array, entries: Array, made: Logits) -> Array:
    """[B, T, D], [shards, v, D] -> float32 [B, T, shards, v]; -inf where there is no entry."""
    weights = _on_shards(weights, None)
    logits = summed("btd,gvd->btgv", hidden, weights)
    if made.scale != 1.0:
        logits *= made.scale
    if made.softcap is not None:
        logits = made.softcap * jnp.tanh(logits / made.softcap)
    logits = jnp.where(entries >= 0, logits, -jnp.inf)
    return mesh_module.constrain(logits, ("batch", None, "vocab", None))


def _on_shards(weights: Array, width: str | None) -> Array:
    return mesh_module.constrain(weights, ("vocab", None, width))


def _divide(kernel: Array, split: tuple[int, int]) -> tuple[Array, Array]:
    """Kernel [V, D] -> [parts, shards, v, D] and the entries' numbers [parts, shards, v], -1 for none.

    Every part has v entries of each shard, so that all devices work on every part.
    """
    shards, parts = split
    size = kernel.shape[0] // shards
    fill = -size % parts
    kernel = jnp.pad(kernel.reshape(shards, size, -1), ((0, 0), (0, fill), (0, 0)))
    entries = jnp.arange(shards * size).reshape(shards, size)
    entries = jnp.pad(entries, ((0, 0), (0, fill)), constant_values=-1)
    divided = kernel.reshape(shards, parts, -1, kernel.shape[-1]).swapaxes(0, 1)
    return divided, entries.reshape(shards, parts, -1).swapaxes(0, 1)


def _parts(size: int, chunk: int) -> int:
    """Into how many parts to cut `size` entries so that none has more than `chunk`.

    Preferably equal ones: otherwise the kernel must be padded, which copies it.
    """
    fewest = -(-size // chunk)
    equal = (n for n in range(fewest, 2 * fewest + 1) if size % n == 0)
    return next(equal, fewest)
