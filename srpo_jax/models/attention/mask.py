"""Who sees whom in rows of packed prefix trees: one word a slot, and the pairs of blocks to compute.

A row holds its trees depth first, so the slots that descend from a slot stand directly behind it:

    slot     0  1  2  3  4  5  6  7      x x ─┬─ a ─┬─ b b        slot q sees slot k exactly when
    token    x  x  a  b  b  c  d  d           │     └─ c
    end      8  8  6  5  5  6  8  8           └─ d d                   k <= q < end[k]

`end[k]` is the slot behind the last one that descends from k. Padding has end 0: no one sees it.
"""

import contextlib
import contextvars
import dataclasses
import typing
from collections.abc import Iterator
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from srpo_jax.runtime.errors import UserError

Array = jax.Array
Words = Int[Array | np.ndarray, "B S"]
KINDS = ("auto", "dense", "blockwise", "pallas")
# A row this short is one product; in longer ones the blocks skipped pay for the loop over the rest.
DENSE_UP_TO = 256
# The smaller a block, the less of what no one sees is computed; below this, products become too small.
BLOCK = {"blockwise": 96, "pallas": 256}  # at most
TILE = 16  # blocks are multiples of this: the rows of a TPU's tile of bfloat16


_LOWERED_FOR: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def lowered_for(name: str) -> Iterator[None]:
    """Within it, programs are traced as on machines of this kind: cpu, gpu or tpu. For `planning`."""
    token = _LOWERED_FOR.set(name)
    try:
        yield
    finally:
        _LOWERED_FOR.reset(token)


def platform() -> str:
    """What attention is computed for."""
    return _LOWERED_FOR.get() or jax.default_backend()


class BlockLists(NamedTuple):
    """The pairs of blocks that must be computed, from both sides, for N blocks of a row.

    keys int32 [B, N, N]: for each block of queries the blocks of keys that it must read, first; key_count
    int32 [B, N]: how many those are. queries, query_count: for each block of keys the blocks of queries.
    """

    keys: Array
    key_count: Array
    queries: Array
    query_count: Array


@typing.no_type_check  # not in tests either: JAX builds it of whatever stands for arrays
@flax.struct.dataclass
class TreeMask:
    """The mask of rows that are attended to in blocks.

    end, positions: int32 [B, N * block], padded from S slots; positions are depths in the tree.
    first: int32 [B, N * block], the least position that a slot sees, where a window limits it.
    """

    end: Array
    positions: Array
    lists: BlockLists
    first: Array | None = None
    kind: str = flax.struct.field(pytree_node=False, default="blockwise")
    block: int = flax.struct.field(pytree_node=False, default=BLOCK["blockwise"])

    def within(self, window: Array | int) -> "TreeMask":
        """Slots see only keys less than `window` positions back along their path.

        Blocks that lie wholly outside the window of a whole block are no longer listed.
        """
        lists = _lists(self.end, self.positions, self.block, window)
        return dataclasses.replace(self, first=self.positions - window + 1, lists=lists)


class Kept(NamedTuple):
    """What the backward pass needs: the inputs, the output and each query's log-sum-exp.

    query, out: [B, S, H, Hd]; key, value: [B, S, K, Hd]; normaliser: float32, in the backend's own order.
    """

    query: Array
    key: Array
    value: Array
    mask: TreeMask
    out: Array
    normaliser: Array


def dense_mask(end: Words) -> Bool[Array, "B S S"]:
    """bool [B, S, S] of end int32 [B, S], True where the row slot sees the column slot."""
    slots = jnp.arange(end.shape[-1])
    return (slots <= slots[:, None]) & (slots[:, None] < end[..., None, :])


def tree_mask(
    end: Words,
    positions: Words,
    *,
    kind: str = "auto",
    block: int | None = None,
) -> Bool[Array, "B S S"] | TreeMask:
    """The mask that `attend` takes: to be made once, outside the layers.

    end, positions: int32 [B, S]. kind: one of KINDS; "auto" is pallas on TPUs, elsewhere dense for short
    rows and blockwise for longer ones. Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"config.model.attention={kind!r} is none of {', '.join(KINDS)}")
    length = end.shape[-1]
    if kind == "auto":
        short = "dense" if length <= DENSE_UP_TO else "blockwise"
        kind = "pallas" if platform() == "tpu" else short
    if kind == "dense":
        return dense_mask(end)
    if block is None:
        # As few blocks as there must be, all of one size, and as little padding as that leaves.
        number = -(-length // BLOCK[kind])
        block = -(-length // (number * TILE)) * TILE
    fill = -length % block
    end, positions = (jnp.pad(words, ((0, 0), (0, fill))) for words in (end, positions))
    return TreeMask(end, positions, _lists(end, positions, block), kind=kind, block=block)


def to_blocks(x: Array, heads: int, mask: TreeMask) -> Array:
    """[B, S, H, Hd] -> [B, N, heads, H / heads * b, Hd]: a key head's query heads, one after the other."""
    batch, length, _, size = x.shape
    x = jnp.pad(x, ((0, 0), (0, mask.end.shape[1] - length), (0, 0), (0, 0)))
    x = x.reshape(batch, -1, mask.block, heads, x.shape[2] // heads, size)
    x = x.transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(*x.shape[:3], -1, size)


def from_blocks(x: Array, like: Array) -> Array:
    """`to_blocks` undone, for an array of the shape of `like`."""
    batch, length, heads, size = like.shape
    number, kv_heads = x.shape[1:3]
    x = x.reshape(batch, number, kv_heads, heads // kv_heads, -1, size).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(batch, -1, heads, size)[:, :length]


def _lists(
    end: Array, positions: Array, block: int, window: Array | int | None = None
) -> BlockLists:
    """The lists from a few numbers a block; without a window they are exact.

    Some slot of a block of queries sees some slot of an earlier block of keys exactly when its first slot
    does, that is, when the largest `end` of those keys lies behind it. With a window, the least position of
    the queries is compared with the largest of the keys.
    """
    batch, length = end.shape
    split = (batch, length // block, block)
    begins = jnp.arange(0, length, block)
    seen = begins[:, None] < end.reshape(split).max(-1)[:, None, :]
    seen &= begins[:, None] >= begins
    if window is not None:
        used = end > 0
        lowest = jnp.where(used, positions, np.iinfo(np.int32).max).reshape(split).min(-1)
        highest = jnp.where(used, positions, -1).reshape(split).max(-1)
        seen &= lowest[..., None] - highest[:, None, :] < window

    def listed(seen: Array) -> tuple[Array, Array]:
        return jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32), seen.sum(-1)

    return BlockLists(*listed(seen), *listed(seen.swapaxes(1, 2)))
