"""The table of judges: which of them the settings name."""

from __future__ import annotations

from pathlib import Path

from srpo_jax.judges.judge import Judge
from srpo_jax.judges.settings import JudgeSettings


def load(settings: JudgeSettings, folder: str | Path = ".") -> Judge:
    """The judge that `settings.name` names: "embedding" (a local proxy) or "llm" (an endpoint).

    What the judge keeps (`settings.cache`) is relative to `folder`. Only the judge's own module is
    imported: each needs packages that the others do not.

    Raises:
        UserError: the judge lacks something (see its module).
    """
    if settings.name == "embedding":
        from srpo_jax.judges.embedding import EmbeddingJudge

        return EmbeddingJudge()
    from srpo_jax.judges.llm import LlmJudge

    return LlmJudge.from_settings(settings, folder)
