"""N-step self-revision: y_0 from the direct prompt, each next answer from the one before.

May import: models, prompts, trees, data, runtime. Imported by: the programs.
"""

from srpo_jax.revision.branches import Branch, Trunks
from srpo_jax.revision.engine import Spent
from srpo_jax.revision.loop import Progress, revise, revise_ids, revising
from srpo_jax.revision.plan import Need, Shape, shapes
from srpo_jax.revision.rollout import LocalRollout, Rollout
from srpo_jax.revision.sampling import Sampling

__all__ = [
    "Branch",
    "LocalRollout",
    "Need",
    "Progress",
    "Rollout",
    "Sampling",
    "Shape",
    "Spent",
    "Trunks",
    "revise",
    "revise_ids",
    "revising",
    "shapes",
]
