"""Attention over prefix trees as TPU kernels: what `attention.attend` runs there.

Flash attention (Dao et al., arXiv:2205.14135) over the block lists of the mask: the grid's last axis
takes a row's pairs of blocks in turn, all of one block's before the next one's, and is as long as the
row with most of them needs; other rows repeat their last pair, which is not fetched again, and compute
nothing. Who sees whom within a block is computed in the kernel from one word of each key. The backward
pass is two kernels: one goes over the keys of a block of queries, the other over the queries of a block of
keys, there with all matrices transposed, so that no product contracts over rows.

Shapes: N blocks of b slots, G = H / K query heads a key head, whose rows stand one below the other.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from srpo_jax.models.attention.logits import Logits
from srpo_jax.models.attention.mask import Kept, TreeMask, from_blocks, to_blocks
from srpo_jax.models.attention.turns import (
    Ref,
    blocks_of,
    has_turn,
    in_turn,
    is_first,
    is_last,
    listed_block,
    own_block,
)
from srpo_jax.models.product import KEPT, precision

Array = jax.Array
LANES = 128
# Added to the logit of what is not seen; finite, so that differences are. A largest logit is never below
# LEAST, so what is not seen has weight exp(NOTHING - LEAST) = 0.
NOTHING, LEAST = -1e30, -1e29
VMEM = 48 << 20  # bytes; v5e, v5p and v6e have 128 MiB, of which the compiler gives 16 unasked
# The words of a key; a query has one, the least position it sees, and that where a window limits it.
END, POSITION = range(2)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(query: Array, key: Array, value: Array, mask: TreeMask, logits: Logits) -> Array:
    """See `attention.attend`."""
    out, _ = _forward(query, key, value, mask, logits)
    return out


def _forward(
    query: Array, key: Array, value: Array, mask: TreeMask, logits: Logits
) -> tuple[Array, Kept]:
    queries, keys, values = (to_blocks(x, key.shape[2], mask) for x in (query, key, value))
    height, size = queries.shape[-2:]
    lanes = mask.block if mask.block % LANES else LANES
    out, normaliser = _call(
        functools.partial(_forward_kernel, logits=logits),
        mask.lists[:2],
        mine=(_limits(mask, -1), queries),
        theirs=(_words(mask).swapaxes(-1, -2), keys, values),
        out=(((height, size), query.dtype), ((height, 1), jnp.float32)),
        scratch=((height, LANES), (height, lanes), (height, size)),
    )
    out = from_blocks(out, query)
    out, normaliser = (checkpoint_name(x, KEPT) for x in (out, normaliser))
    return out, Kept(query, key, value, mask, out, normaliser)


def _backward(logits: Logits, kept: Kept, cotangent: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, mask, out, normaliser = kept
    cotangent = cotangent.astype(query.dtype)
    queries, keys, values, pulls = (
        to_blocks(x, key.shape[2], mask) for x in (query, key, value, cotangent)
    )
    # sum_c weight_c (d out / d weight_c) is out . cotangent, the same for all keys of a query.
    common = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)
    common = to_blocks(common, key.shape[2], mask)
    height, size = queries.shape[-2:]
    (to_query,) = _call(
        functools.partial(_query_kernel, logits=logits),
        mask.lists[:2],
        mine=(_limits(mask, -1), queries, pulls, normaliser, common),
        theirs=(_words(mask).swapaxes(-1, -2), keys, values),
        out=(((height, size), query.dtype),),
        scratch=((height, size),),
    )
    to_key, to_value = _call(
        functools.partial(_key_kernel, logits=logits),
        mask.lists[2:],
        mine=(_words(mask), keys, values),
        theirs=(
            _limits(mask, -2),
            queries,
            pulls,
            *(x.swapaxes(-1, -2) for x in (normaliser, common)),
        ),
        out=(((mask.block, size), key.dtype), ((mask.block, size), value.dtype)),
        scratch=((mask.block, size), (mask.block, size)),
    )
    return (
        from_blocks(to_query, query),
        from_blocks(to_key, key),
        from_blocks(to_value, value),
        None,
    )


attend.defvjp(_forward, _backward)


def _forward_kernel(
    turns: Ref,
    limits: Ref | None,
    queries: Ref,
    words: Ref,
    keys: Ref,
    values: Ref,
    out: Ref,
    normaliser: Ref,
    *scratch: Ref,
    logits: Logits,
) -> None:
    largest, total, sums = scratch
    lanes = total.shape[1]

    @pl.when(is_first(turns))
    def _start() -> None:
        largest[...] = jnp.full_like(largest, LEAST)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(has_turn(turns))
    def _turn() -> None:
        unseen = _unseen(turns, limits, words)
        block = unseen.shape[0]
        heads = [pl.ds(i * block, block) for i in range(queries.shape[0] // block)]
        # Step by step over the heads, so that one's products overlap with another's exponentials.
        scores = [_scores(_dot_t(queries[head, :], keys[...]), logits) + unseen for head in heads]
        before = [largest[head, :1] for head in heads]
        higher = [
            jnp.maximum(b, s.max(axis=-1, keepdims=True))
            for b, s in zip(before, scores, strict=True)
        ]
        weights = [jnp.exp(s - h) for s, h in zip(scores, higher, strict=True)]
        shrink = [jnp.exp(b - h) for b, h in zip(before, higher, strict=True)]
        product = [_dot(w.astype(values.dtype), values[...]) for w in weights]
        for i, head in enumerate(heads):
            largest[head, :] = jnp.broadcast_to(higher[i], (block, LANES))
            # Lane by lane: adding up across lanes costs more, and is done once, at the end.
            parts = jnp.split(weights[i], weights[i].shape[1] // lanes, axis=1)
            total[head, :] = total[head, :] * shrink[i] + sum(parts)
            sums[head, :] = sums[head, :] * shrink[i] + product[i]

    @pl.when(is_last(turns))
    def _end() -> None:
        summed = total[...].sum(axis=-1, keepdims=True)
        nothing = summed == 0.0
        safe = jnp.where(nothing, 1.0, summed)
        out[...] = (sums[...] / safe).astype(out.dtype)
        # Where nothing is seen, this makes every weight of the backward pass zero.
        normaliser[...] = jnp.where(nothing, -NOTHING, largest[:, :1] + jnp.log(safe))


def _query_kernel(
    turns: Ref,
    limits: Ref | None,
    queries: Ref,
    pulls: Ref,
    normaliser: Ref,
    common: Ref,
    words: Ref,
    keys: Ref,
    values: Ref,
    to_query: Ref,
    sums: Ref,
    *,
    logits: Logits,
) -> None:
    @pl.when(is_first(turns))
    def _start() -> None:
        sums[...] = jnp.zeros_like(sums)

    @pl.when(has_turn(turns))
    def _turn() -> None:
        scores = _scores(_dot_t(queries[...], keys[...]), logits)
        unseen = _tall(_unseen(turns, limits, words), scores)
        weights = jnp.exp(scores + unseen - normaliser[...])
        slope = weights * (_dot_t(pulls[...], values[...]) - common[...])
        sums[...] += _dot(_through(slope, scores, logits).astype(keys.dtype), keys[...])

    @pl.when(is_last(turns))
    def _end() -> None:
        to_query[...] = (sums[...] * logits.scale).astype(to_query.dtype)


def _key_kernel(
    turns: Ref,
    words: Ref,
    keys: Ref,
    values: Ref,
    limits: Ref | None,
    queries: Ref,
    pulls: Ref,
    normaliser: Ref,
    common: Ref,
    to_key: Ref,
    to_value: Ref,
    key_sums: Ref,
    value_sums: Ref,
    *,
    logits: Logits,
) -> None:
    @pl.when(is_first(turns))
    def _start() -> None:
        key_sums[...] = jnp.zeros_like(key_sums)
        value_sums[...] = jnp.zeros_like(value_sums)

    @pl.when(has_turn(turns))
    def _turn() -> None:
        scores = _scores(_dot_t(keys[...], queries[...]), logits)  # [b, G b]
        unseen = _unseen_by(turns, limits, words)
        unseen = jnp.concatenate([unseen] * (scores.shape[1] // unseen.shape[1]), axis=1)
        weights = jnp.exp(scores + unseen - normaliser[...])
        value_sums[...] += _dot(weights.astype(pulls.dtype), pulls[...])
        slope = weights * (_dot_t(values[...], pulls[...]) - common[...])
        key_sums[...] += _dot(_through(slope, scores, logits).astype(queries.dtype), queries[...])

    @pl.when(is_last(turns))
    def _end() -> None:
        to_key[...] = (key_sums[...] * logits.scale).astype(to_key.dtype)
        to_value[...] = value_sums[...].astype(to_value.dtype)


def _dot(a: Array, b: Array) -> Array:
    return jax.lax.dot(a, b, precision=precision(a, b), preferred_element_type=jnp.float32)


def _dot_t(a: Array, b: Array) -> Array:
    """a b^T."""
    contract = (((1,), (1,)), ((), ()))
    exact = precision(a, b)
    return jax.lax.dot_general(a, b, contract, exact, preferred_element_type=jnp.float32)


def _scores(products: Array, logits: Logits) -> Array:
    scores = products * logits.scale
    if logits.softcap is not None:
        scores = logits.softcap * jnp.tanh(scores / logits.softcap)
    return scores


def _through(slope: Array, scores: Array, logits: Logits) -> Array:
    """The slope before the soft cap; the derivative of c tanh(s / c) in terms of its value."""
    if logits.softcap is None:
        return slope
    return slope * (1 - (scores / logits.softcap) ** 2)


def _unseen(turns: Ref, limits: Ref | None, words: Ref) -> Array:
    """float32 [b, b]: 0 where a query (row) of this block sees a key (column) whose turn it is, or NOTHING.

    limits: [b, 1], what `_limits` gives, or None; words: [words, b] of the keys.
    """
    block = words.shape[1]
    own, theirs = blocks_of(turns)
    query = own * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    key = theirs * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
    seen = (key <= query) & (query < words[END : END + 1, :])
    if limits is not None:
        seen &= words[POSITION : POSITION + 1, :] >= limits[...]
    return jnp.where(seen, 0.0, NOTHING)


def _unseen_by(turns: Ref, limits: Ref | None, words: Ref) -> Array:
    """The transpose: a key of this block is a row, a query whose turn it is a column.

    limits: [1, b] or None; words: [b, words].
    """
    block = words.shape[0]
    own, theirs = blocks_of(turns)
    key = own * block + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
    query = theirs * block + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
    seen = (key <= query) & (query < words[:, END : END + 1])
    if limits is not None:
        seen &= words[:, POSITION : POSITION + 1] >= limits[...]
    return jnp.where(seen, 0.0, NOTHING)


def _tall(unseen: Array, scores: Array) -> Array:
    """The same for each of the G query heads, one below the other."""
    return jnp.concatenate([unseen] * (scores.shape[0] // unseen.shape[0]), axis=0)


def _words(mask: TreeMask) -> Array:
    """What a key is seen by, int32 [B, N, b, words]: its end and, where there is a window, its position."""
    words = [mask.end] if mask.first is None else [mask.end, mask.positions]
    return jnp.stack([x.reshape(x.shape[0], -1, mask.block) for x in words], axis=-1)


def _limits(mask: TreeMask, axis: int) -> Array | None:
    """The least position that a query sees, int32 [B, N, b, 1] or, with axis -2, [B, N, 1, b]."""
    if mask.first is None:
        return None
    return jnp.expand_dims(mask.first.reshape(mask.first.shape[0], -1, mask.block), axis)


def _call(
    kernel: Any,
    lists: tuple[Array, Array],
    *,
    mine: Sequence[Array | None],
    theirs: Sequence[Array | None],
    out: Sequence[tuple[tuple[int, int], Any]],
    scratch: Sequence[tuple[int, int]],
) -> Sequence[Array]:
    """Runs a kernel for every block of every row and key head, over the blocks of its list.

    lists: [B, N, N] and how long each is [B, N]. mine: arrays [B, N, K, r, c], or [B, N, r, c] for all
    heads, of which the kernel sees the block it works for; theirs: of which it sees the block whose turn
    it is. None among them is None to the kernel. out: shape and dtype of a block of each result
    [B, N, K, r, c].
    """
    batch, number = lists[1].shape
    turns, longest = in_turn(*lists)

    def own(b: Array, h: Array, t: Array, turns: Ref) -> tuple[Any, ...]:
        return b, own_block(turns[b, t]), h, 0, 0

    def turn(b: Array, h: Array, t: Array, turns: Ref) -> tuple[Any, ...]:
        return b, listed_block(turns[b, t]), h, 0, 0

    inputs = [(x, own) for x in mine] + [(x, turn) for x in theirs]
    given = [(x, index) for x, index in inputs if x is not None]
    heads = next(x.shape[2] for x, _ in given if x.ndim == 5)

    def run(turns: Ref, *refs: Ref) -> None:
        rest = iter(refs)
        kernel(turns, *(None if x is None else next(rest) for x, _ in inputs), *rest)

    def spec(x: Array, index: Any) -> pl.BlockSpec:
        if x.ndim == 4:
            shared = lambda *at: (*index(*at)[:2], 0, 0)
            return pl.BlockSpec((None, None, *x.shape[2:]), shared)
        return pl.BlockSpec((None, None, None, *x.shape[3:]), index)

    results: Sequence[Array] = pl.pallas_call(
        run,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch, heads, longest),
            in_specs=[spec(x, index) for x, index in given],
            out_specs=[pl.BlockSpec((None, None, None, *block), own) for block, _ in out],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=[
            jax.ShapeDtypeStruct((batch, number, heads, *block), dtype) for block, dtype in out
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=VMEM,
        ),
        name=kernel.func.__name__.strip("_"),
    )(turns, *(x for x, _ in given))
    return results
