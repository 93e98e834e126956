"""The table of judges: which of them the settings name."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from srpo_jax.judges.judge import Judge
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build


def load(settings: JudgeSettings, folder: str | Path = ".", *, ask: bool = True) -> Judge:
    """The judge that `settings.name` names: "embedding" (a local proxy) or "llm" (an endpoint).

    What the judge keeps (`settings.cache`) is relative to `folder`. ask: False for one that only estimates
    its cost. Only the judge's own module is imported: each needs packages that the others do not.

    Raises:
        UserError: the judge lacks something (see its module).
    """
    if settings.name == "embedding":
        from srpo_jax.judges.embedding import EmbeddingJudge

        return EmbeddingJudge()
    from srpo_jax.judges.llm import LlmJudge

    return LlmJudge(settings, folder, ask=ask)


def load_all(
    settings: JudgeSettings, folder: str | Path = ".", *, ask: bool = True
) -> tuple[Judge, ...]:
    """The judge and `settings.others`; UserError where two have one name."""
    judges = [load(each, folder, ask=ask) for each in sections(settings)]
    names = Counter(judge.name for judge in judges)
    for name, count in names.items():
        if count > 1:
            raise UserError(
                f"{count} judges are called {name!r}: give each another label (config.judge.label, or "
                '"label" in a file of config.judge.others)'
            )
    return tuple(judges)


def sections(settings: JudgeSettings) -> tuple[JudgeSettings, ...]:
    """The settings of each judge, its own first.

    An entry of `settings.others` is a judge's name, with the settings of this section, or a JSON file
    whose keys are those of the section; what it leaves out has its default.
    """
    found = [settings]
    for entry in settings.others:
        if not entry.endswith(".json"):
            found.append(JudgeSettings(name=entry))
            continue
        try:
            values = json.loads(Path(entry).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"config.judge.others: {entry} cannot be read ({error})") from error
        if not isinstance(values, dict) or values.get("others"):
            raise UserError(
                f"config.judge.others: {entry} must be a JSON object of the settings of one judge"
            )
        try:
            found.append(build(JudgeSettings, values, "config.judge"))
        except UserError as error:
            raise UserError(f"{entry}: {error}") from error
    return tuple(found)
