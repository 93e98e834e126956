"""N-step self-revision: y_0 ~ pi(. | x), y_{k+1} ~ pi+(. | y_k, x), reading each token once.

(arXiv:2406.01660, section 4.) The cache of a row of the batch has two parts, the same for all rows, and
beside it one for the completion being written:

    | direct prompt   | what an improve prompt has beyond it |     | completion |
      read once         read at each revision                        one slot a token

An improve prompt sees as much of the first part as it begins with. Each part is as wide as its longest
row; which slots hold something is told by the mask, and where a token stands by its position, so the
holes in between are never seen. Where the improve prompt begins with the direct prompt and the answer
(the chained template), y_0 is kept in the second part, and the first revision reads only what follows it.

Three jitted programs serve any number of revisions: one reads prompts, one reads on, one writes.

Shapes: B rows, P slots of direct prompt, M slots beyond, C = P + M, G new tokens, N revisions.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.models.attention import tree_mask
from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.revision import sampling as sampling_module
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError

Array = jax.Array
Result = TypeVar("Result")
# The parts are as wide as a multiple of this, longer ones of more: see `_width`.
ROUND = 4


class Progress(Protocol):
    """What is told how far the work is; runtime.metrics.Progress is one."""

    def advance(self, steps: int) -> None: ...


@dataclasses.dataclass
class Spent:
    """Seconds spent reading prompts (prefill) and writing completions (decoding), compilation included."""

    reading: float = 0.0
    writing: float = 0.0

    def __str__(self) -> str:
        total = max(self.reading + self.writing, 1e-9)
        reading, writing = self.reading / total, self.writing / total
        return f"{reading:.0%} of {total:.0f} s reading prompts, {writing:.0%} writing"


def revise(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[str]]:
    """For each prompt the texts [y_0, …, y_N]; only the last revision is shown, not the history.

    What is drawn for a prompt depends on seed and its number in `rows` (by default its index) alone:
    batch size and order of work change nothing. progress is advanced by the prompts done; the time
    taken is added to `spent`.
    Raises UserError when a prompt and what must follow it do not fit the model's positions.
    """
    ids = revise_ids(
        model,
        prompts,
        n_revisions,
        sampling,
        eos=tokenizer.stop_ids,
        seed=seed,
        rows=rows,
        progress=progress,
        spent=spent,
    )
    return [[tokenizer.decode(y).strip() for y in row] for row in ids]


def revise_ids(
    model: Decoder,
    prompts: Sequence[Prompt],
    n_revisions: int,
    sampling: Sampling,
    *,
    eos: int | Sequence[int],
    seed: int = 0,
    rows: Sequence[int] | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[list[int]]]:
    """`revise` in token ids, [prompt][revision][token], without end of sequence.

    eos: what ends a completion, one token or any of several.
    """
    stops = (eos,) if isinstance(eos, int) else tuple(eos)
    _check_lengths(prompts, sampling, model.config.max_length)
    numbers = jnp.array(range(len(prompts)) if rows is None else rows, jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(numbers)
    programs = _programs(model, sampling, stops, Spent() if spent is None else spent)
    results: list[list[list[int]]] = [[] for _ in prompts]
    # Rows of a batch are padded to its longest; the longest batch first, so that what does not fit into
    # memory fails at once.
    by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].direct))
    for first in range(0, len(prompts), sampling.batch_size):
        chosen = by_length[first : first + sampling.batch_size]
        # A short last batch repeats a row rather than compile another program.
        full = chosen + chosen[-1:] * (programs.rows(len(prompts)) - len(chosen))
        written = _revise_batch(
            programs, [prompts[i] for i in full], n_revisions, keys[np.array(full)]
        )
        for place, row in enumerate(chosen):
            results[row] = [ys[place] for ys in written]
        if progress is not None:
            progress.advance(len(chosen))
    return results


def _revise_batch(
    programs: "_Programs", prompts: Sequence[Prompt], n_revisions: int, keys: Array
) -> list[list[list[int]]]:
    """[revision][row][token]; keys: one a row."""
    new = programs.max_new_tokens
    tokens, lengths = _padded([p.direct for p in prompts])
    width = tokens.shape[1]
    # The second part has room for any completion shown.
    beyond = _width(max(len(p.improve(())) - p.shared for p in prompts) + new)
    slots = np.arange(width + beyond)
    chained = n_revisions > 0 and all(p.before == p.direct and p.after for p in prompts)

    def within(start: int, lengths: np.ndarray) -> np.ndarray:
        """bool [B, C]: the slots of a part that hold `lengths` tokens."""
        return (slots >= start) & (slots < start + lengths[:, None])

    logits, cache = programs.read_prompt(tokens, lengths, len(slots))
    ys, answer = programs.write(cache, logits, keys, 0, lengths, within(0, lengths))
    if chained:
        cache = _keep(cache, answer, width)
    written = [ys]
    for revision in range(1, n_revisions + 1):
        improve = [p.improve(y) for p, y in zip(prompts, ys, strict=True)]
        lengths = np.array([len(ids) for ids in improve])
        if chained and revision == 1:
            # The last token of y_0 has been written but not read.
            known = np.array([max(len(y) - 1, 0) for y in ys])
            begun = np.array([len(p.direct) for p in prompts])
            holds = within(0, begun) | within(width, known)
            rest, first = _rest(improve, begun + known), width + new - 1
            tokens, counts = _padded(rest, max(map(len, rest)))
        else:
            shared = np.array([p.shared for p in prompts])
            holds, first = within(0, shared), width
            tokens, counts = _padded(_rest(improve, shared), beyond)
        logits, cache = programs.read(cache, tokens, counts, lengths - counts, holds, first)
        holds |= within(first, counts)
        ys, _ = programs.write(cache, logits, keys, revision, lengths, holds)
        written.append(ys)
    return written


@dataclasses.dataclass(frozen=True)
class _Programs:
    """A model ready to read and write: its arrays, the jitted programs over them, and the time they take.

    layers: unrolled copies, where that is faster (CPU), else None.
    """

    graphdef: nnx.GraphDef
    state: nnx.State
    layers: list[nnx.State] | None
    mesh: Mesh | None
    sampling: Sampling
    stops: tuple[int, ...]
    spent: Spent

    @property
    def max_new_tokens(self) -> int:
        return self.sampling.max_new_tokens

    def rows(self, prompts: int) -> int:
        """Rows of a batch; every device gets equally many."""
        parts = 1 if self.mesh is None else mesh_module.batch_parts(self.mesh)
        return _rounded(min(self.sampling.batch_size, prompts), parts)

    def read_prompt(
        self, tokens: np.ndarray, lengths: np.ndarray, slots: int
    ) -> tuple[Array, Cache]:
        """Logits [B, V] behind the last token of each row, and a cache of so many slots that holds it."""
        began = time.perf_counter()
        given = self._placed((tokens, lengths))
        result = _read_prompt(*self._model, *given, slots=slots, mesh=self.mesh)
        return self._timed(result, "reading", began)

    def read(
        self,
        cache: Cache,
        tokens: np.ndarray,
        counts: np.ndarray,
        positions: np.ndarray,
        holds: np.ndarray,
        slot: int,
    ) -> tuple[Array, Cache]:
        """The same for more tokens, which stand at `positions` [B] onwards and go into slots from `slot`.

        They see the slots that hold something (bool [B, C]) and those before them. The cache is donated.
        """
        began = time.perf_counter()
        given = self._placed((tokens, counts, positions, holds))
        result = _read(*self._model, cache, *given, jnp.int32(slot), mesh=self.mesh)
        return self._timed(result, "reading", began)

    def write(
        self,
        cache: Cache,
        logits: Array,
        keys: Array,
        revision: int,
        positions: np.ndarray,
        holds: np.ndarray,
    ) -> tuple[list[list[int]], Cache]:
        """A completion of each row, without end of sequence, and its own cache of G slots; see `read`.

        `revision` chooses the random stream.
        """
        began = time.perf_counter()
        keys, positions, holds = self._placed((keys, positions, holds))
        sampling = dataclasses.replace(self.sampling, batch_size=1)  # compile nothing anew for it
        settings = {"sampling": sampling, "stops": self.stops, "mesh": self.mesh}
        given = (cache, logits, keys, jnp.int32(revision), positions, holds)
        written, own = _write(*self._model, *given, **settings)
        tokens = self._timed(np.asarray(written), "writing", began)
        return [[int(t) for t in row[: np.sum(row != self.stops[0])]] for row in tokens], own

    @property
    def _model(self) -> tuple[Any, ...]:
        return self.graphdef, self.state, self.layers

    def _placed(self, arrays: Any) -> Any:
        narrow = lambda x: x.astype(np.int32) if getattr(x, "dtype", None) == np.int64 else x
        arrays = jax.tree.map(narrow, arrays)
        if self.mesh is None:
            return arrays
        return jax.device_put(arrays, mesh_module.batch_sharding(self.mesh))

    def _timed(self, result: Result, part: str, began: float) -> Result:
        jax.block_until_ready(result)
        setattr(self.spent, part, getattr(self.spent, part) + time.perf_counter() - began)
        return result


def _programs(
    model: Decoder, sampling: Sampling, stops: tuple[int, ...], spent: Spent
) -> _Programs:
    graphdef, state = nnx.split(model)
    layers = _unrolled(graphdef, state) if jax.default_backend() == "cpu" else None
    return _Programs(graphdef, state, layers, mesh_module.of(state), sampling, stops, spent)


@jax.jit
def _unrolled(graphdef: nnx.GraphDef, state: nnx.State) -> list[nnx.State]:
    return nnx.merge(graphdef, state).unrolled_layers()


@functools.partial(jax.jit, static_argnames=("slots", "mesh"))
def _read_prompt(graphdef, state, layers, tokens, lengths, *, slots, mesh):
    model: Decoder = nnx.merge(graphdef, state)
    batch, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    # A row is a tree without branches: every slot descends from those before it.
    end = jnp.where(positions < lengths[:, None], lengths[:, None], 0)
    with _on(mesh):
        mask = tree_mask(end, positions, kind=model.config.attention)
        cache = Cache.zeros(model.config, batch, slots, layers is not None)
        hidden, cache = model.extend(tokens, positions, mask, cache, 0, layers)
        return model.logits(_last(hidden, lengths)), cache


@functools.partial(jax.jit, static_argnames="mesh", donate_argnames="cache")
def _read(graphdef, state, layers, cache, tokens, counts, start, holds, slot, *, mesh):
    model: Decoder = nnx.merge(graphdef, state)
    places = jnp.arange(tokens.shape[1])
    slots = jnp.arange(holds.shape[1])
    own = (slots >= slot) & (slots <= slot + places[:, None])
    with _on(mesh):
        hidden, cache = model.extend(
            tokens, start[:, None] + places, holds[:, None] | own, cache, slot, layers
        )
        return model.logits(_last(hidden, counts)), cache


class _Writing(NamedTuple):
    """The decoding loop's state: `written` of tokens [B, G], which rows are done, their cache."""

    written: Array
    tokens: Array
    done: Array
    cache: Cache


@functools.partial(jax.jit, static_argnames=("sampling", "stops", "mesh"))
def _write(
    graphdef,
    state,
    layers,
    cache,
    logits,
    key,
    revision,
    start,
    holds,
    *,
    sampling: Sampling,
    stops: tuple[int, ...],
    mesh,
):
    """-> int32 [B, G] and their cache (but for the last one's slot).

    From the end of a completion on, all are the first of `stops`.
    """
    model: Decoder = nnx.merge(graphdef, state)
    new = sampling.max_new_tokens
    eos = stops[0]

    def sample(logits: Array, streams: Array) -> Array:
        token = sampling_module.sample(logits, streams, sampling=sampling)
        return jnp.where(jnp.isin(token, jnp.array(stops)), eos, token)

    streams = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, revision), new))(key)
    streams = streams.swapaxes(0, 1)

    def unfinished(w: _Writing) -> Array:
        return (w.written < new) & ~w.done.all()

    def write(w: _Writing) -> _Writing:
        last = w.written - 1
        token = jax.lax.dynamic_slice_in_dim(w.tokens, last, 1, axis=1)
        own = jnp.broadcast_to(jnp.arange(new) <= last, w.tokens.shape)
        mask = jnp.concatenate([holds, own], axis=1)[:, None]
        positions = (start + last)[:, None]
        hidden, own_cache = model.extend(token, positions, mask, w.cache, last, layers, cache)
        token = jnp.where(w.done, eos, sample(model.logits(hidden[:, 0]), streams[w.written]))
        tokens = jax.lax.dynamic_update_slice_in_dim(w.tokens, token[:, None], w.written, axis=1)
        return _Writing(w.written + 1, tokens, w.done | (token == eos), own_cache)

    with _on(mesh):
        token = sample(logits, streams[0])
        tokens = jnp.full((len(token), new), eos, jnp.int32).at[:, 0].set(token)
        own_cache = Cache.zeros(model.config, len(token), new, layers is not None)
        begun = _Writing(jnp.int32(1), tokens, token == eos, own_cache)
        end = jax.lax.while_loop(unfinished, write, begun)
    return end.tokens, end.cache


@functools.partial(jax.jit, static_argnames="slot", donate_argnames="cache")
def _keep(cache: Cache, part: Cache, slot: int) -> Cache:
    """The cache with a completion's own in the slots from `slot` on."""
    put = jax.lax.dynamic_update_slice_in_dim
    keys = jax.tree.map(lambda x, new: put(x, new, slot, axis=-1), cache.keys, part.keys)
    values = jax.tree.map(lambda x, new: put(x, new, slot, axis=-2), cache.values, part.values)
    standing = jax.tree.map(
        lambda x, new: put(x, new, slot, axis=-1), cache.positions, part.positions
    )
    return Cache(keys, values, standing)


def _on(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _last(hidden: Array, lengths: Array) -> Array:
    """[B, D] of the last token of each row of [B, S, D]."""
    return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]


def _check_lengths(prompts: Sequence[Prompt], sampling: Sampling, limit: int) -> None:
    new = sampling.max_new_tokens
    for i, prompt in enumerate(prompts):
        need = max(len(prompt.direct), len(prompt.improve([0] * new)))
        if need + new > limit:
            raise UserError(
                f"prompt {i} needs {need} tokens and {new} to be written, the model has {limit} "
                "positions: shorten it or lower config.sampling.max_new_tokens"
            )


def _rest(rows: Sequence[Sequence[int]], starts: np.ndarray) -> list[Sequence[int]]:
    return [row[start:] for row, start in zip(rows, starts, strict=True)]


def _padded(
    rows: Sequence[Sequence[int]], width: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, width], padded on the right, and the lengths int32 [B]; by default a `_width`."""
    ids = np.zeros((len(rows), width or _width(max(map(len, rows)))), np.int32)
    for places, row in zip(ids, rows, strict=True):
        places[: len(row)] = row
    return ids, np.array([len(row) for row in rows], np.int32)


def _width(length: int) -> int:
    """The next of 16 widths to each power of two: few programs, and little of them padding."""
    return _rounded(length, max(ROUND, 2 ** (length.bit_length() - 5)))


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
