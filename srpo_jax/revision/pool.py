"""Continuous batching: rows of a batch whose completion is done take up new prompts while others go on.

A pool has B rows. Each holds what its completion follows, in two parts of the cache, and a completion as
far as it is decoded. `answer` puts direct prompts into some of the rows and `improve` improve prompts, R
at a time; `decode` goes on with all of them until some are done. These three programs serve all prompts of
a shape (revision/plan.py) and any number of revisions.

Shapes: B rows of the pool, R rows that are put into it, P and M slots of the cache's parts, C = P + M, G
new tokens, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from srpo_jax.models.cache import Cache
from srpo_jax.revision import programs
from srpo_jax.revision.plan import Shape
from srpo_jax.revision.programs import Decoding, Model, Rows, Start
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array


@flax.struct.dataclass
class Pool:
    """cache: of the prompts, C slots a row. at: of the completions."""

    cache: Cache
    at: Decoding


@functools.partial(jax.jit, static_argnames=("rows", "shape", "sampling"))
def empty(model: Model, *, rows: int, shape: Shape, sampling: Sampling) -> Pool:
    """A pool whose rows are all done, with nothing in them."""
    new, config = sampling.max_new_tokens, model.merged().config
    unrolled = model.layers is not None
    key_size = jax.random.key_data(jax.random.key(0)).shape
    with programs.on_mesh(model.mesh):
        at = Decoding(
            valid=jnp.zeros((rows, sum(shape)), bool),
            positions=jnp.zeros(rows, jnp.int32),
            streams=jnp.zeros((rows, new, *key_size), jnp.uint32),
            tokens=jnp.zeros((rows, new), jnp.int32),
            logps=None,
            counts=jnp.ones(rows, jnp.int32),
            done=jnp.ones(rows, bool),
            clock=jnp.int32(0),
            cache=Cache.zeros(config, rows, new, unrolled),
        )
        return Pool(Cache.zeros(config, rows, sum(shape), unrolled), _by_row(at))


@functools.partial(jax.jit, static_argnames=("sampling", "stops"), donate_argnames="pool")
def answer(
    model: Model,
    pool: Pool,
    rows: Rows[Array],
    start: Start[Array],
    into: Array,
    *,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Pool:
    """The pool, donated, with direct prompts [R, P] and their first tokens in its rows `into`.

    into: int32 [R]; a prompt for a row that the pool does not have (B) only fills up the number.
    """
    width = rows.tokens.shape[1]
    logits, part = programs.prefill(model, dataclasses.replace(rows, valid=rows.valid[:, :width]))
    with programs.on_mesh(model.mesh):
        cache = _put(pool.cache, part, into, slice(width))
        return Pool(cache, _begun(pool.at, logits, start, into, sampling, stops))


@functools.partial(jax.jit, static_argnames=("sampling", "stops"), donate_argnames="pool")
def improve(
    model: Model,
    pool: Pool,
    rows: Rows[Array],
    start: Start[Array],
    into: Array,
    *,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Pool:
    """The same with what improve prompts have, [R, M], that the rows' first parts lack."""
    slots, width = start.valid.shape[1], rows.tokens.shape[1]
    with programs.on_mesh(model.mesh):
        part = _take(pool.cache, into)
    logits, part = programs.extend(model, part, rows)
    with programs.on_mesh(model.mesh):
        cache = _put(pool.cache, part, into, slice(slots - width, slots))
        return Pool(cache, _begun(pool.at, logits, start, into, sampling, stops))


@functools.partial(jax.jit, static_argnames=("sampling", "stops"), donate_argnames="pool")
def decode(
    model: Model, pool: Pool, wait: Array | int, *, sampling: Sampling, stops: tuple[int, ...]
) -> Pool:
    """The pool, donated, once at least `wait` of its rows are done, those that were so before counted."""
    with programs.on_mesh(model.mesh):
        at = programs.decode_on(model, pool.cache, pool.at, wait, sampling, stops)
        return Pool(pool.cache, at)


def _begun(
    at: Decoding,
    logits: Array,
    start: Start[Array],
    into: Array,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Decoding:
    """With first tokens [R] in rows `into`; what their ring holds of earlier completions is not seen."""
    fresh = programs.first_tokens(logits, start, at.cache, sampling, stops)
    names = ("valid", "positions", "streams", "tokens", "counts", "done")
    changed: dict[str, Any] = {
        name: getattr(at, name).at[into].set(getattr(fresh, name), mode="drop") for name in names
    }
    return _by_row(dataclasses.replace(at, **changed))


def _by_row(at: Decoding) -> Decoding:
    """Every process has its own rows, as of the cache."""

    def split(x: Any) -> Any:
        if x is None:
            return None
        return mesh_module.constrain(x, ("batch", *(None,) * (x.ndim - 1))) if x.ndim else x

    split_up: dict[str, Any] = {
        field.name: split(getattr(at, field.name))
        for field in dataclasses.fields(at)
        if field.name != "cache"
    }
    return dataclasses.replace(at, **split_up)


def _take(cache: Cache, rows: Array) -> Cache:
    """The cache's rows [R]; a row that it does not have is some other."""

    def of(x: Array, batch: int) -> Array:
        axes = ("layers",) * batch + ("batch", "kv_heads", None, None)
        taken = jnp.take(x, rows, axis=batch, mode="clip")
        return mesh_module.constrain(taken, axes if x.ndim > 2 else ("batch", None))

    taken: Cache = jax.tree.map(lambda x: of(x, max(x.ndim - 4, 0)), cache)
    return taken


def _put(cache: Cache, part: Cache, rows: Array, slots: slice) -> Cache:
    """With these slots of the rows [R] of another; a row that the cache does not have is left out."""

    def into(x: Array, new: Array, axis: int) -> Array:
        """Slots along `axis` from the end."""
        at = [slice(None)] * x.ndim
        at[axis] = slots
        values = new[tuple(at)]
        at[max(x.ndim - 4, 0)] = rows  # type: ignore[call-overload]
        axes = ("layers",) * (x.ndim - 4) + ("batch", "kv_heads", None, None)
        changed = x.at[tuple(at)].set(values, mode="drop")
        return mesh_module.constrain(changed, axes if x.ndim > 2 else ("batch", None))

    return Cache(
        jax.tree.map(lambda x, new: into(x, new, -1), cache.keys, part.keys),
        jax.tree.map(lambda x, new: into(x, new, -2), cache.values, part.values),
        jax.tree.map(lambda x, new: into(x, new, -1), cache.positions, part.positions),
    )
