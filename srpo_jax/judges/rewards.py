"""What completions are worth to a judge, one number each: the reward of online learning."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from srpo_jax.judges.judge import Judge, Prompt
from srpo_jax.runtime.errors import UserError


@runtime_checkable
class Scoring(Protocol):
    """A judge that has a number for each completion by itself."""

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Of N prompts with a completion each, float64 [N]; NaN for what cannot be scored."""


def rewards(
    judge: Judge,
    how: str,
    prompts: Sequence[Prompt],
    golds: Sequence[str | None],
    completions: Sequence[Sequence[str]],
) -> np.ndarray:
    """float64 [N, k], of k completions of each prompt; NaN where the judge is silent.

    how: "score", the judge's own number; "gold", P(better than the gold); "others", the mean P(better than
    each other completion of the prompt). Raises UserError as `check_rewards` does.
    """
    check_rewards(judge, how, golds)
    if how == "others":
        return np.stack([_among(judge, x, ys) for x, ys in zip(prompts, completions, strict=True)])
    texts = [y for ys in completions for y in ys]
    asked = [x for x, ys in zip(prompts, completions, strict=True) for _ in ys]
    if how == "score":
        assert isinstance(judge, Scoring)  # checked
        found = judge.scores(asked, texts)
    else:
        known = [g for g, ys in zip(golds, completions, strict=True) for _ in ys if g is not None]
        found = judge.probabilities(asked, texts, known)
    return np.asarray(found, np.float64).reshape(len(completions), -1)


def check_rewards(judge: Judge, how: str, golds: Sequence[str | None]) -> None:
    """UserError for a judge without numbers of its own, and for prompts without gold, where these are asked
    for. how, golds: as of `rewards`."""
    if how == "score" and not isinstance(judge, Scoring):
        raise UserError(
            f"the judge {judge.name} compares completions and has no score of one: set "
            "config.online.reward to gold or others"
        )
    if how == "gold" and None in golds:
        raise UserError(
            f"config.online.reward=gold, and {golds.count(None)} of {len(golds)} documents have no gold: "
            "set it to others, or score"
        )


def _among(judge: Judge, prompt: Prompt, completions: Sequence[str]) -> np.ndarray:
    """[k], the mean P(better than another); each pair is asked about once."""
    k = len(completions)
    pairs = list(itertools.combinations(range(k), 2))
    first, second = ([completions[pair[i]] for pair in pairs] for i in (0, 1))
    won = np.zeros((k, k))
    for (i, j), p in zip(
        pairs, judge.probabilities([prompt] * len(pairs), first, second), strict=True
    ):
        won[i, j], won[j, i] = p, 1 - p
    mean: np.ndarray = won.sum(axis=1) / (k - 1)
    return mean
