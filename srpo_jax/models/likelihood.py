"""How likely a model finds a text: log p(completion | prompt), in batches.

Shapes: B rows, T targets.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.models import batches
from srpo_jax.models.batches import Sequences, Tokens
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.vocabulary import log_probabilities

Array = jax.Array


@flax.struct.dataclass
class _Rows:
    """Prompts with completions. sources, targets: int32 [B, T]; known: bool, which targets there are."""

    whole: Sequences
    sources: Any
    targets: Any
    known: Any


def log_likelihood(
    model: Decoder, prompts: Sequence[Tokens], completions: Sequence[Tokens], batch_size: int
) -> np.ndarray:
    """float64 [N], summed over each completion's tokens, at temperature 1; called by all processes.

    A completion includes the token that ends it, where it was not cut off; no prompt or completion is
    empty.
    """
    graphdef, state = nnx.split(model)

    def rows(chosen: list[int]) -> _Rows:
        return _rows([prompts[i] for i in chosen], [completions[i] for i in chosen])

    lengths = [len(x) + len(y) for x, y in zip(prompts, completions, strict=True)]
    score = functools.partial(_score, graphdef, state)
    return batches.in_batches(state, lengths, batch_size, rows, score)


@jax.jit
def _score(graphdef: nnx.GraphDef[Decoder], state: nnx.State[Any, Any], rows: _Rows) -> Array:
    model = nnx.merge(graphdef, state)
    hidden = batches.hidden_states(model, rows.whole)
    states = jnp.take_along_axis(hidden, rows.sources[..., None], axis=1)
    cap, scale = model.config.logit_softcap, model.config.logit_scale
    logp = log_probabilities(states, model.head_kernel(), rows.targets, None, cap, scale)
    return jnp.sum(jnp.where(rows.known, logp, 0.0), axis=1)


def _rows(prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> _Rows:
    targets = batches.padded(completions)
    starts = np.array([len(x) - 1 for x in prompts], np.int32)[:, None]
    known = targets.positions < targets.lengths[:, None]
    sources = np.where(known, starts + targets.positions, 0)
    whole = batches.padded([(*x, *y) for x, y in zip(prompts, completions, strict=True)])
    return _Rows(whole, sources, targets.tokens, known)
