"""What is compared: models, files of outputs, the best of several samples; and what they meet."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from srpo_jax import config as config_module
from srpo_jax import judges
from srpo_jax.config import Settings
from srpo_jax.config.programs import EvaluateSettings
from srpo_jax.models import loading
from srpo_jax.prompts import TEMPLATES
from srpo_jax.reporting.verdicts import GOLD, OWN
from srpo_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Contestants:
    """models: name -> source. outputs: name -> files. best_of: name in the report -> model it samples."""

    models: Mapping[str, str]
    outputs: Mapping[str, tuple[Path, ...]]
    best_of: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """In the order of the report: a model's best of k + 1 stands behind it."""
        best = {model: name for name, model in self.best_of.items()}
        models = [n for model in self.models for n in (model, best.get(model)) if n]
        return (*models, *self.outputs)

    def opponents(self, settings: EvaluateSettings) -> tuple[tuple[str, str], ...]:
        """(name, opponent) of every comparison; opponent: GOLD, OWN or another's name.

        Revision k meets the baseline's revision k and, where there is one, its best of k + 1 samples, which
        took as many completions. Raises UserError for a baseline that is not compared.
        """
        found: dict[tuple[str, str], None] = {}
        for entry in settings.against:
            if entry == "own":
                found |= {(n, OWN): None for n in self.names if n not in self.best_of}
            elif entry == "gold":
                found |= {(name, GOLD): None for name in self.names}
            else:
                found |= dict.fromkeys(self._with_baseline(entry.removeprefix("baseline:")))
        return tuple(found)

    def _with_baseline(self, baseline: str) -> Iterable[tuple[str, str]]:
        if baseline not in self.names:
            raise UserError(
                f"config.evaluate.against: there is no model {baseline!r}: there are "
                f"{', '.join(self.names)}"
            )
        best = [name for name, model in self.best_of.items() if model == baseline]
        for name in self.names:
            if name not in (baseline, *best):
                yield from ((name, opponent) for opponent in (baseline, *best))


def contestants(settings: EvaluateSettings, models: Mapping[str, str]) -> Contestants:
    """Those of the settings; models: name -> source, where the settings name none."""
    given = [_split(entry) for entry in settings.models]
    _once([name for name, _ in given], "models")
    chosen = dict(given) if settings.models or settings.outputs else dict(models)
    outputs: dict[str, tuple[Path, ...]] = {}
    for name, file in map(_split, settings.outputs):
        outputs[name] = (*outputs.get(name, ()), Path(file))
    for name in outputs.keys() & chosen.keys():
        raise UserError(f"config.evaluate: {name!r} names both a model and a file of outputs")
    for model in settings.best_of:
        if model not in chosen:
            raise UserError(
                f"config.evaluate.best_of: there is no model {model!r}: there are "
                f"{', '.join(chosen) or 'none'}"
            )
    by = "mean" if settings.best_by == "mean" else "summed"
    best = {f"{m}, best of k+1 by {by} log-probability": m for m in settings.best_of}
    return Contestants(chosen, outputs, best)


def check_opponents(settings: Settings, who: Contestants) -> None:
    """UserError for a baseline that is not compared, and for the gold beside a judge that is shown it."""
    who.opponents(settings.evaluate)
    if "gold" in settings.evaluate.against:
        judges.require_no_gold(settings.judge)


def check_templates(settings: Settings, models: Mapping[str, str]) -> None:
    """UserError for a run that was trained with another template than its revisions would be asked in, or
    gave a chat template other arguments."""
    now = settings.data
    keys = ["template"]
    if TEMPLATES[now.template].chat:
        keys += ["template_arguments", "template_date"]
    for source in models.values():
        if (directory := loading.run_of(source)) is None:
            continue
        trained = config_module.read(directory / "config.json").data
        for key in keys:
            if getattr(trained, key) != getattr(now, key):
                raise UserError(
                    f"{directory} was trained with data.{key}={getattr(trained, key)!r}, and "
                    f"config.data.{key} is {getattr(now, key)!r}: evaluate it with the same"
                )


def _split(entry: str) -> tuple[str, str]:
    name, _, source = entry.partition("=")
    return name, source


def _once(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"config.evaluate.{what}: {name!r} is given twice")
