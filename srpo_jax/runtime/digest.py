"""A digest of every bit of an array, the same however it is sharded and wherever it lies.

Each element's bits are multiplied by an odd number made from its index and summed modulo 2^32: integer
addition has no order, so no array needs to be gathered. One flipped bit always changes the sum.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}
_SPREAD = 2654435769  # Knuth's 2^32 / phi
_CHUNK = 1 << 22  # words of a numpy array at a time


def of(x: Any) -> int:
    """Of a jax array (also of keys; called by all processes that it lies on), a numpy array or a number."""
    if isinstance(x, jax.Array):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x = jax.random.key_data(x)
        return int(_of_array(x))
    return _of_numpy(np.asarray(x))


@jax.jit
def _of_array(x: jax.Array) -> jax.Array:
    if x.dtype == bool:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, _WORDS[x.dtype.itemsize])
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * jnp.uint32(size) + along
    # Multiplication by a constant and xor-shift spread neighbouring indices.
    index = index * jnp.uint32(_SPREAD)
    return jnp.sum(bits.astype(jnp.uint32) * ((index ^ (index >> 15)) | 1), dtype=jnp.uint32)


def _of_numpy(x: np.ndarray) -> int:
    words = np.ascontiguousarray(x).reshape(-1).view(_WORDS[x.dtype.itemsize])
    total = np.uint32(0)
    with np.errstate(over="ignore"):
        for start in range(0, len(words), _CHUNK):
            part = words[start : start + _CHUNK].astype(np.uint32)
            index = np.arange(start, start + len(part), dtype=np.uint64).astype(np.uint32)
            index *= np.uint32(_SPREAD)
            total += np.sum(
                part * ((index ^ (index >> np.uint32(15))) | np.uint32(1)), dtype=np.uint32
            )
    return int(total)
