"""Who sees whom in rows of packed prefix trees, and attention under it.

Three ways to compute the same thing:

    dense      the whole score matrix under a mask; memory grows with S^2
    blockwise  XLA, online softmax over blocks of keys; memory grows with S   (CPU, GPU)
    pallas     the same as a TPU kernel                                       (TPU)

The last two skip every pair of blocks in which no query sees any key: packed trees then cost what they
cost alone.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.errors import UserError
from srpo_jax.models.product import einsum
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
KINDS = ("auto", "dense", "blockwise", "pallas")
# A row this short is one product; beyond it the blocks that are skipped pay for the loop over the rest.
DENSE_UP_TO = 256
# The smaller a block, the less of what no one sees is computed; below this, products become too small.
BLOCK = {"blockwise": 96, "pallas": 256}  # at most
TILE = 16  # blocks are multiples of this: the rows of a TPU's tile of bfloat16


class Trees(NamedTuple):
    """The words that say who sees whom, one of each a slot, [B, S].

    tree int32: place of the slot's tree in its row, -1 for padding. node int32: the slot's node in its
    tree; ancestors uint32: bit i set where node i is that node or above it. positions int32: depth in the
    tree. first int32: the least position that the slot sees, where a window limits it. Slot q sees slot k
    if both are of one tree, k is not after q, and k's node is among q's ancestors.
    """

    tree: Array
    node: Array
    ancestors: Array
    positions: Array
    first: Array | None = None

    def within(self, window: Array | int) -> "Trees":
        """Slots see only keys less than `window` positions back along their path."""
        return self._replace(first=self.positions - window + 1)


class Logits(NamedTuple):
    """What is done to the products of queries and keys; see `attend`."""

    scale: float
    softcap: float | None


@flax.struct.dataclass
class TreeMask:
    """`Trees` cut into blocks, with the pairs of blocks that must be computed.

    trees: padded to N * block slots. keys int32 [B, N, N]: for each block of queries the blocks of keys
    in which any of its slots sees any slot, first; count int32 [B, N]: how many those are. queries,
    query_count: for each block of keys the blocks of queries that see it.
    """

    trees: Trees
    keys: Array
    count: Array
    queries: Array
    query_count: Array
    kind: str = flax.struct.field(pytree_node=False)
    block: int = flax.struct.field(pytree_node=False)

    def within(self, window: Array | int) -> "TreeMask":
        """`Trees.within`. The lists stay as they are: blocks beyond the window are computed and hidden."""
        return dataclasses.replace(self, trees=self.trees.within(window))


def sees(query: Trees, key: Trees) -> Array:
    """bool [..., Q, C] from words [..., Q] and [..., C]; the order of slots is the caller's."""
    rows, columns = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
    above = (rows(query.ancestors) >> columns(key.node).astype(jnp.uint32)) & 1
    seen = (rows(query.tree) == columns(key.tree)) & (above == 1)
    if query.first is not None:
        seen &= columns(key.positions) >= rows(query.first)
    return seen


def dense_mask(trees: Trees) -> Array:
    """bool [B, S, S], True where the row slot sees the column slot."""
    slots = jnp.arange(trees.tree.shape[-1])
    return sees(trees, trees) & (slots[:, None] >= slots)


def tree_mask(trees: Trees, *, kind: str = "auto", block: int | None = None) -> Array | TreeMask:
    """The mask that `attend` takes: to be made once, outside the layers.

    kind: one of KINDS; "auto" is pallas on TPUs, elsewhere dense for short rows and blockwise for longer
    ones. Raises UserError for another kind.
    """
    if kind not in KINDS:
        raise UserError(f"config.model.attention={kind!r} is none of {', '.join(KINDS)}")
    length = trees.tree.shape[-1]
    if kind == "auto":
        short = "dense" if length <= DENSE_UP_TO else "blockwise"
        kind = "pallas" if jax.default_backend() == "tpu" else short
    if kind == "dense":
        return dense_mask(trees)
    if block is None:
        # As few blocks as there must be, all of one size, and as little padding as that leaves.
        number = -(-length // BLOCK[kind])
        block = -(-length // (number * TILE)) * TILE
    fill = -length % block
    padded = jax.tree.map(lambda words: jnp.pad(words, ((0, 0), (0, fill))), trees)
    trees = padded._replace(tree=jnp.pad(trees.tree, ((0, 0), (0, fill)), constant_values=-1))
    return TreeMask(trees, *_visible(trees, block), kind, block)


def attend(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | TreeMask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """Grouped-query attention, [B, S, H, Hd]; softmax and sums in float32, products in the inputs' dtype.

    query [B, S, H, Hd]; key, value [B, C, K, Hd], K a divisor of H. mask: bool [B, S, C], or a TreeMask
    for C = S. scale of the logits: by default Hd**-0.5. softcap c: logits become c tanh(logits / c).
    A query that sees nothing (row padding) gets something finite.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not isinstance(mask, TreeMask):
        return dense(query, key, value, mask, scale, softcap)
    # Imported here because both modules build on this one.
    from srpo_jax.models import attention_blockwise, attention_pallas

    module = attention_pallas if mask.kind == "pallas" else attention_blockwise
    program = functools.partial(module.attend, logits=Logits(scale, softcap))
    return _on_mesh(program)(query, key, value, mask)


def attend_cached(
    query: Array,
    parts: Sequence[tuple[Array, Array]],
    mask: Array,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Array:
    """`attend` with a cache's keys [B, K, Hd, C] and values [B, K, C, Hd] under a bool mask [B, S, C].

    parts: of the cache; C counts the slots of all.
    """
    batch, length, heads, head_dim = query.shape
    kv_heads = parts[0][0].shape[1]
    grouped = query.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, -1, head_dim)  # a key head's queries: one product
    logits = [einsum("bkqd,bkdc->bkqc", grouped, keys, "float32") for keys, _ in parts]
    joined = jnp.concatenate(logits, -1) * (head_dim**-0.5 if scale is None else scale)
    if softcap is not None:
        joined = softcap * jnp.tanh(joined / softcap)
    seen = jnp.tile(mask, (1, heads // kv_heads, 1))[:, None]
    joined = jnp.where(seen, joined, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(joined, axis=-1).astype(parts[0][1].dtype)
    ends = np.cumsum([values.shape[2] for _, values in parts])[:-1]
    out = sum(
        einsum("bkqc,bkcd->bkqd", weight, values, "float32")
        for weight, (_, values) in zip(jnp.split(weights, ends, -1), parts, strict=True)
    )
    out = jnp.asarray(out, query.dtype).reshape(batch, kv_heads, -1, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def dense(
    query: Array, key: Array, value: Array, mask: Array, scale: float, softcap: float | None
) -> Array:
    """The definition that the others are tested against; see `attend`."""
    keys, values = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
    return attend_cached(query, [(keys, values)], mask, scale=scale, softcap=softcap)


def to_blocks(x: Array, heads: int, mask: TreeMask) -> Array:
    """[B, S, H, Hd] -> [B, N, heads, H / heads * b, Hd]: a key head's query heads, one after the other."""
    batch, length, _, size = x.shape
    x = jnp.pad(x, ((0, 0), (0, mask.trees.tree.shape[1] - length), (0, 0), (0, 0)))
    x = x.reshape(batch, -1, mask.block, heads, x.shape[2] // heads, size)
    x = x.transpose(0, 1, 3, 4, 2, 5)
    return x.reshape(*x.shape[:3], -1, size)


def from_blocks(x: Array, like: Array) -> Array:
    """`to_blocks` undone, for an array of the shape of `like`."""
    batch, length, heads, size = like.shape
    number, kv_heads = x.shape[1:3]
    x = x.reshape(batch, number, kv_heads, heads // kv_heads, -1, size).transpose(0, 1, 4, 2, 3, 5)
    return x.reshape(batch, -1, heads, size)[:, :length]


def _visible(trees: Trees, block: int) -> tuple[Array, Array, Array, Array]:
    """The lists of TreeMask, exact; one block of queries at a time, so that [B, S, S] never exists."""
    batch, length = trees.tree.shape
    number = length // block
    split = jax.tree.map(lambda x: x.reshape(batch, number, block).swapaxes(0, 1), trees)
    slots = jnp.arange(length)

    def one(inputs: tuple[Trees, Array]) -> Array:
        words, own = inputs
        seen = sees(words, trees) & (own[:, None] >= slots)
        return seen.reshape(batch, block, number, block).any((1, 3))

    seen = jax.lax.map(one, (split, slots.reshape(number, block))).swapaxes(0, 1)  # [B, N, N]

    def listed(seen: Array) -> tuple[Array, Array]:
        return jnp.argsort(~seen, axis=-1, stable=True).astype(jnp.int32), seen.sum(-1)

    return *listed(seen), *listed(seen.swapaxes(1, 2))


def _on_mesh(program):
    """Each device attends for its own rows and heads: nothing for the partitioner to decide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return program
    heads = mesh_module.spec(("batch", None, "heads", None))
    rows = mesh_module.spec(("batch",))
    return jax.shard_map(
        program, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
