"""Attention over prefix trees in blocks, in plain XLA: what `attention.attend` runs on CPUs and GPUs.

Flash attention (Dao et al., arXiv:2205.14135) with the blocks listed beforehand. All blocks of queries
work at once; in turn m each takes the m-th block of keys of its list, and the loop ends with the longest
list. The backward pass computes the weights again from the kept log-sum-exp.

Shapes: N blocks of b slots, G = H / K query heads a key head.
"""

import functools
import math

import jax
import jax.numpy as jnp

from srpo_jax.models.attention import Logits, TreeMask, Trees, from_blocks, sees, to_blocks

Array = jax.Array
product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query: Array, key: Array, value: Array, mask: TreeMask, logits: Logits) -> Array:
    """See `attention.attend`."""
    return _forward(query, key, value, mask, logits)[0]


def _forward(query: Array, key: Array, value: Array, mask: TreeMask, logits: Logits):
    heads = key.shape[2]
    queries, keys, values = (to_blocks(x, heads, mask) for x in (query, key, value))
    words = _words(mask)

    def turn(m: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        largest, total, out = carry
        chosen, their_words, there = _chosen(m, mask, words)
        scores, seen = _scores(
            queries, _take(keys, chosen), words, their_words, chosen, there, logits
        )
        higher = jnp.maximum(largest, jnp.where(seen, scores, -math.inf).max(-1))
        finite = jnp.where(jnp.isfinite(higher), higher, 0.0)
        weights = jnp.where(seen, jnp.exp(scores - finite[..., None]), 0.0)
        shrink = jnp.exp(largest - finite)
        added = product("bnksc,bnkcd->bnksd", weights.astype(value.dtype), _take(values, chosen))
        return (
            higher,
            total * shrink + weights.sum(-1),
            out * shrink[..., None] + added,
        )

    shape = queries.shape[:-1]
    start = jnp.full(shape, -math.inf), jnp.zeros(shape), jnp.zeros(queries.shape)
    largest, total, out = jax.lax.fori_loop(0, mask.count.max(), turn, start)
    nothing = total == 0
    out = out / jnp.where(nothing, 1.0, total)[..., None]
    # Where nothing is seen, exp(scores - infinity) makes every weight of the backward pass zero.
    normaliser = jnp.where(nothing, math.inf, largest + jnp.log(jnp.where(nothing, 1.0, total)))
    out = from_blocks(out.astype(query.dtype), query)
    return out, (query, key, value, mask, out, normaliser)


def _backward(logits: Logits, kept: tuple, cotangent: Array):
    query, key, value, mask, out, normaliser = kept
    heads, narrow = key.shape[2], query.dtype
    queries, keys, values = (to_blocks(x, heads, mask) for x in (query, key, value))
    pulls = to_blocks(cotangent.astype(narrow), heads, mask)
    words = _words(mask)
    # sum_c weight_c (d out / d weight_c) is out . cotangent, the same for all keys of a query.
    common = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    common = to_blocks(common, heads, mask)[..., 0]

    def turn(m: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        to_query, to_key, to_value = carry
        chosen, their_words, there = _chosen(m, mask, words)
        their_keys, their_values = _take(keys, chosen), _take(values, chosen)
        scores, seen = _scores(queries, their_keys, words, their_words, chosen, there, logits)
        weights = jnp.where(seen, jnp.exp(scores - normaliser[..., None]), 0.0)
        slope = weights * (product("bnksd,bnkcd->bnksc", pulls, their_values) - common[..., None])
        if logits.softcap is not None:
            slope *= 1 - (scores / logits.softcap) ** 2  # of c tanh(s / c), in terms of its value
        slope = jnp.where(seen, slope, 0.0).astype(narrow)
        weights = weights.astype(narrow)
        to_query += product("bnksc,bnkcd->bnksd", slope, their_keys)
        to_value = _add(to_value, chosen, product("bnksc,bnksd->bnkcd", weights, pulls))
        to_key = _add(to_key, chosen, product("bnksc,bnksd->bnkcd", slope, queries))
        return to_query, to_key, to_value

    start = tuple(jnp.zeros(x.shape, jnp.float32) for x in (queries, keys, values))
    to_query, to_key, to_value = jax.lax.fori_loop(0, mask.count.max(), turn, start)
    to_query, to_key = to_query * logits.scale, to_key * logits.scale
    return (
        from_blocks(to_query.astype(narrow), query),
        from_blocks(to_key.astype(narrow), key),
        from_blocks(to_value.astype(narrow), value),
        None,
    )


attend.defvjp(_forward, _backward)


def _chosen(m: Array, mask: TreeMask, words: Trees) -> tuple[Array, Trees, Array]:
    """Turn m: each block's block of keys [B, N], their words [B, N, b], and whether it has one."""
    chosen = mask.keys[:, :, m]
    their_words = jax.tree.map(lambda x: jnp.take_along_axis(x, chosen[..., None], axis=1), words)
    return chosen, their_words, m < mask.count


def _scores(
    queries: Array,
    keys: Array,
    words: Trees,
    their_words: Trees,
    chosen: Array,
    there: Array,
    logits: Logits,
) -> tuple[Array, Array]:
    """float32 [B, N, K, G b, b] and which of them count."""
    scores = product("bnksd,bnkcd->bnksc", queries, keys) * logits.scale
    if logits.softcap is not None:
        scores = logits.softcap * jnp.tanh(scores / logits.softcap)
    block = words.tree.shape[-1]
    own = jnp.arange(words.tree.shape[1])[:, None] * block + jnp.arange(block)  # [N, b]
    theirs = chosen[..., None] * block + jnp.arange(block)  # [B, N, b]
    seen = sees(words, their_words, logits.window) & (own[..., None] >= theirs[..., None, :])
    seen &= there[..., None, None]
    groups = queries.shape[-2] // block
    return scores, jnp.tile(seen[:, :, None], (1, 1, 1, groups, 1))


def _words(mask: TreeMask) -> Trees:
    return jax.tree.map(lambda x: x.reshape(x.shape[0], -1, mask.block), mask.trees)


def _take(blocks: Array, chosen: Array) -> Array:
    return jnp.take_along_axis(blocks, chosen[..., None, None, None], axis=1)


def _add(blocks: Array, chosen: Array, values: Array) -> Array:
    """blocks [B, N, …] with values [B, N, …] added to the blocks chosen [B, N], some more than once."""
    return blocks.at[jnp.arange(blocks.shape[0])[:, None], chosen].add(values)
