"""Attention over prefix trees in blocks, in plain XLA: what `attention.attend` runs on CPUs and GPUs.

Flash attention (Dao et al., arXiv:2205.14135) with the blocks listed beforehand. In turn m each block of
queries takes the m-th block of keys of its list. Blocks with long lists work together, and blocks with
short lists do: a part takes as many turns as its longest list has entries. The backward pass computes
the weights again from the kept log-sum-exp.

Shapes: N blocks of b slots in each of B rows, n of these B N blocks in a part, G = H / K query heads a key
head.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from srpo_jax.models.attention.logits import Logits
from srpo_jax.models.attention.mask import Kept, TreeMask, from_blocks, platform, to_blocks
from srpo_jax.models.product import KEPT
from srpo_jax.models.product import summed as product

Array = jax.Array
# More parts leave fewer idle turns, and smaller products. Measured on CPUs only, where two blocks together
# were the fastest.
PARTS, TOGETHER = 4, 2


class Part(NamedTuple):
    """Blocks of queries that work together, int32 [n].

    place: among the rows' B N blocks. turns: how many blocks of keys each has to read.
    """

    place: Array
    turns: Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query: Array, key: Array, value: Array, mask: TreeMask, logits: Logits) -> Array:
    """See `attention.attend`."""
    out, _ = _forward(query, key, value, mask, logits)
    return out


def _forward(
    query: Array, key: Array, value: Array, mask: TreeMask, logits: Logits
) -> tuple[Array, Kept]:
    heads = key.shape[2]
    queries, keys, values = (_flat(to_blocks(x, heads, mask)) for x in (query, key, value))

    def attend_part(part: Part) -> tuple[Array, Array]:
        own = queries[part.place]

        def turn(m: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            largest, total, out = carry
            chosen, seen = _chosen(m, part, mask, own.shape)
            scores = _scores(own, keys[chosen], logits)
            higher = jnp.maximum(largest, jnp.where(seen, scores, -math.inf).max(-1))
            finite = jnp.where(jnp.isfinite(higher), higher, 0.0)
            weights = jnp.where(seen, jnp.exp(scores - finite[..., None]), 0.0)
            shrink = jnp.exp(largest - finite)
            added = product("nksc,nkcd->nksd", weights.astype(value.dtype), values[chosen])
            return higher, total * shrink + weights.sum(-1), out * shrink[..., None] + added

        shape = own.shape[:-1]
        start = jnp.full(shape, -math.inf), jnp.zeros(shape), jnp.zeros(own.shape)
        largest, total, out = jax.lax.fori_loop(0, part.turns.max(), turn, start)
        nothing = total == 0
        out = out / jnp.where(nothing, 1.0, total)[..., None]
        # Where nothing is seen, exp(scores - infinity) makes every weight of the backward pass zero.
        normaliser = largest + jnp.log(jnp.where(nothing, 1.0, total))
        return out.astype(query.dtype), jnp.where(nothing, math.inf, normaliser)

    parts, back = in_parts(mask)
    out, normaliser = (_join(x, back) for x in jax.lax.map(attend_part, parts))
    out = checkpoint_name(from_blocks(_rows(out, mask), query), KEPT)
    return out, Kept(query, key, value, mask, out, checkpoint_name(normaliser, KEPT))


def _backward(logits: Logits, kept: Kept, cotangent: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, mask, out, normaliser = kept
    heads, narrow = key.shape[2], query.dtype
    queries, keys, values, pulls = (
        _flat(to_blocks(x, heads, mask)) for x in (query, key, value, cotangent.astype(narrow))
    )
    # sum_c weight_c (d out / d weight_c) is out . cotangent, the same for all keys of a query.
    common = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    common = _flat(to_blocks(common, heads, mask))

    def pull_part(carry: tuple[Array, ...], part: Part) -> tuple[tuple[Array, ...], Array]:
        own, pull, shared, log_sum = (x[part.place] for x in (queries, pulls, common, normaliser))

        def turn(m: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            to_query, to_key, to_value = carry
            chosen, seen = _chosen(m, part, mask, own.shape)
            their_keys, their_values = keys[chosen], values[chosen]
            scores = _scores(own, their_keys, logits)
            weights = jnp.where(seen, jnp.exp(scores - log_sum[..., None]), 0.0)
            slope = weights * (product("nksd,nkcd->nksc", pull, their_values) - shared)
            if logits.softcap is not None:
                # The derivative of c tanh(s / c), in terms of its value.
                slope *= 1 - (scores / logits.softcap) ** 2
            slope = jnp.where(seen, slope, 0.0).astype(narrow)
            weights = weights.astype(narrow)
            to_query += product("nksc,nkcd->nksd", slope, their_keys)
            # Several blocks of queries may have chosen the same block of keys.
            to_value = to_value.at[chosen].add(product("nksc,nksd->nkcd", weights, pull))
            to_key = to_key.at[chosen].add(product("nksc,nksd->nkcd", slope, own))
            return to_query, to_key, to_value

        start = jnp.zeros(own.shape, jnp.float32), *carry
        to_query, *carry = jax.lax.fori_loop(0, part.turns.max(), turn, start)
        return tuple(carry), to_query

    parts, back = in_parts(mask)
    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (keys, values))
    (to_key, to_value), to_query = jax.lax.scan(pull_part, start, parts)
    to_query, to_key = _join(to_query, back) * logits.scale, to_key * logits.scale
    return (
        from_blocks(_rows(to_query.astype(narrow), mask), query),
        from_blocks(_rows(to_key.astype(narrow), mask), key),
        from_blocks(_rows(to_value.astype(narrow), mask), value),
        None,
    )


attend.defvjp(_forward, _backward)


def in_parts(mask: TreeMask) -> tuple[Part, Array]:
    """The blocks of queries by the length of their lists, [parts, n] each, and where each of them went.

    What is missing to equal parts is filled with blocks that have nothing to read.
    """
    count = mask.lists.key_count.reshape(-1)
    order = jnp.argsort(-count)
    parts = -(-count.size // TOGETHER) if platform() == "cpu" else PARTS
    fill = -count.size % parts
    part = Part(*(jnp.pad(x, (0, fill)).reshape(parts, -1) for x in (order, count[order])))
    return part, jnp.argsort(order)


def _join(parts: Array, back: Array) -> Array:
    """[parts, n, …] -> [B N, …] in the order of the rows."""
    return parts.reshape(-1, *parts.shape[2:])[back]


def _chosen(m: Array, part: Part, mask: TreeMask, shape: tuple[int, ...]) -> tuple[Array, Array]:
    """Turn m: the places of the blocks of keys [n], and bool [n, 1, G b, b], who sees whom.

    shape: of the part's queries, [n, K, G b, Hd].
    """
    number, block = mask.lists.keys.shape[1], mask.block
    block_of_row = part.place % number
    theirs = mask.lists.keys.reshape(-1, number)[part.place, m]
    chosen = part.place - block_of_row + theirs

    def query(words: Array) -> Array:  # [n, b, 1]
        return words.reshape(-1, block)[part.place][:, :, None]

    def key(words: Array) -> Array:  # [n, 1, b]
        return words.reshape(-1, block)[chosen][:, None, :]

    slots = jnp.broadcast_to(jnp.arange(mask.end.shape[1]), mask.end.shape)
    seen = (key(slots) <= query(slots)) & (query(slots) < key(mask.end))
    if mask.first is not None:
        seen &= key(mask.positions) >= query(mask.first)
    seen &= (m < part.turns)[:, None, None]
    return chosen, jnp.tile(seen[:, None], (1, 1, shape[2] // block, 1))


def _scores(queries: Array, keys: Array, logits: Logits) -> Array:
    """float32 [n, K, G b, b]."""
    scores = product("nksd,nkcd->nksc", queries, keys) * logits.scale
    return scores if logits.softcap is None else logits.softcap * jnp.tanh(scores / logits.softcap)


def _flat(blocks: Array) -> Array:
    """[B, N, …] -> [B N, …]."""
    return blocks.reshape(-1, *blocks.shape[2:])


def _rows(blocks: Array, mask: TreeMask) -> Array:
    """`_flat` undone."""
    return blocks.reshape(*mask.lists.key_count.shape, *blocks.shape[1:])
