"""The table of judges: which of them a configuration names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from srpo_jax.judges.judge import Judge
from srpo_jax.runtime.errors import UserError


def load(config: Any, folder: str | Path = ".") -> Judge:
    """The judge that `config.name` names: "embedding" (a local proxy) or "llm" (an endpoint).

    What the judge keeps (`config.cache`) is relative to `folder`. Only the judge's own module is
    imported: each needs packages that the others do not.

    Raises:
        UserError: the name is unknown, or the judge lacks something (see its module).
    """
    if config.name == "embedding":
        from srpo_jax.judges.embedding import EmbeddingJudge

        return EmbeddingJudge()
    if config.name == "llm":
        from srpo_jax.judges.llm import LlmJudge

        return LlmJudge.from_config(config, folder)
    raise UserError(f"config.judge.name is {config.name!r}: known judges are embedding, llm")
