"""Judges: anything that says how probably one completion is better than another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from srpo_jax.judges.settings import JudgeSettings


class Judge(Protocol):
    """`name` is short; `description` one sentence for reports on what the judge is and is not."""

    name: str
    description: str

    def probabilities(
        self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N], for N prompts and N completions each.

        For every judge P(a > b) + P(b > a) = 1 to 1e-6, and P(a > a) = 1/2.
        """
        ...


def load(settings: JudgeSettings, folder: str | Path = ".") -> Judge:
    """The judge that `settings.name` names: "embedding" (a local proxy) or "llm" (an endpoint).

    What the judge keeps (`settings.cache`) is relative to `folder`.

    Raises:
        UserError: the judge lacks something (see its module).
    """
    if settings.name == "embedding":
        from srpo_jax.judges.embedding import EmbeddingJudge

        return EmbeddingJudge()
    from srpo_jax.judges.llm import LlmJudge

    return LlmJudge.from_settings(settings, folder)
