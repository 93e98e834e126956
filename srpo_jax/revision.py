"""N-step self-revision: y_0 ~ pi(. | x), y_{k+1} ~ pi+(. | y_k, x), reading each token once.

(arXiv:2406.01660, section 4.) The cache of a row of the batch has three parts, the same for all rows:

    | direct prompt   | what an improve prompt has beyond it | completion being written |
      read once         read at each revision                  one slot a token

An improve prompt sees as much of the first part as it begins with. Each part is as wide as its longest
row; which slots hold something is told by the mask, and where a token stands by its position, so the
holes in between are never seen. Where the improve prompt begins with the direct prompt and the answer
(the chained template), y_0 is written into the second part, and the first revision reads only what
follows it.

Three jitted programs serve any number of revisions: one reads prompts, one reads on, one writes.

Shapes: B rows, P slots of direct prompt, M slots beyond, G new tokens, C = P + M + G, N revisions.
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
from srpo_jax.errors import UserError
from srpo_jax.models.attention import Trees, tree_mask
from srpo_jax.models.decoder import Cache, Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
Result = TypeVar("Result")
# The parts are padded to multiples of these, so that few programs are compiled.
ROUND_PROMPT, ROUND_REST = 128, 16


@dataclasses.dataclass(frozen=True)
class Sampling:
    """temperature 0 is greedy. top_p: sample from the likeliest tokens that hold this probability.

    batch_size rows are decoded at a time; results do not depend on it. Raises UserError for values
    out of range.
    """

    max_new_tokens: int = 32
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        for key, good, wanted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "0 (greedy) or positive"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("batch_size", self.batch_size >= 1, "at least 1"),
        ):
            if not good:
                raise UserError(f"config.sampling.{key}={getattr(self, key)} must be {wanted}")


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
        eos=tokenizer.eos_id,
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
    eos: int,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    progress: Progress | None = None,
    spent: Spent | None = None,
) -> list[list[list[int]]]:
    """`revise` in token ids, [prompt][revision][token], without end of sequence."""
    _check_lengths(prompts, sampling, model.config.max_length)
    numbers = jnp.array(range(len(prompts)) if rows is None else rows, jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(numbers)
    programs = _programs(model, sampling, eos, Spent() if spent is None else spent)
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
    tokens, lengths = _padded([p.direct for p in prompts], ROUND_PROMPT)
    width = tokens.shape[1]
    # The second part has room for any completion shown, and begins behind the direct prompt.
    beyond = _rounded(max(len(p.improve(())) - p.shared for p in prompts) + new, ROUND_REST)
    last_part = width + beyond
    slots = np.arange(last_part + new)
    chained = n_revisions > 0 and all(p.before == p.direct for p in prompts)

    def within(start: int, lengths: np.ndarray) -> np.ndarray:
        """bool [B, C]: the slots of a part that hold `lengths` tokens."""
        return (slots >= start) & (slots < start + lengths[:, None])

    logits, cache = programs.read_prompt(tokens, lengths, len(slots))
    holds = within(0, lengths)
    ys, cache = programs.write(
        cache, logits, keys, 0, lengths, holds, width if chained else last_part
    )
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
            tokens, counts = _padded(rest, 1)
        else:
            shared = np.array([p.shared for p in prompts])
            holds, first = within(0, shared), width
            tokens, counts = _padded(_rest(improve, shared), beyond)
        logits, cache = programs.read(cache, tokens, counts, lengths - counts, holds, first)
        holds |= within(first, counts)
        ys, cache = programs.write(cache, logits, keys, revision, lengths, holds, last_part)
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
    eos: int
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
        slot: int,
    ) -> tuple[list[list[int]], Cache]:
        """A completion of each row, without end of sequence; see `read`. `revision` chooses the stream."""
        began = time.perf_counter()
        keys, positions, holds = self._placed((keys, positions, holds))
        place = jnp.int32(revision), positions, holds, jnp.int32(slot)
        sampling = dataclasses.replace(self.sampling, batch_size=1)  # compile nothing anew for it
        settings = {"sampling": sampling, "eos": self.eos, "mesh": self.mesh}
        tokens, cache = _write(*self._model, cache, logits, keys, *place, **settings)
        tokens = self._timed(np.asarray(tokens), "writing", began)
        return [[int(t) for t in row[: np.sum(row != self.eos)]] for row in tokens], cache

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


def _programs(model: Decoder, sampling: Sampling, eos: int, spent: Spent) -> _Programs:
    graphdef, state = nnx.split(model)
    layers = _unrolled(graphdef, state) if jax.default_backend() == "cpu" else None
    return _Programs(graphdef, state, layers, mesh_module.of(state), sampling, eos, spent)


@jax.jit
def _unrolled(graphdef: nnx.GraphDef, state: nnx.State) -> list[nnx.State]:
    return nnx.merge(graphdef, state).unrolled_layers()


@functools.partial(jax.jit, static_argnames=("slots", "mesh"))
def _read_prompt(graphdef, state, layers, tokens, lengths, *, slots, mesh):
    model: Decoder = nnx.merge(graphdef, state)
    batch, width = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
    there = jnp.where(positions < lengths[:, None], 0, -1)
    same = jnp.zeros_like(positions)  # a row is a tree of one node, which sees itself
    with _on(mesh):
        mask = tree_mask(
            Trees(there, same, same.astype(jnp.uint32) + 1, positions), kind=model.config.attention
        )
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


@functools.partial(jax.jit, static_argnames=("sampling", "eos", "mesh"), donate_argnames="cache")
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
    slot,
    *,
    sampling: Sampling,
    eos: int,
    mesh,
):
    """-> int32 [B, G], filled up with end of sequence, and the cache."""
    model: Decoder = nnx.merge(graphdef, state)
    new = sampling.max_new_tokens
    sample = functools.partial(_sample, temperature=sampling.temperature, top_p=sampling.top_p)
    streams = jax.vmap(lambda k: jax.random.split(jax.random.fold_in(k, revision), new))(key)
    streams = streams.swapaxes(0, 1)
    slots = jnp.arange(holds.shape[1])

    def unfinished(w: _Writing) -> Array:
        return (w.written < new) & ~w.done.all()

    def write(w: _Writing) -> _Writing:
        token = jax.lax.dynamic_slice_in_dim(w.tokens, w.written - 1, 1, axis=1)
        at = slot + w.written - 1
        mask = (holds | ((slots >= slot) & (slots <= at)))[:, None]
        positions = (start + w.written - 1)[:, None]
        hidden, cache = model.extend(token, positions, mask, w.cache, at, layers)
        token = jnp.where(w.done, eos, sample(model.logits(hidden[:, 0]), streams[w.written]))
        tokens = jax.lax.dynamic_update_slice_in_dim(w.tokens, token[:, None], w.written, axis=1)
        return _Writing(w.written + 1, tokens, w.done | (token == eos), cache)

    with _on(mesh):
        token = sample(logits, streams[0])
        tokens = jnp.full((len(token), new), eos, jnp.int32).at[:, 0].set(token)
        start_of_loop = _Writing(jnp.int32(1), tokens, token == eos, cache)
        end = jax.lax.while_loop(unfinished, write, start_of_loop)
    return end.tokens, end.cache


def _on(mesh: Mesh | None) -> contextlib.AbstractContextManager[Any]:
    if mesh is None:
        return contextlib.nullcontext()
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def _last(hidden: Array, lengths: Array) -> Array:
    """[B, D] of the last token of each row of [B, S, D]."""
    return jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)[:, 0]


def _sample(logits: Array, keys: Array, temperature: float, top_p: float) -> Array:
    """One token a row from float32 logits [B, V] with a key a row."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / temperature
    if top_p < 1:
        logits = jnp.where(logits >= _nucleus(logits, top_p)[:, None], logits, -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _nucleus(logits: Array, top_p: float) -> Array:
    """[B]: the largest threshold such that the tokens at or above it hold probability top_p.

    By bisection: sorting a vocabulary costs more than the model on some backends. 40 halvings leave
    less than float32 can tell apart.
    """
    probabilities = jax.nn.softmax(logits, axis=-1)
    high = logits.max(axis=-1)

    def halve(_, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        held = jnp.sum(jnp.where(logits >= middle[:, None], probabilities, 0.0), axis=-1)
        enough = held >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    return jax.lax.fori_loop(0, 40, halve, (logits.min(axis=-1), high))[0]


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


def _padded(rows: Sequence[Sequence[int]], multiple: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [B, width], padded on the right, and the lengths int32 [B]."""
    ids = np.zeros((len(rows), _rounded(max(map(len, rows)), multiple)), np.int32)
    for places, row in zip(ids, rows, strict=True):
        places[: len(row)] = row
    return ids, np.array([len(row) for row in rows], np.int32)


def _rounded(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple
