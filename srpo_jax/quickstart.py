"""The whole path on real text: pairs -> SRPO and DPO -> self-revision -> win rates against humans.

    python -m srpo_jax.quickstart [--config=configs/quickstart.py] [--workdir=runs/quickstart]

SmolLM2-135M-Instruct writes two descriptions each of some Wikipedia leads, a judge compares them, SRPO
and DPO are trained on these pairs from the same start, and all three models then write and revise
descriptions of held-out Wikipedia leads (in distribution) and of ACL papers' abstracts (out of
distribution). Safe to interrupt: the same command goes on where it was. Nothing but the package index
is needed, and that only the first time.
"""

import dataclasses
import time
from pathlib import Path

from srpo_jax.config import Settings, command
from srpo_jax.config.workdir import claim
from srpo_jax.evaluate import evaluate
from srpo_jax.pairs import make_pairs
from srpo_jax.runtime import distributed
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import INTERRUPTED
from srpo_jax.train import train


def main(settings: Settings, workdir: Path) -> int:
    distributed.initialize()
    began = time.monotonic()
    runs = method_settings(settings, workdir)
    # Those may change: they are applied to the models already trained.
    may_change = ("evaluate.", "judge.", "mesh.")
    distributed.from_main(lambda: claim(workdir, settings, {}, may_change=may_change))

    status("\n1. Pairs: two completions a document, compared by the judge")
    make_pairs(settings, workdir, workdir / "pairs.jsonl")

    for number, (name, run) in enumerate(runs.items(), 2):
        status(f"\n{number}. Training {name.upper()}")
        if not train(run, workdir / name):
            return INTERRUPTED

    status(f"\n{len(runs) + 2}. Revising and judging")
    methods = {"start": settings.model.source} | {name: str(workdir / name) for name in runs}
    facts = [
        (
            "training",
            f"{settings.train.steps} steps of {settings.train.batch_size} pairs, LoRA rank "
            f"{settings.lora.rank}, alpha {settings.objective.alpha} (SRPO)",
        ),
        *(
            (
                name.upper(),
                f"beta {run.objective.beta}, learning rate {run.optimizer.learning_rate}",
            )
            for name, run in runs.items()
        ),
    ]
    title = "SRPO quickstart: does the model improve its own answer?"
    evaluate(settings, workdir, methods, title=title, facts=facts)
    minutes = (time.monotonic() - began) / 60
    status(f"\nDone in {minutes:.1f} minutes. Open {workdir / 'report' / 'report.html'}")
    return 0


def method_settings(settings: Settings, workdir: Path) -> dict[str, Settings]:
    """The settings of each method's run: equal but for what config.quickstart says."""
    own = settings.quickstart
    if not len(own.methods) == len(own.beta) == len(own.learning_rate):
        raise UserError(
            "config.quickstart.methods, .beta and .learning_rate must have one entry a method"
        )
    change = dataclasses.replace
    data = change(settings.data, pairs=str(workdir / "pairs.jsonl"))
    return {
        name: change(
            settings,
            data=data,
            objective=change(settings.objective, name=name, beta=beta),
            optimizer=change(settings.optimizer, learning_rate=rate),
        )
        for name, beta, rate in zip(own.methods, own.beta, own.learning_rate, strict=True)
    }


if __name__ == "__main__":
    command.run(
        main,
        (
            "model",
            "lora",
            "data",
            "objective",
            "train",
            "optimizer",
            "sampling",
            "pairs",
            "evaluate",
            "judge",
            "quickstart",
        ),
        config="configs/quickstart.py",
        workdir="runs/quickstart",
    )
