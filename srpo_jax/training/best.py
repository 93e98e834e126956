"""Which of two checkpoints is the better one by a metric: the table of those that can tell."""

from __future__ import annotations

from fnmatch import fnmatch

from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.training.settings import TrainSettings

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


class Compared:
    """The number that a checkpoint is compared by, see train.keep_best; says when one has none."""

    def __init__(self, train: TrainSettings) -> None:
        self.by, self._every = train.keep_best_by, train.checkpoint_every
        self._silent = not train.keep_best

    def __call__(self, number: int, measured: float | None) -> float | None:
        """measured: what `by` was at step `number`, whose checkpoint is saved; None where nothing was.

        Said once in a start, as the next ones are likely to have none for the same reason, and not where a
        run was asked to stop, which may be anywhere.
        """
        if measured is None and number % self._every == 0 and not self._silent:
            self._silent = True
            status(
                f"warning: the checkpoint of step {number} is not compared with others, as "
                f"config.train.keep_best_by={self.by} was not measured at that step: let "
                "config.train.checkpoint_every be a multiple of what says how often it is measured "
                "(evaluate_every, log_every), and name a metric that the objective has"
            )
        return measured
