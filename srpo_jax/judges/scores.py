"""Judges that give each completion a number of its own, and compare two by the difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import jax
import numpy as np

from srpo_jax.judges.judge import Prompt, Verdicts, preference, recalled, require_equal
from srpo_jax.judges.kept import KeptScores, place
from srpo_jax.models import loading
from srpo_jax.models.weights import CHECKPOINTS
from srpo_jax.runtime.errors import UserError

PIECE = 512  # completions scored before they are kept


class Scorer(Protocol):
    """Gives a completion a number: the larger, the better. What may stand behind a `ScoreJudge`."""

    @property
    def unscored(self) -> str:
        """Why some completions have no score, as reports say it."""

    @property
    def source(self) -> str:
        """Of the weights, pinned (see `models.digest`)."""

    @property
    def how(self) -> str:
        """What decides its scores beside the weights: dtype, template …"""

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """s(x, y) of N prompts with a completion each, float64 [N]; NaN for what cannot be scored."""


class ScoreJudge:
    """P(a better than b | x) = sigmoid(scale (s(x, a) - s(x, b))); 1/2 for equal completions, always.

    Each completion is scored once and its score remembered, so the verdict of a swapped pair is 1 - p
    exactly, whatever batch a text was in (but see `recalled`). The order means nothing; a pair of which
    one has no score has no verdict. is_proxy: what a score is worth is for its description to say.
    """

    is_proxy = True

    def __init__(self, name: str, description: str, scorer: Scorer, scale: float = 1.0) -> None:
        self.name, self.description = name, description
        self._scorer, self._scale = scorer, scale
        self._known: dict[tuple[Prompt, str], float] = {}
        self._kept: KeptScores | None = None

    def keep(self, folder: Path) -> None:
        """From now on scores are kept in this workdir as they come, and those that are there are taken."""
        self._kept = KeptScores(place(folder, self._scorer.source, self._scorer.how))

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
        self._known = recalled(self._known, wanted)
        new = [one for one in dict.fromkeys(wanted) if one not in self._known]
        if self._kept:
            found = {one: score for one in new if (score := self._kept.get(*one)) is not None}
            self._known |= found
            new = [one for one in new if one not in found]
        for first in range(0, len(new), PIECE):
            piece = new[first : first + PIECE]
            prompts, completions = zip(*piece, strict=True)
            numbers = self._scorer.scores(prompts, completions)
            scored = dict(zip(piece, map(float, numbers), strict=True))
            self._known |= scored
            if self._kept:
                self._kept.put(scored)


def require_readable(source: str) -> None:
    """UserError where one process of several is to read a checkpoint, which takes all of them."""
    folder, _ = loading.split_step(source)
    if jax.process_count() > 1 and (folder / CHECKPOINTS).is_dir():
        raise UserError(
            f"config.judge.source={source} holds a checkpoint that only all processes together can read: "
            "export it with python -m srpo_jax.convert export, or judge in one process with --stage=judge"
        )
