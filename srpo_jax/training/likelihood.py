"""How likely a model finds what it has written: log p(completion | direct prompt), in batches.

Shapes: B rows, S tokens, T targets, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.models import attention
from srpo_jax.models.decoder import Decoder
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training.scoring import log_probabilities

Array = jax.Array
Tokens = Sequence[int]
ROUND = 32  # widths are multiples of this: few programs


@flax.struct.dataclass
class _Rows:
    """tokens, positions: int32 [B, S]; lengths: int32 [B]. sources, targets: int32 [B, T]; known: bool."""

    tokens: Any
    positions: Any
    lengths: Any
    sources: Any
    targets: Any
    known: Any


def log_likelihood(
    model: Decoder, prompts: Sequence[Tokens], completions: Sequence[Tokens], batch_size: int
) -> np.ndarray:
    """float64 [N], summed over each completion's tokens, at temperature 1; called by all processes.

    A completion includes the token that ends it, where it was not cut off; none is empty.
    """
    graphdef, state = nnx.split(model)
    mesh = mesh_module.of(state)
    parts = 1 if mesh is None else mesh_module.batch_parts(mesh)
    size = -(-min(batch_size, len(prompts)) // parts) * parts
    found = np.zeros(len(prompts), np.float64)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - len(completions[i]))
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        full = chosen + chosen[-1:] * (size - len(chosen))
        rows = _rows([prompts[i] for i in full], [completions[i] for i in full])
        placed = rows if mesh is None else mesh_module.place_rows(mesh, rows)
        scores = mesh_module.gathered(_score(graphdef, state, placed))
        found[chosen] = scores[: len(chosen)]
    return found


@jax.jit
def _score(graphdef: nnx.GraphDef[Decoder], state: nnx.State[Any, Any], rows: _Rows) -> Array:
    model = nnx.merge(graphdef, state)
    end = jnp.where(rows.positions < rows.lengths[:, None], rows.lengths[:, None], 0)
    mask = attention.tree_mask(end, rows.positions, kind=model.config.attention)
    hidden = model(rows.tokens, rows.positions, mask)
    states = jnp.take_along_axis(hidden, rows.sources[..., None], axis=1)
    logp = log_probabilities(
        states, model.head_kernel(), rows.targets, None, model.config.logit_softcap
    )
    return jnp.sum(jnp.where(rows.known, logp, 0.0), axis=1)


def _rows(prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> _Rows:
    texts = [(*x, *y) for x, y in zip(prompts, completions, strict=True)]
    width = -(-max(map(len, texts)) // ROUND) * ROUND
    most = -(-max(map(len, completions)) // ROUND) * ROUND
    tokens, targets = (np.zeros((len(texts), n), np.int32) for n in (width, most))
    sources, known = np.zeros_like(targets), np.zeros(targets.shape, bool)
    for i, (x, y) in enumerate(zip(prompts, completions, strict=True)):
        tokens[i, : len(texts[i])] = texts[i]
        targets[i, : len(y)] = y
        sources[i, : len(y)] = np.arange(len(x) - 1, len(texts[i]) - 1)
        known[i, : len(y)] = True
    positions = np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape)
    lengths = np.array([len(text) for text in texts], np.int32)
    return _Rows(tokens, positions, lengths, sources, targets, known)
