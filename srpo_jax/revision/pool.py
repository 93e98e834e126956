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
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

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


def empty(model: Model, rows: int, shape: Shape, sampling: Sampling) -> Pool:
    """A pool whose rows are all done, with nothing in them."""
    mesh = model.mesh
    # As the programs leave it, or the first one that takes it would be compiled once more.
    laid_out: Any = None
    if mesh is not None:
        laid_out = jax.tree.map(
            lambda x: mesh_module.plainest(mesh_module.sharding(mesh, _axes(x), x.shape)),
            described(model, rows, shape, sampling),
        )
    else:
        weights = jax.tree.leaves(model.state)[0].sharding
        if isinstance(weights, NamedSharding):  # a mesh of one device
            laid_out = NamedSharding(weights.mesh, PartitionSpec())
    pool: Pool = jax.jit(_maker(model, rows, shape, sampling), out_shardings=laid_out)()
    return pool


def named_as(pool: Pool, shardings: Any) -> Pool:
    """The pool, each array's sharding by the name that it has in `shardings`; nothing is moved.

    Of an array that is whole JAX may say that it lies along an axis of one device, whatever it is told to
    say, and each program is compiled once more for every such name.
    """

    def one(x: Array, known: jax.sharding.Sharding) -> Array:
        if x.sharding == known or not x.sharding.is_equivalent_to(known, x.ndim):
            return x
        parts = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, known, parts)

    named: Pool = jax.tree.map(one, pool, shardings)
    return named


def described(model: Model, rows: int, shape: Shape, sampling: Sampling) -> Pool:
    """The shapes of an empty pool. The model's arrays may be shapes, too."""
    pool: Pool = jax.eval_shape(_maker(model, rows, shape, sampling))
    return pool


def _maker(model: Model, rows: int, shape: Shape, sampling: Sampling) -> Callable[[], Pool]:
    """Makes an empty pool."""
    new, config = sampling.max_new_tokens, model.merged().config
    unrolled = model.layers is not None
    key_size = jax.random.key_data(jax.random.key(0)).shape

    def made() -> Pool:
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
        return Pool(Cache.zeros(config, rows, sum(shape), unrolled), at)

    return made


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

    into: int32 [parts, R / parts], of each of the parts that the devices have, numbers of its own rows; a
    prompt for a row that it does not have (B / parts) only fills up the number. So nothing is sent.
    """
    width = rows.tokens.shape[1]
    logits, part = programs.prefill(model, dataclasses.replace(rows, valid=rows.valid[:, :width]))
    with programs.on_mesh(model.mesh):
        cache = _put(pool.cache, part, into, slice(width))
        return _laid_out(Pool(cache, _begun(pool.at, logits, start, into, sampling, stops)))


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
        return _laid_out(Pool(cache, _begun(pool.at, logits, start, into, sampling, stops)))


@functools.partial(jax.jit, static_argnames=("sampling", "stops"), donate_argnames="pool")
def decode(
    model: Model, pool: Pool, wait: Array | int, *, sampling: Sampling, stops: tuple[int, ...]
) -> tuple[Pool, Array]:
    """The pool, donated, once at least `wait` of its rows are done, those that were so before counted.

    And what the host reads of it, in one array, int32 [B, G + 1]: each row's tokens, then how many they
    are, what ends them included; 0 while it decodes.
    """
    with programs.on_mesh(model.mesh):
        at = programs.decode_on(model, pool.cache, pool.at, wait, sampling, stops)
        counts = jnp.where(at.done, at.counts, 0)
        told = jnp.concatenate([at.tokens, counts[:, None]], axis=1)
        return _laid_out(Pool(pool.cache, at)), mesh_module.constrain(told, ("batch", None))


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
        name: _set(getattr(at, name), getattr(fresh, name), into, 0) for name in names
    }
    return dataclasses.replace(at, **changed)


def _laid_out(pool: Pool) -> Pool:
    """Every device has its own rows. What goes into a program lies as what comes out of one."""
    laid_out: Pool = jax.tree.map(lambda x: mesh_module.constrain(x, _axes(x)), pool)
    return laid_out


def _axes(x: Array) -> tuple[str | None, ...]:
    """Of keys and values, with all layers in front or without, and of what else has rows in front."""
    if x.ndim >= 4:
        return (*("layers",) * (x.ndim - 4), "batch", "kv_heads", None, None)
    return ("batch", *(None,) * (x.ndim - 1)) if x.ndim else ()


def _take(cache: Cache, rows: Array) -> Cache:
    """The cache's rows [parts, R / parts], R of them; a row that it does not have is some other."""

    def of(x: Array) -> Array:
        axis = max(x.ndim - 4, 0)
        pick = functools.partial(jnp.take, axis=axis, mode="clip")
        taken = jax.vmap(pick, (axis, 0), axis)(_in_parts(x, axis, len(rows)), rows)
        whole = taken.reshape(*x.shape[:axis], rows.size, *x.shape[axis + 1 :])
        return mesh_module.constrain(whole, _axes(whole))

    taken: Cache = jax.tree.map(of, cache)
    return taken


def _put(cache: Cache, part: Cache, rows: Array, slots: slice) -> Cache:
    """With these slots of R rows of another; a row that the cache does not have is left out."""

    def into(axis: int) -> Any:
        """Slots along `axis` from the end."""

        def one(x: Array, new: Array) -> Array:
            cut: list[Any] = [slice(None)] * x.ndim
            cut[axis] = slots
            return _set(x, new[tuple(cut)], rows, max(x.ndim - 4, 0), tuple(cut))

        return one

    return Cache(
        jax.tree.map(into(-1), cache.keys, part.keys),
        jax.tree.map(into(-2), cache.values, part.values),
        jax.tree.map(into(-1), cache.positions, part.positions),
    )


def _set(x: Array, new: Array, rows: Array, axis: int, cut: tuple[Any, ...] = ()) -> Array:
    """x, its rows along `axis`, with new ones [R] at `rows` [parts, R / parts]. cut: what is set of one."""

    def one(x: Array, new: Array, rows: Array) -> Array:
        at: list[Any] = list(cut) or [slice(None)] * x.ndim
        at[axis] = rows
        return x.at[tuple(at)].set(new, mode="drop")

    parts = len(rows)
    given = (_in_parts(x, axis, parts), _in_parts(new, axis, parts), rows)
    changed: Array = jax.vmap(one, (axis, axis, 0), axis)(*given)
    return changed.reshape(x.shape)


def _in_parts(x: Array, axis: int, parts: int) -> Array:
    """The rows along an axis as [parts, rows of a part]."""
    return x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :])
