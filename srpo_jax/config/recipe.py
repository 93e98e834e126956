"""The stages of a recipe with the settings that each of them has in full.

A recipe is a configuration and, in config.recipe.stages, how each stage differs from it; what an earlier
stage made is named {STAGE}.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_jax.config.programs import RecipeSettings, StageSettings
from srpo_jax.config.settings import (
    HOW,
    REPLACED,
    Settings,
    checked,
    config_dict,
    flatten,
    update,
)
from srpo_jax.runtime import files
from srpo_jax.runtime.errors import UserError

PAIRS = "pairs.jsonl"  # what a stage of pairs makes, in its folder
REPORT = "report/results.json"  # and one of evaluation
CACHE = "cache"  # a folder that stages share
KEPT = "recipe.json"  # the stages of the newest command, for `status`
FINISHED = "finished.json"  # in a stage's folder
READ = "reads"  # in that file
# The sections that decide what a program makes.
READS = {
    "pairs": ("seed", "model", "data", "sampling", "pairs", "judge"),
    "train": ("seed", "model", "lora", "data", "objective", "reference", "train", "optimizer"),
    "train_online": (
        *("seed", "model", "lora", "data", "reference", "online", "sampling", "judge"),
        *("train", "optimizer"),
    ),
    "evaluate": ("seed", "model", "data", "sampling", "evaluate", "judge"),
}


@dataclasses.dataclass(frozen=True)
class Stage:
    """settings: as its program takes them. folder: its workdir. reads: the stages that it names."""

    name: str
    program: str
    settings: Settings
    folder: Path
    reads: frozenset[str] = frozenset()

    @property
    def made(self) -> Path:
        """What later stages read."""
        return self.folder / PAIRS if self.program == "pairs" else self.folder

    def is_finished(self) -> bool:
        """Whether it was finished here with these settings, of those that decide what it makes.

        A setting that there was not yet had its default. Pairs or a report that were deleted are to be made
        anew; the checkpoints of a training may go when they have served.
        """
        made = {"pairs": PAIRS, "evaluate": REPORT}.get(self.program)
        if not self._kept.is_file() or (made and not (self.folder / made).is_file()):
            return False
        kept = files.read_json(self._kept, "delete it to run this stage again")
        now = _flat(self.settings, self.program)
        known = {key: value for key, value in kept.items() if key in now}
        return _flat(Settings(), self.program) | known == now

    def forget(self) -> None:
        """Forgets that the stage was finished. For process 0."""
        self._kept.unlink(missing_ok=True)

    def finish(self) -> None:
        """Remembers that the stage is finished, and what it has read. For process 0."""
        reads = {READ: sorted(self.reads)}
        files.write_json(self._kept, _flat(self.settings, self.program) | reads)

    def forget_readers(self) -> None:
        """What has read this stage is finished no more, of all that was finished in the recipe's folder: a
        recipe may be started with other stages behind the same ones. For process 0."""
        remedy = "delete it to run that stage again"
        for kept in self.folder.parent.glob(f"*/{FINISHED}"):
            if self.name in files.read_json(kept, remedy).get(READ, ()):
                kept.unlink()

    @property
    def _kept(self) -> Path:
        return self.folder / FINISHED


def remember(stages: Sequence[Stage], workdir: Path) -> None:
    """Writes which stages there are to be. For process 0."""
    known = [{"name": stage.name, "program": stage.program} for stage in stages]
    files.write_json(workdir / KEPT, {"stages": known})


def _flat(settings: Settings, program: str) -> dict[str, Any]:
    """The settings that decide what a program makes, as JSON has them."""
    whole = dataclasses.asdict(settings)
    read = flatten({section: whole[section] for section in READS[program]})
    left_out = HOW + (REPLACED if program in ("pairs", "train_online") else ())
    what = {key: value for key, value in read.items() if not key.startswith(left_out)}
    plain: dict[str, Any] = json.loads(json.dumps(what | {"program": program}))
    return plain


def stage(name: str, program: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of config.recipe.stages. settings: {"objective.beta": 0.1, …}, what it has of its own."""
    return {"name": name, "program": program, "set": dict(settings)}


def resolve(settings: Settings, workdir: Path) -> list[Stage]:
    """All stages, in order, each in workdir/NAME.

    Raises UserError for no stages, for a name given twice, for {NAME} of no earlier stage, and for a
    setting at fault, naming the stage: all before anything runs.
    """
    if not settings.recipe.stages:
        raise UserError("config.recipe.stages is empty: a recipe is a file that has them")
    # What trees and reference scores one stage has made, the others read.
    data = dataclasses.replace(settings.data, cache=settings.data.cache or str(workdir / CACHE))
    base = dataclasses.replace(settings, recipe=RecipeSettings(), data=data)
    found: dict[str, Stage] = {}
    for own in settings.recipe.stages:
        if own.name in found:
            raise UserError(f"config.recipe.stages: two stages are called {own.name!r}")
        try:
            found[own.name] = _stage(base, own, workdir / own.name, found)
        except UserError as error:
            raise UserError(f"config.recipe.stages: stage {own.name!r}: {error}") from error
    return list(found.values())


def _stage(base: Settings, own: StageSettings, folder: Path, earlier: Mapping[str, Stage]) -> Stage:
    reads: set[str] = set()

    def made(named: re.Match[str]) -> str:
        name = named[1]
        if name not in earlier:
            known = ", ".join(earlier) or "there is none"
            raise UserError(f"{{{name}}} names no earlier stage: {known}")
        reads.add(name)
        return str(earlier[name].made)

    config = config_dict(base)
    update(config, _filled(own.set, made), "set")
    settings = checked(config)
    compared = settings.evaluate.models or settings.evaluate.outputs
    if own.program == "evaluate" and not compared:
        raise UserError(
            "nothing is evaluated: set evaluate.models, e.g. ('start={sft}', 'srpo={srpo}')"
        )
    return Stage(own.name, own.program, settings, folder, frozenset(reads))


def _filled(value: Any, made: Callable[[re.Match[str]], str]) -> Any:
    """With what `made` gives of every {NAME}, in all texts at any depth."""
    if isinstance(value, str):
        return re.sub(r"\{(\w[\w.-]*)\}", made, value)  # {"a": 1} is JSON, for a judge say
    if isinstance(value, list | tuple):
        return tuple(_filled(part, made) for part in value)
    if isinstance(value, Mapping):
        return {key: _filled(part, made) for key, part in value.items()}
    return value
