"""More steps for a run that was begun with fewer."""

from pathlib import Path

import numpy as np

from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.training.optimizer import OptimizerSettings, learning_rate

# What --extend may change beside train.steps.
SCHEDULE = ("optimizer.schedule", "optimizer.decay_steps")


def longer(
    before: tuple[OptimizerSettings, int],
    now: tuple[OptimizerSettings, int],
    done: int,
    asked: bool,
) -> tuple[str, ...]:
    """The settings that an attempt may change because it goes on for longer; none where it does not.

    before, now: the optimiser's settings and the steps of the run, as it was begun and as it is to go on.
    done: steps taken, see `taken`. Without being asked a run may grow if the learning rates of the steps
    that it has taken stay the same: always under a constant schedule, and under wsd up to its decay.
    UserError says what to ask for where they would not. Called by all processes.
    """
    if now[1] <= before[1]:
        return ()
    steps = np.arange(done + 1)
    rates, others = (
        np.broadcast_to(learning_rate(*one)(steps), steps.shape) for one in (before, now)
    )
    if (rates[:done] == others[:done]).all():
        status(f"{now[1]} steps in place of {before[1]}; nothing changes for the {done} taken")
        return ("train.steps", *SCHEDULE)
    if asked:
        status(
            f"{now[1]} steps in place of {before[1]}: step {done + 1} has the learning rate "
            f"{others[done]:.3g} (it was to have {rates[done]:.3g})"
        )
        return ("train.steps", *SCHEDULE)
    raise UserError(
        f"config.train.steps was {before[1]} and is {now[1]}: under config.optimizer.schedule="
        f"{now[0].schedule} the {done} steps taken would have had other learning rates. --extend goes on "
        f"all the same, at {others[done]:.3g} (it was to be {rates[done]:.3g}); or take the old value, or "
        "another --workdir"
    )


def taken(directory: Path) -> int:
    """Steps up to the newest checkpoint in a folder of them. Called by all processes."""
    if not directory.is_dir():
        return 0
    with Checkpoints(directory, read_only=True) as checkpoints:
        return checkpoints.latest() or 0
