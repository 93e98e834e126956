"""The objectives that a model can be trained on: their table, their metrics, checks of their input.

An objective is a loss of `objectives/losses.py` (read the equations there) and the names of the scores
that it needs. Adding one is one function there and one line in `OBJECTIVES`.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Real

from srpo_jax.objectives import losses
from srpo_jax.objectives.losses import (
    DIRECT_SCORES,
    IMPROVE_SCORES,
    REWARD_SCORES,
    Metrics,
    Scores,
    Values,
)
from srpo_jax.runtime.errors import UserError

# What a user may give: of any precision, and in numpy too.
Given = Real[Array | np.ndarray, "*B"]


@dataclass(frozen=True)
class Objective:
    """A loss and what it needs; see `__call__`.

    Attributes:
      name: the key in `OBJECTIVES`.
      needs: names of the scores read, of the policy and (if needs_reference) of the reference.
      loss: a function of `objectives/losses.py`.
      needs_reference: False where the loss reads no reference score.
      log_odds: whether the loss reads the log-odds of the label, which 0 and 1 do not have.
    """

    name: str
    needs: tuple[str, ...]
    loss: Callable[..., tuple[Values, Metrics]]
    needs_reference: bool = True
    log_odds: bool = False

    @property
    def rewards(self) -> bool:
        """Whether its scores are a reward model's, not log-probabilities."""
        return self.needs == REWARD_SCORES

    @property
    def hyperparameters(self) -> tuple[str, ...]:
        """Names of the hyperparameters that the loss reads, in the order of its signature."""
        return tuple(name for name in self._keywords if name != "lengths")

    @property
    def required(self) -> tuple[str, ...]:
        """The hyperparameters without a default."""
        keywords = self._keywords
        return tuple(
            n for n in self.hyperparameters if keywords[n].default is inspect.Parameter.empty
        )

    @property
    def _keywords(self) -> dict[str, inspect.Parameter]:
        parameters = inspect.signature(self.loss).parameters
        return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}

    def __call__(
        self,
        scores: Mapping[str, Given],
        reference: Mapping[str, Given] | None,
        label_prob: Given,
        *,
        lengths: Mapping[str, Given] | None = None,
        **hyper: Any,
    ) -> tuple[Values, Metrics]:
        """The loss of every pair, and what to log of it.

        Args:
          scores: score name -> [B] summed log-probability under the policy, or reward (names: `needs`).
          reference: the same under the reference; None or {} will do if not needs_reference.
          label_prob: [B] probability that chosen is better (range: `check_label_prob`).
          lengths: score name -> [B] number of scored tokens; read by objectives that need means,
            and by the metrics where given.
          **hyper: hyperparameters; those that the loss does not read, and those that are None, are
            left out (names and ranges: `check_hyperparameters`).

        Returns:
          loss [B] and metrics, name -> [B], float32 (float64 if any input is). Names common to
          all objectives, each there where its inputs are:
          loss; margin (beta-scaled: what the loss compares, see its docstring); accuracy (1 where
          the margin has the sign that the label asks for, 1/2 for a tie); log_ratio_chosen g(w),
          log_ratio_rejected g(l), log_ratio (their mean), in nats per completion, not beta-scaled;
          kl, the mean of g^2 / 2 (nats per completion; exact to second order in g for completions
          of the policy; for completions of another origin a measure of distance); the same with
          _improve over the four h; length_chosen, length_rejected (tokens); nll_chosen, nll_improve
          (nats per token of the chosen completion: direct, and shown the rejected one).

        Raises:
          UserError: a score, a reference score, a length or a required hyperparameter is missing.
        """
        scores = self._select(scores, "score")
        has_reference = self.needs_reference or bool(reference)
        reference = self._select(reference or {}, "reference score") if has_reference else {}
        label_prob = _float(label_prob)
        counts = {name: _float(length) for name, length in (lengths or {}).items()}
        given = {k: v for k, v in hyper.items() if k in self.hyperparameters and v is not None}
        if missing := [name for name in self.required if name not in given]:
            raise UserError(
                f"objective {self.name!r} has no default for {' and '.join(missing)}: set "
                + " and ".join(f"objective.{name}" for name in missing)
            )
        if "lengths" in self._keywords:
            given["lengths"] = counts
        loss, metrics = self.loss(scores, reference, label_prob, **given)
        common = {"loss": loss, **_policy_metrics(scores, reference, counts)}
        if "margin" in metrics:
            common["accuracy"] = losses.accuracy(metrics["margin"], label_prob)
        return loss, common | metrics

    def _select(self, scores: Mapping[str, Given], kind: str) -> dict[str, Values]:
        if missing := [name for name in self.needs if name not in scores]:
            raise UserError(
                f"objective {self.name!r} needs the {kind} {missing[0]!r}, "
                f"and was given {', '.join(sorted(scores)) or 'none'}"
            )
        return {name: _float(scores[name]) for name in self.needs}


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("srpo", DIRECT_SCORES + IMPROVE_SCORES, losses.srpo),
        Objective("dpo", DIRECT_SCORES, losses.dpo),
        Objective("robust_dpo", DIRECT_SCORES, losses.robust_dpo),
        Objective("ipo", DIRECT_SCORES, losses.ipo),
        Objective("copg", DIRECT_SCORES, losses.copg, log_odds=True),
        Objective("slic", DIRECT_SCORES, losses.slic),
        Objective("rpo", DIRECT_SCORES, losses.rpo),
        Objective("simpo", DIRECT_SCORES, losses.simpo, needs_reference=False),
        Objective("orpo", DIRECT_SCORES, losses.orpo, needs_reference=False),
        Objective("sft", ("w",), losses.sft, needs_reference=False),
        Objective("sft_improve", ("w", "w|l"), losses.sft_improve, needs_reference=False),
        Objective("reward", REWARD_SCORES, losses.reward, needs_reference=False),
    )
}


def get(name: str) -> Objective:
    """The objective called `name`. Raises UserError, naming all of them, if there is none."""
    if name not in OBJECTIVES:
        raise UserError(f"no objective is called {name!r}: choose one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[name]


# --- checks of what a user gives ----------------------------------------------------------------


def check_label_prob(label_prob: np.ndarray) -> None:
    """Raises UserError if a label_prob (any shape) is not a number in [0, 1]."""
    values = np.asarray(label_prob, dtype=np.float64).ravel()
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise UserError(
            f"label_prob must be in [0, 1], and pair {bad[0]} (counted from 0) has {values[bad[0]]}"
        )


def check_log_odds(objective: Objective, label_prob: np.ndarray, hyper: Mapping[str, Any]) -> None:
    """Raises UserError for labels (label_prob [n]) whose log-odds the objective would read, and which are 0
    or 1 in the precision given, smoothed or not."""
    if not objective.log_odds:
        return
    smoothing = float(hyper["label_smoothing"])
    smoothed = (1 - smoothing) * label_prob + smoothing * (1 - label_prob)
    sure = np.flatnonzero((smoothed <= 0) | (smoothed >= 1))
    if sure.size:
        raise UserError(
            f"objective {objective.name!r} reads a difference of rewards, log p / (1 - p), and "
            f"{sure.size} of {len(label_prob)} pairs have a label_prob of 0 or 1, where it is not finite: "
            f"set config.objective.label_smoothing above {smoothing:g}, to the share of wrong labels"
        )


# --- metrics common to all ----------------------------------------------------------------------


def _policy_metrics(scores: Scores, reference: Scores, lengths: Scores) -> Metrics:
    g = losses.log_ratios(scores, reference)
    metrics: Metrics = {}
    for names, suffix in ((DIRECT_SCORES, ""), (IMPROVE_SCORES, "_improve")):
        if present := [g[name] for name in names if name in g]:
            ratios = jnp.stack(present)
            metrics[f"log_ratio{suffix}"] = ratios.mean(axis=0)
            metrics[f"kl{suffix}"] = (ratios**2).mean(axis=0) / 2
    for name, role in (("w", "chosen"), ("l", "rejected")):
        if name in g:
            metrics[f"log_ratio_{role}"] = g[name]
        if name in lengths:
            metrics[f"length_{role}"] = lengths[name]
    for name, metric in (("w", "nll_chosen"), ("w|l", "nll_improve")):
        if name in scores and name in lengths:
            metrics[metric] = -scores[name] / lengths[name]
    return metrics


def _float(x: Given) -> Values:
    """x in float32, or in float64 if it is that already: bfloat16 scores are never summed as is."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
