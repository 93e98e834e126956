"""The jitted programs of revision: prefill, extend, decode, and the records that they take.

The cache that they share has slots of prompts, C in number, and beside it each decode has one of its own
with a slot a token. Which slots are valid is in the records; the programs never look at the others.

Shapes: B rows, S tokens, C slots of the cache, G new tokens, D width, V vocabulary.
"""

import contextlib
import functools
from typing import Any, Generic, NamedTuple, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models.attention import tree_mask
from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder, Layers
from srpo_jax.revision import sampling as sampling_module
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
# Records are made of numpy's arrays on the host and reach the programs as jax's.
AnyArray = TypeVar("AnyArray", np.ndarray, Array)


@flax.struct.dataclass
class Model:
    """A decoder as the programs take it. layers: unrolled copies, where that is faster (CPU), else None."""

    graphdef: nnx.GraphDef[Decoder]
    state: nnx.State[Any, Any]
    layers: Layers | None
    mesh: Mesh | None = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, decoder: Decoder) -> "Model":
        graphdef, state = nnx.split(decoder)
        layers = _unrolled(graphdef, state) if jax.default_backend() == "cpu" else None
        return cls(graphdef, state, layers, mesh_module.of(state))

    def merged(self) -> Decoder:
        return nnx.merge(self.graphdef, self.state)


@flax.struct.dataclass
class Rows(Generic[AnyArray]):
    """Tokens to prefill, and where they go.

    tokens: int32 [B, S], padded on the right. counts: int32 [B], how many of a row are valid.
    positions: int32 [B], of a row's first token. valid: bool [B, C], the cache's slots that a row sees in
    front of its tokens. slot: int32, of the cache, for the first token of every row.
    """

    tokens: AnyArray
    counts: AnyArray
    positions: AnyArray
    valid: AnyArray
    slot: AnyArray


@flax.struct.dataclass
class Start(Generic[AnyArray]):
    """Where B completions begin, and what they are drawn with.

    keys: [B], a random key a row. revision: int32, which of the row's streams is drawn from. positions:
    int32 [B], of the first token. valid: bool [B, C], the cache's slots that it sees.
    """

    keys: Array
    revision: AnyArray
    positions: AnyArray
    valid: AnyArray


@jax.jit
def _unrolled(graphdef: nnx.GraphDef[Decoder], state: nnx.State[Any, Any]) -> Layers:
    return nnx.merge(graphdef, state).unrolled_layers()


@jax.jit
def prefill(model: Model, rows: Rows[Array]) -> tuple[Array, Cache]:
    """Logits [B, V] behind each row's last token, and a new cache with the tokens in its first slots.

    Of the rows' `valid`, only its shape is used: nothing lies in front of them.
    """
    decoder = model.merged()
    batch, width = rows.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    # A row is a tree without branches: every slot descends from those before it.
    end = jnp.where(positions < rows.counts[:, None], rows.counts[:, None], 0)
    with _on(model.mesh):
        mask = tree_mask(end, positions, kind=decoder.config.attention)
        unrolled = model.layers is not None
        cache = Cache.zeros(decoder.config, batch, rows.valid.shape[1], unrolled)
        hidden, cache = decoder.extend(rows.tokens, positions, mask, cache, 0, layers=model.layers)
        return decoder.logits(_last(hidden, rows.counts)), cache


@functools.partial(jax.jit, donate_argnames="cache")
def extend(model: Model, cache: Cache, rows: Rows[Array]) -> tuple[Array, Cache]:
    """Logits [B, V] behind each row's last token, and the cache with the tokens in it; it is donated."""
    decoder = model.merged()
    offsets = jnp.arange(rows.tokens.shape[1])
    slots = jnp.arange(rows.valid.shape[1])
    own = (slots >= rows.slot) & (slots <= rows.slot + offsets[:, None])
    with _on(model.mesh):
        hidden, cache = decoder.extend(
            rows.tokens,
            rows.positions[:, None] + offsets,
            rows.valid[:, None] | own,
            cache,
            rows.slot,
            layers=model.layers,
        )
        return decoder.logits(_last(hidden, rows.counts)), cache


class Written(NamedTuple):
    """B completions. tokens: int32 [B, G], as drawn, what ends a completion included; behind it padding.

    logps: float32 [B, G], log-probability of each when it was drawn (`sampling.log_probability`), 0 for
    padding. lengths: int32 [B], tokens drawn. cache: their own, in which the last token is not.
    """

    tokens: Array
    logps: Array
    lengths: Array
    cache: Cache


class _Decoding(NamedTuple):
    """The loop's state: how many of tokens [B, G] are decoded, which rows are done, their own cache."""

    decoded: Array
    tokens: Array
    logps: Array
    lengths: Array
    done: Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("sampling", "stops"))
def decode(
    model: Model,
    cache: Cache,
    logits: Array,
    start: Start[Array],
    *,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> tuple[Array, Cache]:
    """Tokens int32 [B, G] of `write`, from the end on all the first of stops, and their own cache."""
    written = write(model, cache, logits, start, sampling=sampling, stops=stops)
    ends = jnp.isin(written.tokens, jnp.array(stops))
    return jnp.where(ends, stops[0], written.tokens), written.cache


@functools.partial(jax.jit, static_argnames=("sampling", "stops"))
def write(
    model: Model,
    cache: Cache,
    logits: Array,
    start: Start[Array],
    *,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Written:
    """Completions behind what is in the cache.

    logits: float32 [B, V], of the first tokens. stops: whatever ends a completion; the first is the padding
    behind the end.
    """
    decoder = model.merged()
    new, eos = sampling.max_new_tokens, stops[0]
    streams = _streams(start, new)

    def is_end(token: Array) -> Array:
        return jnp.isin(token, jnp.array(stops))

    def unfinished(at: _Decoding) -> Array:
        return (at.decoded < new) & ~at.done.all()

    def step(at: _Decoding) -> _Decoding:
        last = at.decoded - 1
        token = jax.lax.dynamic_slice_in_dim(at.tokens, last, 1, axis=1)
        own = jnp.broadcast_to(jnp.arange(new) <= last, at.tokens.shape)
        mask = jnp.concatenate([start.valid, own], axis=1)[:, None]
        positions = (start.positions + last)[:, None]
        hidden, own_cache = decoder.extend(
            token, positions, mask, at.cache, last, before=cache, layers=model.layers
        )
        token, logp = _sample(decoder.logits(hidden[:, 0]), streams[at.decoded], sampling)
        token, logp = jnp.where(at.done, eos, token), jnp.where(at.done, 0.0, logp)
        put = jax.lax.dynamic_update_slice_in_dim
        return _Decoding(
            at.decoded + 1,
            put(at.tokens, token[:, None], at.decoded, axis=1),
            put(at.logps, logp[:, None], at.decoded, axis=1),
            at.lengths + ~at.done,
            at.done | is_end(token),
            own_cache,
        )

    with _on(model.mesh):
        token, logp = _sample(logits, streams[0], sampling)
        size = len(token)
        begun = _Decoding(
            jnp.int32(1),
            jnp.full((size, new), eos, jnp.int32).at[:, 0].set(token),
            jnp.zeros((size, new)).at[:, 0].set(logp),
            jnp.ones(size, jnp.int32),
            is_end(token),
            Cache.zeros(decoder.config, size, new, model.layers is not None),
        )
        end = jax.lax.while_loop(unfinished, step, begun)
    return Written(end.tokens, end.logps, end.lengths, end.cache)


def _sample(logits: Array, keys: Array, sampling: Sampling) -> tuple[Array, Array]:
    """A token a row of [B, V], and its log-probability."""
    token = sampling_module.sample(logits, keys, sampling=sampling)
    return token, sampling_module.log_probability(logits, token, sampling=sampling)


@functools.partial(jax.jit, static_argnames="slot", donate_argnames="cache")
def keep(cache: Cache, part: Cache, slot: int) -> Cache:
    """The cache with a completion's own in the slots from `slot` on; it is donated."""
    put = jax.lax.dynamic_update_slice_in_dim
    keys = jax.tree.map(lambda x, new: put(x, new, slot, axis=-1), cache.keys, part.keys)
    values = jax.tree.map(lambda x, new: put(x, new, slot, axis=-2), cache.values, part.values)
    positions = jax.tree.map(
        lambda x, new: put(x, new, slot, axis=-1), cache.positions, part.positions
    )
    return Cache(keys, values, positions)


@functools.partial(jax.jit, static_argnames="slots")
def branch(model: Model, cache: Cache, rows: Array, slots: int) -> Cache:
    """The cache's rows [B] at these indices, with `slots` slots in all: those behind its own are empty."""

    def of(x: Array, dimensions: int, axis: int) -> Array:
        """x of `dimensions` without layers, its slots along `axis` from the end."""
        batch = x.ndim - dimensions
        taken = jnp.take(x, rows, axis=batch)
        padding = [(0, 0)] * x.ndim
        padding[axis] = (0, slots - x.shape[axis])
        axes = ("layers",) * batch + ("batch", "kv_heads", None, None)
        return mesh_module.constrain(
            jnp.pad(taken, padding), axes if dimensions == 4 else axes[::3]
        )

    with _on(model.mesh):
        keys = jax.tree.map(lambda x: of(x, 4, -1), cache.keys)
        values = jax.tree.map(lambda x: of(x, 4, -2), cache.values)
        return Cache(keys, values, jax.tree.map(lambda x: of(x, 2, -1), cache.positions))


@jax.jit
def keys(seed: Array | int, rows: Array) -> Array:
    """[B] random keys: of each row's number, uint32 [B], its own."""
    return jax.vmap(lambda row: jax.random.fold_in(jax.random.key(seed), row))(rows)


def _streams(start: Start[Array], new: int) -> Array:
    """[G, B] random keys: a row's own, for each token of this revision."""

    def of_row(key: Array) -> Array:
        return jax.random.split(jax.random.fold_in(key, start.revision), new)

    return jax.vmap(of_row)(start.keys).swapaxes(0, 1)


def _on(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _last(hidden: Array, counts: Array) -> Array:
    """[B, D] of the last token of each row of [B, S, D]."""
    return jnp.take_along_axis(hidden, counts[:, None, None] - 1, axis=1)[:, 0]
