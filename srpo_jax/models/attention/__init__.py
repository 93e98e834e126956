"""Attention in rows of packed prefix trees: who sees whom, and three ways to compute the same thing.

    dense      the whole score matrix under a mask; memory grows with S^2
    blockwise  XLA, online softmax over blocks of keys; memory grows with S   (CPU, GPU)
    pallas     the same as a TPU kernel                                       (TPU)

The last two skip every pair of blocks in which no query sees any key: packed trees then cost what they
cost alone. May import: runtime, models.product. Imported by: models, training, revision.
"""

from srpo_jax.models.attention.attend import attend, attend_cached, shared_heads
from srpo_jax.models.attention.mask import (
    DENSE_UP_TO,
    KINDS,
    TreeMask,
    dense_mask,
    lowered_for,
    tree_mask,
)

__all__ = [
    "DENSE_UP_TO",
    "KINDS",
    "TreeMask",
    "attend",
    "attend_cached",
    "dense_mask",
    "lowered_for",
    "shared_heads",
    "tree_mask",
]
