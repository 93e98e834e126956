"""Judges that give each completion a number of its own, and compare two by the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import numpy as np

from srpo_jax.judges.judge import Prompt, Verdicts, preference, require_equal
from srpo_jax.models import loading
from srpo_jax.models.weights import CHECKPOINTS
from srpo_jax.runtime.errors import UserError


class Scorer(Protocol):
    """Gives a completion a number: the larger, the better. What may stand behind a `ScoreJudge`."""

    @property
    def unscored(self) -> str:
        """Why some completions have no score, as reports say it."""

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """s(x, y) of N prompts with a completion each, float64 [N]; NaN for what cannot be scored."""


class ScoreJudge:
    """P(a better than b | x) = sigmoid(scale (s(x, a) - s(x, b))); 1/2 for equal completions, always.

    Each completion is scored once and its score remembered, so the verdict of a swapped pair is 1 - p
    exactly, whatever batch a text was in. The order means nothing; a pair of which one has no score has
    no verdict. is_proxy: what a score is worth is for its description to say.
    """

    is_proxy = True

    def __init__(self, name: str, description: str, scorer: Scorer, scale: float = 1.0) -> None:
        self.name, self.description = name, description
        self._scorer, self._scale = scorer, scale
        self._known: dict[tuple[Prompt, str], float] = {}

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each."""
        require_equal(prompts, a, b)
        equal = np.array([x == y for x, y in zip(a, b, strict=True)], bool)
        pairs = [((x, y), (x, z)) for x, y, z in zip(prompts, a, b, strict=True) if y != z]
        self._score([one for pair in pairs for one in pair])
        margins = np.zeros(len(equal))
        margins[~equal] = [self._known[one] - self._known[other] for one, other in pairs]
        missing = {int(i): self._scorer.unscored for i in np.flatnonzero(np.isnan(margins))}
        return Verdicts(preference(self._scale * margins), missing=missing)

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """s(x, y), float64 [N]; NaN for what cannot be scored."""
        wanted = list(zip(prompts, completions, strict=True))
        self._score(wanted)
        return np.array([self._known[one] for one in wanted], np.float64)

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N]; NaN where there is no verdict."""
        return self.judge(prompts, a, b).probabilities

    def cost(self) -> dict[str, float]:
        """Nothing is paid."""
        return {}

    def _score(self, wanted: Sequence[tuple[Prompt, str]]) -> None:
        new = [one for one in dict.fromkeys(wanted) if one not in self._known]
        if new:
            prompts, completions = zip(*new, strict=True)
            found = self._scorer.scores(prompts, completions)
            self._known |= dict(zip(new, map(float, found), strict=True))


def require_readable(source: str) -> None:
    """UserError where one process of several is to read a checkpoint, which takes all of them."""
    folder, _ = loading.split_step(source)
    if jax.process_count() > 1 and (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"config.judge.source={source} holds a checkpoint that only all processes together can read: "
            "export it with python -m srpo_jax.convert export, or judge in one process with --stage=judge"
        )
