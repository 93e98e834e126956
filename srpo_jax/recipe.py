"""Runs the stages of a recipe: pairs, training, online too, and evaluation, in order, from one file.

    python -m srpo_jax.recipe --config=configs/NAME.py --workdir=DIR [--until=STAGE]

A stage lives in DIR/STAGE, as if its program had been called with that workdir. The same command goes on
where an interrupted one stopped; --until ends it behind a stage. A finished stage runs again when a setting
that decides what it makes has changed, or when a stage that it reads has run again. It does then what its
program alone would do: `evaluate` evaluates anew, `train` and `pairs` say which setting or data is another.
"""

import functools
from pathlib import Path

from srpo_jax import judges, objectives
from srpo_jax.config import Settings, command
from srpo_jax.config.recipe import Stage, remember, resolve
from srpo_jax.evaluate import evaluate
from srpo_jax.evaluation.contestants import check_opponents, contestants
from srpo_jax.pairing import rounds
from srpo_jax.pairs import check as check_pairs
from srpo_jax.pairs import make_pairs
from srpo_jax.runtime import distributed
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import INTERRUPTED, keep_compiled
from srpo_jax.train import train
from srpo_jax.training.hooks import check_best
from srpo_jax.training.optimizer import make_optimizer


def run(settings: Settings, workdir: Path, until: str | None = None) -> bool:
    """The stages up to `until`, or all. Returns False if it was asked to stop early.

    Raises UserError for a recipe at fault, before the first stage, and for what a stage's program raises.
    """
    stages = resolve(settings, workdir)
    last = _number(stages, until) if until is not None else len(stages)
    unfinished = distributed.from_main(lambda: [not stage.is_finished() for stage in stages[:last]])
    for stage, asked in zip(stages[:last], unfinished, strict=True):
        if asked:
            _check(stage)
    distributed.from_main(lambda: remember(stages, workdir))
    for number, stage in enumerate(stages[:last], 1):
        status(f"\n{number} of {len(stages)}. {stage.name} ({stage.program})")
        if distributed.from_main(stage.is_finished):
            status(f"{stage.folder} is finished")
            continue
        if not _carry_out(stage, stages[: number - 1]):
            return False
        distributed.from_main(functools.partial(_finish, stage, stages[number:]))
    return True


def _check(stage: Stage) -> None:
    """UserError, naming the stage, for settings that its program would refuse when its turn comes."""
    settings = stage.settings
    try:
        if stage.program == "train":
            reads = objectives.get(settings.objective.name).hyperparameters
            given = {key: v for key, v in settings.objective.given().items() if key in reads}
            objectives.check_hyperparameters(settings.objective.name, **given)
            make_optimizer(settings.optimizer, settings.train.steps)
            check_best(settings.train, evaluated=settings.train.evaluate_every > 0)
        elif stage.program == "train_online":
            rounds.check(settings)
        elif stage.program == "pairs":
            check_pairs(settings)
        else:
            check_opponents(settings, contestants(settings.evaluate, {}))
        if stage.program in ("train_online", "evaluate"):
            distributed.from_main(lambda: judges.check(settings.judge))
    except UserError as error:
        raise UserError(f"config.recipe.stages: stage {stage.name!r}: {error}") from error


def _finish(stage: Stage, later: list[Stage]) -> None:
    """What reads it is finished no more, in whichever command it comes."""
    for other in later:  # an earlier version did not keep what a stage has read
        if stage.name in other.reads:
            other.forget()
    stage.forget_readers()
    stage.finish()


def _number(stages: list[Stage], name: str) -> int:
    names = [stage.name for stage in stages]
    if name not in names:
        raise UserError(f"--until={name} is no stage: {', '.join(names)}")
    return names.index(name) + 1


def _carry_out(stage: Stage, earlier: list[Stage]) -> bool:
    settings, folder = stage.settings, stage.folder
    if stage.program == "train":
        return train(settings, folder)
    if stage.program == "train_online":
        return rounds.train(settings, folder)
    if stage.program == "pairs":
        make_pairs(settings, folder, stage.made)
    else:
        title = settings.evaluate.title or f"Win rates: {stage.name}"
        evaluate(settings, folder, {}, title=title, facts=_facts(earlier))
    return True


def _facts(earlier: list[Stage]) -> list[tuple[str, str]]:
    """How the models were trained, as the report shows it."""
    says = {"train": _trained, "train_online": _trained_online}
    return [
        (stage.name, says[stage.program](stage.settings))
        for stage in earlier
        if stage.program in says
    ]


def _trained(settings: Settings) -> str:
    reads = objectives.get(settings.objective.name).hyperparameters
    hyper = [f"{key} {value}" for key, value in settings.objective.given().items() if key in reads]
    return _how(settings, [settings.objective.name, *hyper], "steps")


def _trained_online(settings: Settings) -> str:
    own = settings.online
    return _how(settings, [f"{own.objective} of {own.samples}", f"beta {own.beta}"], "rounds")


def _how(settings: Settings, what: list[str], steps: str) -> str:
    how = [*what, f"learning rate {settings.optimizer.learning_rate:g}"]
    if settings.lora.rank:
        how.append(f"LoRA rank {settings.lora.rank}")
    return ", ".join([*how, f"{settings.train.steps} {steps} of {settings.train.batch_size}"])


def main(settings: Settings, workdir: Path, until: str | None) -> int:
    distributed.initialize()
    keep_compiled(workdir)  # for all stages: they run many equal programs
    return 0 if run(settings, workdir, until) else INTERRUPTED


SECTIONS = (
    *("model", "lora", "mesh", "data", "objective", "train", "optimizer"),
    *("reference", "sampling", "pairs", "online", "evaluate", "judge", "recipe"),
)
OPTIONS = {"until": "the last stage to run (default: the recipe's last)"}

if __name__ == "__main__":
    command.run(main, SECTIONS, options=OPTIONS)
