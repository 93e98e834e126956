"""Controls: what a win rate would be if only the length counted. No judges of anything else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srpo_jax.judges.judge import Prompt, Verdicts, require_equal
from srpo_jax.reporting.texts import words


class LengthJudge:
    """name "shorter" or "longer": the completion with fewer or more words is better; 1/2 for as many."""

    is_proxy = True

    def __init__(self, name: str, label: str = "") -> None:
        self.name = label or name
        self.description = (
            f"a control: the completion with {'fewer' if name == 'shorter' else 'more'} words wins"
        )
        self._sign = -1 if name == "shorter" else 1

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """Words of each completion, or minus these where fewer are better, float64 [N]."""
        return self._sign * np.array([words(y) for y in completions], np.float64)

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each; the order means nothing to it."""
        require_equal(prompts, a, b)
        more = np.array([words(x) - words(y) for x, y in zip(a, b, strict=True)], np.float64)
        return Verdicts((1 + self._sign * np.sign(more)) / 2)

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N]."""
        return self.judge(prompts, a, b).probabilities

    def cost(self) -> dict[str, float]:
        """Nothing is paid."""
        return {}
