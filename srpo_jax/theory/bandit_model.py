"""The bandit with a transformer in place of tables: completions are single tokens.

The decoder, the prefix trees, the scoring and the train step are those that train a language model;
only the data are special. The vocabulary is the K actions, so that what follows a prompt is one of
them and the policy is a whole softmax that can be read off and laid beside `bandit.solve`. A batch is
the exact population: each pair of actions as often as the behaviour policy draws it.

    python -m srpo_jax.theory.bandit_model --output=DIR      trains SRPO, IPO and DPO, prints, and draws
"""

import argparse
import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo_jax import objectives
from srpo_jax.models import creation, loading
from srpo_jax.models.decoder import Decoder
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.theory import bandit
from srpo_jax.theory.bandit_picture import (
    COLOURS,
    EXAMPLES,
    OBJECTIVES,
    largest_move,
    make_folder,
    one_sentence,
)
from srpo_jax.training import pipeline, step
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.forest import Forest

PREFERENCE = EXAMPLES["cycle"]
BETA, ALPHA = 0.3, 0.5
# How often each action is drawn, in whole numbers, so that a batch can hold the exact population.
BEHAVIOURS = {"uniform": (1, 1, 1), "80 % A": (8, 1, 1)}
# Prompts are actions too: the vocabulary has no other tokens. An action shown follows IMPROVE.
DIRECT, IMPROVE = 0, 1
STEPS, LEARNING_RATE, SEED = 300, 1e-2, 14  # SEED draws a reference that SRPO leaves visibly
ACTIONS = ("A", "B", "C")
ARCHITECTURE = dataclasses.replace(loading.TINY, vocab_size=len(PREFERENCE), dtype="float32")


class Run(NamedTuple):
    """One model trained.

    reference, policy: what it says before and after, float64 [1 + K, K]; row 0 under the direct
    prompt, row 1 + b under the improve prompt that shows b. exact: what tables in its place would say
    after, the same rows, but without improve scores row 0 only. losses: [steps].
    """

    reference: np.ndarray
    policy: np.ndarray
    exact: np.ndarray
    losses: np.ndarray


def population(names: Sequence[str], counts: Sequence[int]) -> pipeline.PairTrees:
    """All ordered pairs (a, b) of actions as prefix trees, each counts[a] * counts[b] times.

    names: the score names that are needed. label_prob is PREFERENCE[a, b].
    """
    pairs = list(itertools.product(np.repeat(range(len(counts)), counts).tolist(), repeat=2))

    def sequence(name: str, pair: tuple[int, int]) -> tuple[list[int], list[int]]:
        action = dict(zip("wl", pair, strict=True))
        scored, _, shown = name.partition("|")
        return [IMPROVE, action[shown]] if shown else [DIRECT], [action[scored]]

    trees = (prefix_tree.build([sequence(name, pair) for name in names]) for pair in pairs)
    return pipeline.PairTrees(
        names=tuple(names),
        trees=Forest.of(trees),
        label_prob=np.array([PREFERENCE[pair] for pair in pairs], np.float32),
    )


def policy(model: Decoder) -> np.ndarray:
    """What the model says, as in `Run`: a plain forward pass without prefix trees and scoring."""
    improve = [[IMPROVE, shown] for shown in range(model.config.vocab_size)]
    logits = [_logits(model, jnp.array(prompts)) for prompts in ([[DIRECT]], improve)]
    weights = np.exp(np.vstack(logits).astype(np.float64))
    probabilities: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


@nnx.jit
def _logits(model: Decoder, prompts: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
    causal = positions[:, :, None] >= positions[:, None, :]
    return model.logits(model(prompts, positions, causal)[:, -1])


def train(objective_name: str, counts: Sequence[int], steps: int = STEPS) -> Run:
    """Trains the model on the pairs of one behaviour policy.

    The reference is the model as it starts, drawn from SEED: the same in every call.
    """
    objective = objectives.get(objective_name)
    hyper = {"beta": BETA, "alpha": ALPHA} if objective_name == "srpo" else {"beta": BETA}
    mesh = mesh_module.make(devices=jax.local_devices()[:1])
    graphdef, trained, frozen = creation.create(ARCHITECTURE, None, mesh, SEED)
    optimizer, _ = make_optimizer(OptimizerSettings(learning_rate=LEARNING_RATE), steps)
    programs = step.TrainStep(graphdef, optimizer, objective, hyper, mesh).compile(trained)
    data = population(objective.needs, counts)
    packing = data.packing(len(data), SEED, packed=False)
    batch = mesh_module.host_to_global(mesh, next(pipeline.batches(data, packing, 0)))
    batch["reference"], _ = programs.reference(trained, frozen, batch["rows"])
    reference = policy(nnx.merge(graphdef, trained, frozen))
    state, losses = step.TrainState(trained, programs.init(trained)), []
    for _ in range(steps):
        state, metrics = programs.train(state, frozen, batch)
        losses.append(metrics["loss"])
    return Run(
        reference=reference,
        policy=policy(nnx.merge(graphdef, state.model, frozen)),
        exact=exact(objective_name, np.divide(counts, np.sum(counts)), reference),
        losses=np.array(jax.device_get(losses)),
    )


def exact(objective_name: str, behaviour: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The answer of tables, rows as in `Run`: SRPO's and IPO's closed forms, a fit for others."""
    direct, improve = reference[0], reference[1:]
    if objective_name == "srpo":
        return np.vstack(bandit.solve(PREFERENCE, direct, improve, BETA))
    if objective_name == "ipo":
        return bandit.solve_ipo(PREFERENCE, behaviour, direct, BETA)[None]
    return bandit.fit(objective_name, PREFERENCE, behaviour, direct, improve, beta=BETA)[0][None]


def moves_by(runs: Mapping[str, Run]) -> float:
    """Total variation between the pi of an objective's runs, by behaviour policy."""
    return largest_move({label: (run.policy[0], None) for label, run in runs.items()})


def gap(run: Run) -> float:
    """Total variation between the model and the exact answer, the largest of any prompt."""
    return bandit.total_variation(run.policy[: len(run.exact)], run.exact)


def report(name: str, runs: Mapping[str, Run]) -> str:
    """The answers of one objective's runs as a few lines of text."""

    def row(label: str, pi: np.ndarray) -> str:
        return f"  {label:<10}" + " ".join(f"{p:.4f}" for p in pi)

    title = f"{name.upper()}: pi of {', '.join(ACTIONS)}"
    lines = [title, row("reference", runs["uniform"].reference[0])]
    for label, run in runs.items():
        lines.append(f"{row(label, run.policy[0])}   {gap(run):.0e} from the exact answer")
    return "\n".join([*lines, f"  moves by {moves_by(runs):.4f} (total variation)"])


def draw(path: Path, runs: Mapping[str, Mapping[str, Run]]) -> None:
    """Bars: the models by objective and behaviour; lines across them: the exact answers."""
    figure = Figure(figsize=(11, 6))
    axes = figure.subplots(2, len(ACTIONS), sharey=True)
    for axis, (name, by_behaviour) in zip(axes[0], runs.items(), strict=True):
        title = f"{name.upper()}: moves by {moves_by(by_behaviour):.2f} (total variation)"
        _draw_row(axis, title, by_behaviour, 0)
    for row, (axis, action) in enumerate(zip(axes[1], ACTIONS, strict=True), start=1):
        _draw_row(axis, f"SRPO, {action} shown", runs["srpo"], row)
    axes[0, 0].set_ylabel(r"generative policy $\pi(y)$")
    axes[1, 0].set_ylabel(r"self-improvement policy $\pi^\dagger(y\,|\,\cdot)$")
    figure.tight_layout(rect=(0, 0, 0.86, 1))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="pairs written by", loc="center right", frameon=False)
    figure.savefig(path, dpi=90)
    print(f"wrote {path}")


def _draw_row(axis: Axes, title: str, runs: Mapping[str, Run], row: int) -> None:
    width = 0.8 / (1 + len(runs))
    at = np.arange(len(ACTIONS)) - 0.4 + width / 2
    axis.bar(at, runs["uniform"].reference[row], 0.9 * width, color="#d8dee9", label="(reference)")
    for colour, (label, run) in zip(COLOURS, runs.items(), strict=False):
        at = at + width
        axis.bar(at, run.policy[row], 0.9 * width, color=colour, label=label)
        axis.hlines(run.exact[row], at - width / 2, at + width / 2, color="black", zorder=3)
    axis.plot([], [], color="black", label="exact answer")
    axis.set_title(title, fontsize=10)
    axis.set(xlabel="completion", xticks=range(len(ACTIONS)), xticklabels=ACTIONS)
    axis.spines[["top", "right"]].set_visible(False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_jax.theory.bandit_model",
        description="Small transformers trained with SRPO, IPO and DPO on pairs written by two "
        "behaviour policies, beside the exact answers. Prints them and draws bandit_model.png. "
        "Takes about a minute.",
    )
    parser.add_argument("--output", type=Path, default=Path("bandit"), help="folder (%(default)s)")
    options = parser.parse_args(arguments)
    with one_sentence():
        make_folder(options.output)
        runs: dict[str, dict[str, Run]] = {}
        for name in OBJECTIVES:
            runs[name] = {label: train(name, counts) for label, counts in BEHAVIOURS.items()}
            print(report(name, runs[name]))
        draw(options.output / "bandit_model.png", runs)


if __name__ == "__main__":
    main()
