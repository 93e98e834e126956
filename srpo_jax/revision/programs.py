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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from srpo_jax.models.attention import tree_mask
from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder, Layers
from srpo_jax.revision import sampling as sampling_module
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import chips
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
# Records are made of numpy's arrays on the host and reach the programs as jax's.
AnyArray = TypeVar("AnyArray", np.ndarray, Array)


# Of a GPU's memory, the most that a second copy of the layers may take.
SECOND_COPY = 0.25


@flax.struct.dataclass
class Model:
    """A decoder as the programs take it. layers: copies of them, see `apart`, else None."""

    graphdef: nnx.GraphDef[Decoder]
    state: nnx.State[Any, Any]
    layers: Layers | None
    mesh: Mesh | None = flax.struct.field(pytree_node=False)

    @classmethod
    def of(cls, decoder: Decoder) -> "Model":
        graphdef, state = nnx.split(decoder)
        (device, *_) = jax.tree.leaves(state)[0].devices()
        layers = _unrolled(graphdef, state) if apart(state, device) else None
        return cls(graphdef, state, layers, mesh_module.of(state))

    @classmethod
    def shaped(
        cls, graphdef: nnx.GraphDef[Decoder], state: nnx.State[Any, Any], mesh: Mesh
    ) -> "Model":
        """As `of`, of shapes on a mesh: for programs that are only compiled."""
        if not apart(state, mesh.devices.flat[0]):
            return cls(graphdef, state, None, mesh)
        blocks = state["blocks"]
        count = jax.tree.leaves(blocks)[0].shape[0]
        one = jax.tree.map(_without_layers, blocks)
        return cls(graphdef, state, [one] * count, mesh)

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

    keys: uint32 [B, 2], data of a random key a row. revision: int32 [B], which of the row's streams is
    drawn from. positions: int32 [B], of the first token. valid: bool [B, C], slots of the cache that it
    sees.
    """

    keys: AnyArray
    revision: AnyArray
    positions: AnyArray
    valid: AnyArray


def apart(state: nnx.State[Any, Any], device: jax.Device) -> bool:
    """Whether the layers should be arrays of their own, beside the stack of all.

    XLA for CPUs multiplies slices of a stack slowly, XLA for GPUs copies each out at every token, which is
    seven tenths of decoding an 8B model; XLA for TPUs reads them where they lie. A GPU must have room for
    the copies, which its kind alone decides, so that all hosts decide alike.
    """
    if device.platform == "cpu":
        return True
    chip = chips.of(device)
    if device.platform == "tpu" or chip is None:
        return False
    return mesh_module.held(state["blocks"]) <= SECOND_COPY * chip.memory


def _without_layers(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """One layer's part of a stacked array: layers lie along no axis of a mesh."""
    assert isinstance(x.sharding, NamedSharding)
    where = NamedSharding(x.sharding.mesh, PartitionSpec(*x.sharding.spec[1:]))
    return jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=where)


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
    with on_mesh(model.mesh):
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
    with on_mesh(model.mesh):
        hidden, cache = decoder.extend(
            rows.tokens,
            rows.positions[:, None] + offsets,
            rows.valid[:, None] | own,
            cache,
            rows.slot,
            layers=model.layers,
        )
        return decoder.logits(_last(hidden, rows.counts)), cache


@flax.struct.dataclass
class Decoding:
    """Completions of B rows, each as far as it is, behind what lies in another cache of C slots.

    valid: bool [B, C], the slots of that cache that a row sees. positions: int32 [B], of its first token.
    streams: uint32 [B, G, 2], data of a random key for each token. tokens: int32 [B, G], as drawn, what
    ends a completion included. logps: float32 [B, G], log-probability of each when it was drawn
    (`sampling.log_probability`), 0 behind the end; None where nobody asks. counts: int32 [B], how many
    are decoded, never 0. done: bool [B]. clock: int32, steps that have been taken.
    cache: of these tokens, a ring of G slots. In each step all rows write the slot clock mod G, whenever
    they began, so that a row's tokens lie in the slots just behind it.
    """

    valid: Array
    positions: Array
    streams: Array
    tokens: Array
    logps: Array | None
    counts: Array
    done: Array
    clock: Array
    cache: Cache


def first_tokens(
    logits: Array,
    start: Start[Array],
    cache: Cache,
    sampling: Sampling,
    stops: tuple[int, ...],
    scored: bool = False,
) -> Decoding:
    """The beginning of a completion of each row. logits: float32 [B, V], behind its prompt.

    scored: log-probabilities are wanted.
    """
    new = sampling.max_new_tokens
    streams = _streams(start, new)
    token = _sampled(logits, streams[:, 0], sampling)
    tokens = jnp.full((len(token), new), stops[0], jnp.int32).at[:, 0].set(token)
    logps = None
    if scored:
        logp = sampling_module.log_probability(logits, token, sampling=sampling)
        logps = jnp.zeros((len(token), new)).at[:, 0].set(logp)
    done = jnp.isin(token, jnp.array(stops)) | (new == 1)
    counts = jnp.ones_like(token)
    clock = jnp.int32(0)
    return Decoding(
        start.valid, start.positions, streams, tokens, logps, counts, done, clock, cache
    )


def decode_on(
    model: Model,
    cache: Cache,
    begun: Decoding,
    wait: Array | int,
    sampling: Sampling,
    stops: tuple[int, ...],
) -> Decoding:
    """Until `wait` rows are done. cache: what lies in front of the completions; it stays as it is."""
    decoder = model.merged()
    new = sampling.max_new_tokens
    places = jnp.arange(new)

    def unfinished(at: Decoding) -> Array:
        return at.done.sum() < jnp.minimum(wait, len(at.done))

    def step(at: Decoding) -> Decoding:
        slot, last = at.clock % new, at.counts - 1
        token = jnp.take_along_axis(at.tokens, last[:, None], axis=1)
        own = (slot - places) % new < at.counts[:, None]
        mask = jnp.concatenate([at.valid, own], axis=1)[:, None]
        positions = (at.positions + last)[:, None]
        hidden, own_cache = decoder.extend(
            token, positions, mask, at.cache, slot, before=cache, layers=model.layers
        )
        keys = jnp.take_along_axis(at.streams, at.counts[:, None, None], axis=1, mode="clip")[:, 0]
        logits = decoder.logits(hidden[:, 0])
        token = _sampled(logits, keys, sampling)
        here = (places == at.counts[:, None]) & ~at.done[:, None]
        tokens, logps = jnp.where(here, token[:, None], at.tokens), at.logps
        if logps is not None:
            logp = sampling_module.log_probability(logits, token, sampling=sampling)
            logps = jnp.where(here, logp[:, None], logps)
        counts = at.counts + ~at.done
        done = at.done | jnp.isin(token, jnp.array(stops)) | (counts == new)
        clock = at.clock + 1
        return Decoding(
            at.valid, at.positions, at.streams, tokens, logps, counts, done, clock, own_cache
        )

    return jax.lax.while_loop(unfinished, step, begun)


class Written(NamedTuple):
    """B completions: tokens, logps and lengths are those of a `Decoding`, lengths its counts."""

    tokens: Array
    logps: Array | None
    lengths: Array


@functools.partial(jax.jit, static_argnames=("sampling", "stops", "scored"))
def write(
    model: Model,
    cache: Cache,
    logits: Array,
    start: Start[Array],
    *,
    sampling: Sampling,
    stops: tuple[int, ...],
    scored: bool = False,
) -> Written:
    """Completions behind what is in the cache, of all rows together, until the last one is done.

    logits: float32 [B, V], of the first tokens. stops: whatever ends a completion; the first is the padding
    behind the end. scored: log-probabilities are wanted.
    """
    with on_mesh(model.mesh):
        config, unrolled = model.merged().config, model.layers is not None
        own = Cache.zeros(config, len(logits), sampling.max_new_tokens, unrolled)
        begun = first_tokens(logits, start, own, sampling, stops, scored)
        end = decode_on(model, cache, begun, len(logits), sampling, stops)
    return Written(end.tokens, end.logps, end.counts)


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

    with on_mesh(model.mesh):
        keys = jax.tree.map(lambda x: of(x, 4, -1), cache.keys)
        values = jax.tree.map(lambda x: of(x, 4, -2), cache.values)
        return Cache(keys, values, jax.tree.map(lambda x: of(x, 2, -1), cache.positions))


@jax.jit
def keys(seed: Array | int, rows: Array) -> Array:
    """uint32 [B, 2], data of random keys: of each row's number, uint32 [B], its own."""

    def of_row(row: Array) -> Array:
        return jax.random.fold_in(jax.random.key(seed), row)

    return jax.random.key_data(jax.vmap(of_row)(rows))


def _streams(start: Start[Array], new: int) -> Array:
    """uint32 [B, G, 2]: data of a row's own random keys, for each token of this revision."""

    def of_row(key: Array, revision: Array) -> Array:
        return jax.random.split(jax.random.fold_in(key, revision), new)

    keys = jax.random.wrap_key_data(start.keys)
    return jax.random.key_data(jax.vmap(of_row)(keys, start.revision))


def _sampled(logits: Array, keys: Array, sampling: Sampling) -> Array:
    """A token of each row, int32 [B]. keys: uint32 [B, 2], their data."""
    return sampling_module.sample(logits, jax.random.wrap_key_data(keys), sampling=sampling)


def on_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _last(hidden: Array, counts: Array) -> Array:
    """[B, D] of the last token of each row of [B, S, D]."""
    return jnp.take_along_axis(hidden, counts[:, None, None] - 1, axis=1)[:, 0]
