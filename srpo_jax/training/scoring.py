"""Model + rows -> scores: the summed log-probability of each completion under its prompt, or its reward.

The vocabulary projection is computed only where a completion token is predicted, and for one part of the
vocabulary at a time (`models.vocabulary`), so that logits [B, S, V] never exist.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Float32, Key

from srpo_jax.models import attention
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.experts import Load
from srpo_jax.models.vocabulary import log_probabilities
from srpo_jax.trees.prefix_tree import Rows

Array = jax.Array


def score(
    model: Decoder,
    rows: Rows,
    names: tuple[str, ...],
    *,
    adapter: bool = True,
    dropout: Key[Array, ""] | None = None,
    chunk: int | None = None,
) -> dict[str, Float32[Array, " BP"]]:
    """The scores of the B * P places for pairs, {name: float32 [B * P]}, place after place, row after row.

    names in the order the trees were built with; an empty place scores 0. adapter=False scores under the
    base model, LoRA off; dropout: the key for LoRA's dropout, None for none. chunk: vocabulary entries
    whose logits are computed at a time. Equals scoring each sequence in a row of its own, up to rounding.
    A reward model's score is its number for the state behind the end, the only target of such a sequence.
    """
    return score_with_load(model, rows, names, False, adapter, dropout, chunk)[0]


def score_with_load(
    model: Decoder,
    rows: Rows,
    names: tuple[str, ...],
    loads: bool,
    adapter: bool = True,
    dropout: Key[Array, ""] | None = None,
    chunk: int | None = None,
) -> tuple[dict[str, Float32[Array, " BP"]], Load | None]:
    """`score`, and what its routed experts had to do: of the rows' tokens, each once, without padding.

    None for a model without experts, and where loads are not wanted.
    """
    counted = rows.end > jnp.arange(rows.end.shape[-1]) if loads else None
    states, load = _sources(model, rows, adapter, dropout, counted)
    if model.score is not None:
        values = model.score(states)
    else:
        values = _log_probabilities(model, states, rows, chunk)
    # The number, depth first, of each named sequence in the tree that a target belongs to: [B, T, n].
    numbers = jnp.take_along_axis(rows.rank, rows.target_tree[..., None], axis=1)
    members = (rows.target_first[..., None] <= numbers) & (numbers < rows.target_last[..., None])
    places = rows.target_tree[..., None] == jnp.arange(rows.pair.shape[-1])
    # Sums over targets, in full float32: a product would round its inputs on a TPU.
    summed = jnp.einsum(
        "btp,bti->ibp",
        jnp.where(places, values[..., None], 0.0),
        members.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return {name: summed[i].reshape(-1) for i, name in enumerate(names)}, load


def targets(
    model: Decoder,
    rows: Rows,
    *,
    adapter: bool = True,
    dropout: Key[Array, ""] | None = None,
    chunk: int | None = None,
    temperature: float = 1.0,
) -> tuple[Float[Array, "B T D"], Float32[Array, "B T"]]:
    """Hidden states [B, T, D] that the targets of rows are predicted from, and their log-probabilities.

    temperature: of the softmax. Other arguments as of `score`.
    """
    states, _ = _sources(model, rows, adapter, dropout)
    return states, _log_probabilities(model, states, rows, chunk, temperature)


def _log_probabilities(
    model: Decoder, states: Array, rows: Rows, chunk: int | None, temperature: float = 1.0
) -> Array:
    # l / t of logits l = c tanh(s x / c) is (c / t) tanh((s / t) x / (c / t)).
    cap, scale = model.config.logit_softcap, model.config.logit_scale / temperature
    cap = cap and cap / temperature
    kernel = model.head_kernel()
    return log_probabilities(states, kernel, rows.target_token, chunk, cap, scale)


def _sources(
    model: Decoder,
    rows: Rows,
    adapter: bool,
    dropout: Key[Array, ""] | None,
    counted: Array | None = None,
) -> tuple[Array, Load | None]:
    """Hidden states [B, T, D] of the slots that the targets are predicted from; see `Decoder.with_load`."""
    mask = attention.tree_mask(rows.end, rows.positions, kind=model.config.attention)
    hidden, load = model.with_load(
        rows.tokens, rows.positions, mask, counted, adapter=adapter, dropout=dropout
    )
    return jnp.take_along_axis(hidden, rows.target_source[..., None], axis=1), load


def scorer(
    graphdef: nnx.GraphDef[Any], names: tuple[str, ...], *, adapter: bool
) -> Callable[[nnx.State[Any, Any], Rows], dict[str, Array]]:
    """The pure function (parameters, rows) -> scores, to be jitted."""

    def function(parameters: nnx.State[Any, Any], rows: Rows) -> dict[str, Array]:
        return score(nnx.merge(graphdef, parameters), rows, names, adapter=adapter)

    return function
