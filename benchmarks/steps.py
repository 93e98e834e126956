"""Our train steps, each on a fixed batch: prefix trees or separate rows."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import workload
from benchmarks.workload import Model, Workload
from srpo_jax import objectives
from srpo_jax.models import creation
from srpo_jax.objectives import Objective
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import step
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer

Step = Callable[[], float]
HYPER = {"beta": 0.1, "alpha": 0.5}
VARIANTS = ("SRPO, trees", "SRPO, chained trees", "SRPO, six rows", "DPO, trees", "DPO, two rows")


def our_step(model: Model, objective: Objective, batch: dict[str, Any]) -> Step:
    """A complete update (scores, loss, gradient, AdamW) on a fixed batch; returns the loss."""
    mesh = mesh_module.make(devices=jax.devices()[:1])
    graphdef, trained, frozen = creation.create(model.config, model.weights, mesh, 0)
    settings = OptimizerSettings(learning_rate=1e-6, warmup_steps=0, schedule="constant")
    optimizer, _ = make_optimizer(settings, steps=100)
    hyper = {k: v for k, v in HYPER.items() if k in objective.hyperparameters}
    programs = step.TrainStep(graphdef, optimizer, objective, hyper, mesh).compile(trained)
    kept = [step.TrainState(trained, programs.init(trained))]
    placed = mesh_module.host_to_global(mesh, batch)

    def run() -> float:
        kept[0], metrics = programs.train(kept[0], frozen, placed)
        return float(metrics["loss"])  # waits for the step

    return run


def variant(name: str, model: Model, work: Workload) -> Step:
    """One of VARIANTS."""
    method, layout = name.lower().split(", ")
    objective = objectives.get(method)
    if layout == "chained trees":
        work = dataclasses.replace(work, template="chained")
    if "rows" in layout:
        batch = workload.separate_batch(work, objective.needs)
        return our_step(model, workload.by_rows(method), batch)
    return our_step(model, objective, workload.trees_batch(work, objective.needs))
