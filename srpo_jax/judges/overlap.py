"""How many words a completion shares with what people wrote: the one judge that is shown the gold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from srpo_jax.data.documents import Document
from srpo_jax.judges.judge import Prompt
from srpo_jax.judges.scores import ScoreJudge
from srpo_jax.reporting.texts import overlap
from srpo_jax.runtime.errors import UserError

SHARPNESS = 10.0  # an F1 that is .1 larger wins .73, one that is .3 larger .95


class OverlapJudge(ScoreJudge):
    """P(a better than b | x) = sigmoid(SHARPNESS (F1(a) - F1(b))).

    F1 is of the words shared with the gold of x (ROUGE-1), of several golds with the nearest. A pair whose
    prompt has no gold has no verdict.
    """

    knows_gold = True

    def __init__(self, documents: Iterable[Document], label: str = "") -> None:
        """documents: with the golds of what will be asked. Raises UserError where none has a gold."""
        golds = Golds(documents)
        description = (
            "the one that shares more words with the human gold (F1) wins; no model is asked, and a good "
            "answer in other words counts as a bad one"
        )
        super().__init__(label or "overlap", description, golds, SHARPNESS)

    def keep(self, folder: Path) -> None:
        """Nothing is kept: counting words is quicker than reading what was counted."""


class Golds:
    """F1 of the words shared with the golds, a `Scorer`."""

    unscored, source, how = "no gold", "the golds", ""

    def __init__(self, documents: Iterable[Document]) -> None:
        self._golds: dict[Prompt, list[str]] = {}
        for one in documents:
            if one.gold is not None:
                self._golds.setdefault(one.prompt, []).append(one.gold)
        if not self._golds:
            raise UserError(
                "config.judge.name=overlap compares with golds, and no document here has one: use another "
                "judge, or documents with golds"
            )

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """F1 in [0, 1] of N completions, float64 [N]; NaN where the prompt has no gold."""
        return np.array(
            [
                max((overlap(y, gold) for gold in self._golds.get(x, ())), default=np.nan)
                for x, y in zip(prompts, completions, strict=True)
            ],
            np.float64,
        )
