"""Which of two checkpoints is the better one by a metric: the table of those that can tell."""

from __future__ import annotations

from fnmatch import fnmatch

from srpo_jax.runtime.errors import UserError

# Names in metrics.jsonl, without what stands before "/"; `*` is any text.
LOWEST = ("loss", "loss_*", "nll_*", "kl", "kl_*", "calibration_error")
HIGHEST = (
    *("accuracy", "accuracy_*", "margin", "margin_*", "reward"),
    *("win_rate_*", "better_*", "overlap_*"),
)


def is_highest(metric: str) -> bool:
    """Whether the highest value of `metric` is the best one, or the lowest.

    Raises UserError for a metric of which neither can be said, such as a length.
    """
    name = metric.rpartition("/")[2]
    for patterns, highest in ((LOWEST, False), (HIGHEST, True)):
        if any(fnmatch(name, pattern) for pattern in patterns):
            return highest
    raise UserError(
        f"config.train.keep_best_by={metric!r}: whether its lowest or its highest value is the best is not "
        f"known; lowest are {', '.join(LOWEST)}, highest {', '.join(HIGHEST)}"
    )
