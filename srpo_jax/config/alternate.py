"""Phases that follow each other: pairs of the policy's own and `train` on them, rounds of `train_online`.

They are the stages of a recipe, each from the policy of the phase before.
"""

import dataclasses
from typing import Any

import numpy as np

from srpo_jax.config.programs import PhaseSettings, RecipeSettings, StageSettings
from srpo_jax.config.recipe import stage
from srpo_jax.config.settings import Settings
from srpo_jax.objectives.online import ONLINE
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build


def as_recipe(settings: Settings) -> Settings:
    """The settings with the stages of config.alternate.

    Phase N is the stage N-OBJECTIVE, and before it N-pairs where it learns from pairs. Each begins with
    what the one before has made, and draws with a seed of its own (`seed_of`); the reference is that
    beginning or, with config.alternate.reference=first, the policy (or config.reference.source) that the
    first phase had. Raises UserError for settings that have stages already.
    """
    own, policy = settings.alternate, settings.model.source
    if settings.recipe.stages:
        raise UserError("config.recipe.stages has stages: --alternate makes its own")
    first = settings.reference.source or (policy if own.reference == "first" else "")
    stages: list[dict[str, Any]] = []
    phases = own.phases or tuple(map(PhaseSettings, ("srpo", "copg")))
    for number, phase in enumerate(phases * own.cycles, 1):
        name = f"{number}-{phase.objective}"
        later = first if own.reference == "first" else ""
        begins: dict[str, Any] = {"seed": seed_of(settings.seed, number), "model.source": policy}
        begins["reference.source"] = settings.reference.source if number == 1 else later
        if phase.objective in ONLINE:
            program, more = "train_online", {"online.objective": phase.objective}
        else:
            stages.append(stage(f"{number}-pairs", "pairs", begins | phase.set))
            program = "train"
            more = {"objective.name": phase.objective, "data.pairs": f"{{{number}-pairs}}"}
        stages.append(stage(name, program, begins | more | phase.set))
        policy = f"{{{name}}}"
    found = tuple(build(StageSettings, one, "config.recipe.stages") for one in stages)
    return dataclasses.replace(settings, recipe=RecipeSettings(found))


def seed_of(seed: int, phase: int) -> int:
    """The seed of phase 1, 2, … of a run: its own for the first, below 2^31.

    The next whole number would not do: it is what a run with the next seed draws an earlier phase with.
    """
    if phase == 1:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(phase,)).generate_state(1)[0] >> 1)
