"""The losses, pure functions of scores, and the table of objectives.

May import: runtime.errors, runtime.settings. Imported by: training, theory, config, the programs. No
model, no mesh.
"""

from srpo_jax.objectives.losses import DIRECT_SCORES, IMPROVE_SCORES, Metrics, Scores
from srpo_jax.objectives.settings import ObjectiveSettings, check_hyperparameters
from srpo_jax.objectives.table import OBJECTIVES, Objective, check_label_prob, check_log_odds, get

__all__ = [
    "DIRECT_SCORES",
    "IMPROVE_SCORES",
    "OBJECTIVES",
    "Metrics",
    "Objective",
    "ObjectiveSettings",
    "Scores",
    "check_hyperparameters",
    "check_label_prob",
    "check_log_odds",
    "get",
]
