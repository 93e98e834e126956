"""Judges: anything that says how probably one completion is better than another.

May import: reporting.winrate (the statistics of their own check), models, data, runtime. Imported by: the
programs.
"""

from srpo_jax.judges.judge import Judge
from srpo_jax.judges.loading import load

__all__ = ["Judge", "load"]
