"""Judges: anything that says how probably one completion is better than another.

May import: reporting (the statistics of their own check), prompts, models, data, runtime. Imported by: the
programs.
"""

from srpo_jax.judges.judge import Estimate, Judge, Prompt, Verdicts, estimate, readable, total
from srpo_jax.judges.loading import (
    asks_endpoint,
    check,
    load,
    load_all,
    names,
    require_apart,
    require_no_gold,
)
from srpo_jax.judges.rewards import check_rewards, rewards
from srpo_jax.judges.settings import JudgeSettings

__all__ = [
    "Estimate",
    "Judge",
    "JudgeSettings",
    "Prompt",
    "Verdicts",
    "asks_endpoint",
    "check",
    "check_rewards",
    "estimate",
    "load",
    "load_all",
    "names",
    "readable",
    "require_apart",
    "require_no_gold",
    "rewards",
    "total",
]
