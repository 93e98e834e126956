"""Who sees whom in rows of packed prefix trees, and attention under it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from srpo_jax.models.product import einsum

Array = jax.Array


class TreeMask: ...


class Trees(NamedTuple):
    """Per slot, [B, S]: tree int32 (-1 for padding), node int32, ancestors uint32, positions int32."""

    tree: Array
    node: Array
    ancestors: Array
    positions: Array


def tree_mask(trees: Trees, *, kind: str = "auto") -> Array:
    """bool [B, S, S], True where the row slot sees the column slot.

    Slots are stored ancestors first, so "earlier on my own path" is: an earlier slot of my tree whose node
    is among my ancestors.
    """
    length = trees.node.shape[-1]
    earlier = jnp.tril(jnp.ones((length, length), bool))
    mine = (trees.ancestors[:, :, None] >> trees.node[:, None, :].astype(jnp.uint32)) & 1
    return earlier & (mine == 1) & (trees.tree[:, :, None] == trees.tree[:, None])


def attend(query: Array, key: Array, value: Array, mask: Array | TreeMask) -> Array:
    """Dense grouped-query attention; softmax in float32.

    query [B, S, H, Hd]; key, value [B, C, K, Hd]; mask [B, S, C], True where q sees k. A query that
    sees nothing (row padding) gets the mean of all values: finite, and never read by anyone.
    """
    assert isinstance(mask, jax.Array)
    batch, length, heads, head_dim = query.shape
    grouped = query.reshape(batch, length, key.shape[2], -1, head_dim)
    logits = einsum("bskgd,bckd->bkgsc", grouped, key, "float32")
    logits = jnp.where(mask[:, None, None], logits * head_dim**-0.5, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    out = einsum("bkgsc,bckd->bskgd", weights, value, query.dtype.name)
    return out.reshape(batch, length, heads, head_dim)
