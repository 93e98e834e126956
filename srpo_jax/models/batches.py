"""Token sequences of different lengths through a decoder, a batch at a time.

Shapes: B rows, S tokens, D width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models import attention
from srpo_jax.models.decoder import Decoder
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
Tokens = Sequence[int]
ROUND = 32  # widths are multiples of this: few programs


@flax.struct.dataclass
class Sequences:
    """tokens, positions: int32 [B, S], zeros behind a sequence's end; lengths: int32 [B]."""

    tokens: Any
    positions: Any
    lengths: Any


def padded(sequences: Sequence[Tokens]) -> Sequences:
    """In numpy; S is the longest's, rounded up."""
    tokens = np.zeros((len(sequences), rounded(max(map(len, sequences)))), np.int32)
    for i, sequence in enumerate(sequences):
        tokens[i, : len(sequence)] = sequence
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Sequences(tokens, positions, np.array([len(s) for s in sequences], np.int32))


def rounded(width: int) -> int:
    """Up to the next multiple of ROUND."""
    return -(-width // ROUND) * ROUND


def hidden_states(model: Decoder, rows: Sequences) -> Array:
    """[B, S, D], each token seeing those before it; what stands behind a sequence's end means nothing."""
    end = jnp.where(rows.positions < rows.lengths[:, None], rows.lengths[:, None], 0)
    mask = attention.tree_mask(end, rows.positions, kind=model.config.attention)
    return model(rows.tokens, rows.positions, mask)


def in_batches(
    state: Any,
    lengths: Sequence[int],
    batch_size: int,
    rows: Callable[[list[int]], Any],
    program: Callable[[Any], Array],
) -> np.ndarray:
    """float64 [N]: one number for each of N sequences, longest first; called by all processes of the mesh.

    state: where its arrays lie, rows are computed. rows: numbers of sequences -> arrays [B, …]; program:
    these, placed -> [B].
    """
    mesh = mesh_module.of(state)
    parts = 1 if mesh is None else mesh_module.batch_parts(mesh)
    size = -(-min(batch_size, len(lengths)) // parts) * parts
    found = np.zeros(len(lengths), np.float64)
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    for first in range(0, len(order), size):
        chosen = order[first : first + size]
        full = rows(chosen + chosen[-1:] * (size - len(chosen)))
        placed = full if mesh is None else mesh_module.place_rows(mesh, full)
        found[chosen] = mesh_module.gathered(program(placed))[: len(chosen)]
    return found
