"""N-step self-revision: y_0 ~ pi(. | x), y_{k+1} ~ pi+(. | y_k, x), in one jitted program.

(arXiv:2406.01660, section 4.) The cache of a row of the batch has three parts, the same for all rows:

    | what both prompts begin with | rest of the present prompt | completion being written |
      read once, kept                read again at each revision   one slot a token

Each part is as wide as its longest row; which slots hold something is told by the mask, and where a
token stands by its position, so the holes in between are never seen.

Shapes: B rows, P slots of shared prompt, M slots for the rest, G new tokens, N revisions.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.errors import UserError
from srpo_jax.models.decoder import Cache, Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
# The parts are padded to multiples of these, so that few programs are compiled.
ROUND_SHARED, ROUND_REST = 128, 16


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


class Inputs(NamedTuple):
    """A batch of prompts in arrays: ids int32 [B, width] padded on the right, lengths int32 [B].

    key: one PRNG key a row, so that what is drawn for a row depends on nothing else.
    """

    shared: Array
    shared_length: Array
    direct: Array
    direct_length: Array
    before: Array
    before_length: Array
    after: Array
    after_length: Array
    key: Array


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
) -> list[list[str]]:
    """For each prompt the texts [y_0, …, y_N]; only the last revision is shown, not the history.

    What is drawn for a prompt depends on seed and its number in `rows` (by default its index) alone:
    batch size and order of work change nothing. progress is advanced by the prompts done.
    Raises UserError when a prompt and what must follow it do not fit the model's positions.
    """
    eos = tokenizer.eos_id
    ids = revise_ids(
        model, prompts, n_revisions, sampling, eos=eos, seed=seed, rows=rows, progress=progress
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
) -> list[list[list[int]]]:
    """`revise` in token ids, [prompt][revision][token], without end of sequence."""
    for i, prompt in enumerate(prompts):
        need = max(len(prompt.direct), len(prompt.improve([0] * sampling.max_new_tokens)))
        if need + sampling.max_new_tokens > model.config.max_length:
            raise UserError(
                f"prompt {i} needs {need} tokens and {sampling.max_new_tokens} to be written, the model "
                f"has {model.config.max_length} positions: shorten it or lower "
                "config.sampling.max_new_tokens"
            )
    graphdef, state = nnx.split(model)
    numbers = jnp.array(range(len(prompts)) if rows is None else rows, jnp.uint32)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(numbers)
    mesh = mesh_module.of(state)
    size = min(sampling.batch_size, len(prompts))
    if mesh is not None:  # every device gets equally many rows
        size = -(-size // mesh_module.batch_parts(mesh)) * mesh_module.batch_parts(mesh)
    results: list[list[list[int]]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: prompts[i].shared)
    for first in range(0, len(prompts), sampling.batch_size):
        chosen = by_length[first : first + sampling.batch_size]
        # A short last batch repeats a row rather than compile another program.
        full = chosen + chosen[-1:] * (size - len(chosen))
        inputs = _arrays([prompts[i] for i in full], keys[jnp.array(full)])
        if mesh is not None:
            inputs = jax.device_put(inputs, mesh_module.batch_sharding(mesh))
        tokens, lengths = _revise_jit(
            graphdef,
            state,
            inputs,
            n_revisions=n_revisions,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            eos=eos,
        )
        for row, y, length in zip(chosen, np.asarray(tokens), np.asarray(lengths), strict=False):
            results[row] = [[int(t) for t in y[k, : length[k]]] for k in range(n_revisions + 1)]
        if progress is not None:
            progress.advance(len(chosen))
    return results


@functools.partial(
    jax.jit, static_argnames=("n_revisions", "max_new_tokens", "temperature", "top_p", "eos")
)
def _revise_jit(
    graphdef, state, inputs: Inputs, *, n_revisions, max_new_tokens, temperature, top_p, eos
):
    """-> completions int32 [B, N+1, G] without end of sequence, and their lengths int32 [B, N+1]."""
    model: Decoder = nnx.merge(graphdef, state)
    batch, shared_width = inputs.shared.shape
    improve_width = inputs.before.shape[1] + max_new_tokens + inputs.after.shape[1]
    rest_width = max(inputs.direct.shape[1], improve_width)
    layout = _Layout(inputs.shared_length, shared_width, rest_width, max_new_tokens)
    sample = functools.partial(_sample, temperature=temperature, top_p=top_p)
    unrolled = jax.default_backend() == "cpu"
    layers = model.unrolled_layers() if unrolled else None
    extend = functools.partial(model.extend, layers=layers)

    def complete(cache: Cache, rest: Array, rest_length: Array, key: Array):
        """Reads the rest of a prompt over the shared beginning and writes one completion after it."""
        keys = jax.vmap(lambda k: jax.random.split(k, max_new_tokens))(key).swapaxes(0, 1)
        slots = shared_width + jnp.arange(rest_width)
        positions = inputs.shared_length[:, None] + jnp.arange(rest_width)
        hidden, cache = extend(
            rest, positions, layout.mask(rest_length, slots), cache, shared_width
        )
        last = jnp.take_along_axis(hidden, rest_length[:, None, None] - 1, axis=1)[:, 0]
        token = sample(model.logits(last), keys[0])
        tokens = jnp.full((batch, max_new_tokens), eos, jnp.int32).at[:, 0].set(token)
        start = _Writing(jnp.int32(1), tokens, token == eos, cache)

        def unfinished(w: _Writing) -> Array:
            return (w.written < max_new_tokens) & ~w.done.all()

        def write(w: _Writing) -> _Writing:
            token = jax.lax.dynamic_slice_in_dim(w.tokens, w.written - 1, 1, axis=1)
            slot = layout.first_new + w.written - 1
            position = (inputs.shared_length + rest_length + w.written - 1)[:, None]
            hidden, cache = extend(
                token, position, layout.mask(rest_length, slot[None]), w.cache, slot
            )
            token = sample(model.logits(hidden[:, 0]), keys[w.written])
            token = jnp.where(w.done, eos, token)
            tokens = jax.lax.dynamic_update_slice_in_dim(
                w.tokens, token[:, None], w.written, axis=1
            )
            return _Writing(w.written + 1, tokens, w.done | (token == eos), cache)

        end = jax.lax.while_loop(unfinished, write, start)
        return end.cache, end.tokens, jnp.sum(end.tokens != eos, axis=1)

    cache = Cache.zeros(model.config, batch, layout.slots, unrolled)
    slots = jnp.arange(shared_width)
    positions = jnp.broadcast_to(slots, (batch, shared_width))
    no_rest = jnp.zeros(batch, jnp.int32)
    _, cache = extend(inputs.shared, positions, layout.mask(no_rest, slots), cache, 0)

    direct = jnp.pad(inputs.direct, ((0, 0), (0, rest_width - inputs.direct.shape[1])))

    def revision(carry, step):
        # y_0 differs from a revision only in the prompt, so the loop is compiled once for both.
        cache, y, length = carry
        number, key = step
        improve, improve_length = _improve(inputs, y, length, rest_width)
        rest = jnp.where(number == 0, direct, improve)
        rest_length = jnp.where(number == 0, inputs.direct_length, improve_length)
        cache, y, length = complete(cache, rest, rest_length, key)
        return (cache, y, length), (y, length)

    keys = jax.vmap(lambda k: jax.random.split(k, n_revisions + 1))(inputs.key).swapaxes(0, 1)
    nothing = jnp.zeros((batch, max_new_tokens), jnp.int32), jnp.zeros(batch, jnp.int32)
    steps = jnp.arange(n_revisions + 1), keys
    _, (tokens, lengths) = jax.lax.scan(revision, (cache, *nothing), steps)
    return tokens.swapaxes(0, 1), lengths.swapaxes(0, 1)


class _Writing(NamedTuple):
    """The decoding loop's state: `written` of tokens [B, G], which rows are done, their cache."""

    written: Array
    tokens: Array
    done: Array
    cache: Cache


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The three parts of the cache."""

    shared_length: Array
    shared_width: int
    rest_width: int
    new_width: int

    @property
    def first_new(self) -> int:
        return self.shared_width + self.rest_width

    @property
    def slots(self) -> int:
        return self.first_new + self.new_width

    def mask(self, rest_length: Array, queries: Array) -> Array:
        """What the tokens in slots `queries` [S] see: bool [B, S, C].

        For shared "a b -", rest "c - -" and three new tokens, slot 6 (the first new one) sees
        a b . c . . 6 and nothing after itself.
        """
        slots = jnp.arange(self.slots)
        shared = slots < self.shared_length[:, None]
        rest = (slots >= self.shared_width) & (slots < self.shared_width + rest_length[:, None])
        holds = shared | rest | (slots >= self.first_new)
        return holds[:, None] & (slots <= queries[:, None])


def _improve(inputs: Inputs, y: Array, length: Array, width: int) -> tuple[Array, Array]:
    """before + y + after of each row without gaps: int32 [B, width] and the lengths [B]."""
    slots = jnp.arange(width)[None]
    y_start = inputs.before_length[:, None]
    after_start = y_start + length[:, None]

    def take(part: Array, start: Array) -> Array:
        index = jnp.clip(slots - start, 0, part.shape[1] - 1)
        return jnp.take_along_axis(part, index, axis=1)

    rest = jnp.where(
        slots < y_start, take(inputs.before, jnp.zeros_like(y_start)), take(y, y_start)
    )
    rest = jnp.where(slots < after_start, rest, take(inputs.after, after_start))
    return rest, inputs.before_length + length + inputs.after_length


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


def _arrays(prompts: Sequence[Prompt], keys: Array) -> Inputs:
    def pad(parts: Sequence[Sequence[int]], multiple: int) -> tuple[Array, Array]:
        width = -(-max(map(len, parts)) // multiple) * multiple
        ids = np.zeros((len(parts), width), np.int32)
        for row, part in zip(ids, parts, strict=True):
            row[: len(part)] = part
        return jnp.array(ids), jnp.array([len(part) for part in parts], jnp.int32)

    return Inputs(
        *pad([p.direct[: p.shared] for p in prompts], ROUND_SHARED),
        *pad([p.direct[p.shared :] for p in prompts], ROUND_REST),
        *pad([p.before[p.shared :] for p in prompts], ROUND_REST),
        *pad([p.after for p in prompts], ROUND_REST),
        keys,
    )
