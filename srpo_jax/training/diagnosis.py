"""Sentences on what the scores say of a run: can revision help, and are likelihoods displaced?"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from srpo_jax.objectives import diagnostics
from srpo_jax.objectives.losses import IMPROVE_SCORES
from srpo_jax.runtime.metrics import status
from srpo_jax.training.pipeline import PairTrees

ENOUGH = 0.6  # of the pairs, whose label can outweigh the copy
WATCHED = ("log_ratio_chosen", "log_ratio_improve")
FALLS, NATS = 3, 1.0  # evaluations in a row, and the least fall over them that is worth a sentence


def copying(
    data: PairTrees, hyper: Mapping[str, Any], reference: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """What the reference scores of data's pairs, {name: float32 [n]}, say before the first step.

    {} for objectives that show no draft, and where there are no scores yet.

    copy_advantage (median), _low and _high (quartiles): nats by which the reference prefers to copy a
    rejected draft, or a chosen one of a label below 1/2; beyond_copy: the share of the pairs whose label
    outweighs that, |p - 1/2| / beta > it.
    """
    if not reference.keys() >= set(IMPROVE_SCORES):
        return {}
    scored = ~np.isnan(reference["w|l"])  # the pairs that the run uses
    advantage = np.asarray(diagnostics.copy_advantage(reference, data.label_prob))[scored]
    low, median, high = np.percentile(advantage, [25, 50, 75])
    beyond = np.mean(np.abs(data.label_prob[scored] - 0.5) / hyper["beta"] > advantage)
    return {
        "copy_advantage": float(median),
        "copy_advantage_low": float(low),
        "copy_advantage_high": float(high),
        "beyond_copy": float(beyond),
    }


def report_copying(
    data: PairTrees, hyper: Mapping[str, Any], reference: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Says what `copying` finds, with another sentence where revision can hardly help, and returns it."""
    found = copying(data, hyper, reference)
    if not found:
        return found
    low, high = found["copy_advantage_low"], found["copy_advantage_high"]
    status(
        f"copy advantage: shown a rejected draft, the reference prefers its copy to the chosen completion "
        f"by {found['copy_advantage']:.1f} nats (median; quartiles {low:.1f} and {high:.1f}); the label "
        f"can outweigh that, (p - 1/2) / beta, in {found['beyond_copy']:.0%} of the pairs"
    )
    if found["beyond_copy"] < ENOUGH:
        status(
            f"warning: that is less than {ENOUGH:.0%}: at the optimum too many revisions copy their draft. "
            "Lower config.objective.beta, or take pairs whose two completions are nearer to each other"
        )
    return found


def falling(levels: Sequence[float]) -> bool:
    """Whether the last FALLS steps of a series went down, by NATS or more together."""
    last = np.asarray(levels[-FALLS - 1 :], np.float64)
    if len(last) <= FALLS:
        return False
    return bool((np.diff(last) < 0).all() and last[0] - last[-1] >= NATS)


def report_displacement(history: Sequence[Mapping[str, Any]], prefix: str) -> None:
    """Says of each watched level when it has begun to fall steadily.

    history: lines of metrics in order, with the level as prefix + name.
    """
    for name in WATCHED:
        levels = [float(line[prefix + name]) for line in history if prefix + name in line]
        if falling(levels) and not falling(levels[:-1]):
            status(
                f"warning: {name} of the held-out pairs has fallen at {FALLS} evaluations in a row, to "
                f"{levels[-1]:.1f} nats a completion: what should become likelier becomes rarer "
                "(displacement). Lower config.optimizer.learning_rate, raise config.objective.beta, or "
                "keep an earlier checkpoint"
            )
