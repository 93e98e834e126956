"""Model + rows -> scores: the summed log-probability of each completion under its prompt.

The vocabulary projection is computed only where a completion token is predicted, and in chunks, so
that logits [B, S, V] never exist.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from srpo_jax.models.decoder import Decoder
from srpo_jax.prefix_tree import Rows

Array = jax.Array


def tree_mask(node: Array, ancestors: Array) -> Array:
    """[B, S] node and ancestor bits -> [B, S, S] bool, True where the row slot sees the column slot.

    Slots are stored ancestors first, so "earlier on my own path" is: an earlier slot whose node is
    among mine.
    """
    length = node.shape[-1]
    earlier = jnp.tril(jnp.ones((length, length), bool))
    mine = (ancestors[:, :, None] >> node[:, None, :].astype(jnp.uint32)) & 1
    return earlier & (mine == 1)


def log_probabilities(model: Decoder, hidden: Array, targets: Array, chunk: int) -> Array:
    """log p(targets [B, T] | hidden [B, T, D]), float32 [B, T], with `chunk` targets of logits alive.

    The logits of a chunk are computed again in the backward pass rather than kept.
    """
    batch, count, width = hidden.shape
    chunk = min(chunk, count)
    chunks = -(-count // chunk)
    fill = chunks * chunk - count
    hidden = jnp.pad(hidden, ((0, 0), (0, fill), (0, 0)))
    targets = jnp.pad(targets, ((0, 0), (0, fill)))
    split_hidden = hidden.reshape(batch, chunks, chunk, width).swapaxes(0, 1)
    split_targets = targets.reshape(batch, chunks, chunk).swapaxes(0, 1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(_: None, inputs: tuple[Array, Array]) -> tuple[None, Array]:
        states, tokens = inputs
        logits = model.logits(states)
        chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
        return None, chosen - jax.nn.logsumexp(logits, axis=-1)

    _, logp = jax.lax.scan(one, None, (split_hidden, split_targets))
    return logp.swapaxes(0, 1).reshape(batch, chunks * chunk)[:, :count]


def score(
    model: Decoder, rows: Rows, names: tuple[str, ...], *, adapter: bool = True, chunk: int = 64
) -> dict[str, Array]:
    """The scores of B pairs, {name: float32 [B]}; names in the order the trees were built with.

    adapter=False scores under the base model, LoRA off. Equals scoring each sequence in a row of its
    own, up to rounding.
    """
    mask = tree_mask(rows.node, rows.ancestors)
    hidden = model(rows.tokens, rows.positions, mask, adapter=adapter)
    states = jnp.take_along_axis(hidden, rows.target_source[..., None], axis=1)
    logp = log_probabilities(model, states, rows.target_token, chunk)
    members = (
        rows.target_members[:, None] >> jnp.arange(len(names), dtype=jnp.uint32)[:, None]
    ) & 1
    sums = jnp.sum(jnp.where(members == 1, logp[:, None], 0.0), axis=-1)
    return {name: sums[:, i] for i, name in enumerate(names)}


def scorer(graphdef: nnx.GraphDef, names: tuple[str, ...], *, adapter: bool, chunk: int = 64):
    """The pure function (parameters, rows) -> scores, to be jitted."""

    def function(parameters, rows: Rows) -> dict[str, Array]:
        return score(nnx.merge(graphdef, parameters), rows, names, adapter=adapter, chunk=chunk)

    return function
