"""The order in which a TPU kernel takes the pairs of blocks of a row: one int32 a turn.

The grid's last axis counts the turns. A kernel asks here whose turn it is; the index maps of its inputs,
which only see the codes, ask `own_block` and `listed_block`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

Array = jax.Array
# What a kernel is given: an array in VMEM or SMEM that is read and written by index. Pallas has no type
# for it that a checker could use.
Ref = Any
SHIFT = 15  # of a turn's block; see `in_turn`


def in_turn(order: Array, count: Array) -> tuple[Array, Array]:
    """The turns of each row, int32 [B, N * N], and how many the row with most of them has.

    order [B, N, N] and count [B, N]: the lists. A turn is 2**SHIFT * block + 2 * block of its list,
    + 1 if there is something to compute: a block with an empty list has one turn too, to write zeros.
    """
    batch, number, _ = order.shape
    entries = jnp.arange(number)
    codes = (entries[:, None] << SHIFT) + 2 * order + (entries < count[..., None])
    listed = (entries < jnp.maximum(count, 1)[..., None]).reshape(batch, -1)
    first = jnp.argsort(~listed, axis=-1, stable=True)
    codes = jnp.take_along_axis(codes.reshape(batch, -1), first, axis=-1)
    totals = listed.sum(-1, keepdims=True)
    end = jnp.take_along_axis(codes, totals - 1, axis=-1)
    end -= end & 1
    return jnp.where(jnp.arange(codes.shape[1]) < totals, codes, end), totals.max()


def _code(turns: Ref, step: int | Array) -> Array:
    """What `in_turn` says of this turn, or of so many steps later; of the nearest one at the ends."""
    at = jnp.clip(pl.program_id(2) + step, 0, pl.num_programs(2) - 1)
    code: Array = turns[pl.program_id(0), at]
    return code


def own_block(code: Array) -> Array:
    return code >> SHIFT


def listed_block(code: Array) -> Array:
    return (code & ((1 << SHIFT) - 1)) >> 1


def blocks_of(turns: Ref) -> tuple[Array, Array]:
    """The block that the kernel works for, and the one whose turn it is."""
    code = _code(turns, 0)
    return own_block(code), listed_block(code)


def has_turn(turns: Ref) -> Array:
    return (_code(turns, 0) & 1) == 1


def is_first(turns: Ref) -> Array:
    """Is this the first turn of its block?"""
    own, before = _code(turns, 0) >> SHIFT, _code(turns, -1) >> SHIFT
    return (pl.program_id(2) == 0) | (own != before)


def is_last(turns: Ref) -> Array:
    own, after = _code(turns, 0) >> SHIFT, _code(turns, 1) >> SHIFT
    return (pl.program_id(2) == pl.num_programs(2) - 1) | (own != after)
