"""Trains a model on what it writes itself: PPO, RLOO or CoPG, with a judge's reward.

    python -m srpo_jax.train_online --config=configs/NAME.py --workdir=DIR [--config.online.objective=ppo]
    python -m srpo_jax.train_online --config=configs/NAME.py --workdir=DIR --alternate

A round writes config.online.samples completions of each of config.train.batch_size prompts, has the judge
reward them, and updates the policy; config.train.steps rounds are a run. With --alternate phases of these
rounds and phases of `train` on fresh pairs of the policy's own follow each other, as config.alternate says,
each in a folder of DIR, by `recipe`. The same command resumes an interrupted run where it stopped, on any
number of devices; a finished run says so. DIR receives config.json, run.json, checkpoints/, metrics.jsonl
and tensorboard/, as of `train`; `evaluate`, `pairs` and `convert` read it like any other run.
"""

from pathlib import Path

from srpo_jax import recipe
from srpo_jax.config import Settings, command
from srpo_jax.config.alternate import as_recipe
from srpo_jax.pairing.rounds import train
from srpo_jax.runtime import distributed
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import INTERRUPTED, keep_compiled


def train_in_phases(settings: Settings, workdir: Path) -> bool:
    """The phases of config.alternate, from where they stopped. Returns False if asked to stop early.

    Raises UserError for a phase at fault, before the first one begins, and for what a phase raises.
    """
    stages = as_recipe(settings)
    if not recipe.run(stages, workdir):
        return False
    status(f"the policy is in {workdir / stages.recipe.stages[-1].name}")
    return True


def main(settings: Settings, workdir: Path, alternate: bool) -> int:
    distributed.initialize()
    keep_compiled(workdir)
    if settings.alternate.phases and not alternate:
        status("warning: config.alternate.phases is not read: it is what --alternate carries out")
    run = train_in_phases if alternate else train
    return 0 if run(settings, workdir) else INTERRUPTED


if __name__ == "__main__":
    online = ("model", "lora", "mesh", "online", "sampling", "judge", "train", "optimizer", "data")
    switches = {"alternate": "phases of preference learning on the policy's own pairs, too"}
    command.run(main, (*online, "reference", "alternate", "pairs", "objective"), switches=switches)
