"""The table of judges: which of them the settings name."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from srpo_jax.data.documents import Document
from srpo_jax.judges.ensemble import Ensemble
from srpo_jax.judges.judge import Judge
from srpo_jax.judges.length import LengthJudge
from srpo_jax.judges.scores import ScoreJudge
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build


def load(
    settings: JudgeSettings,
    folder: str | Path = ".",
    *,
    documents: Sequence[Document] = (),
    ask: bool = True,
    keep: bool = False,
) -> Judge:
    """The judge that `settings.name` names.

    What the judge keeps (`settings.cache`) is relative to `folder`. documents: what it will be asked about;
    their golds are for a judge that compares with them. ask: False for one that only estimates its cost.
    keep: whether a model here keeps its scores in `folder`, too.

    Raises:
        UserError: the judge lacks something (see its module).
    """
    alone = dataclasses.replace(settings, others=())
    return load_all(alone, folder, documents=documents, ask=ask, keep=keep)[0]


def load_all(
    settings: JudgeSettings,
    folder: str | Path = ".",
    *,
    documents: Sequence[Document] = (),
    ask: bool = True,
    keep: bool = False,
) -> tuple[Judge, ...]:
    """The judge, `settings.others`, and those members of ensembles that are not among these.

    An ensemble shares its members with the list: what one of them has said is not asked for again.
    Raises UserError where two have one name.
    """
    named = sections(settings)
    single = [each for each in named if each.name != "ensemble"]
    for member in _members(named):
        if not any(_alike(member, each) for each in single):
            single.append(member)
    made = {each: _load(each, folder, ask, documents) for each in single}
    for one in made.values():
        if keep and isinstance(one, ScoreJudge):
            one.keep(storage.place(folder))

    def judge(each: JudgeSettings) -> Judge:
        if each.name != "ensemble":
            return made[each]
        members = [
            next(made[one] for one in single if _alike(one, member)) for member in _members([each])
        ]
        if len(members) < 2:
            raise UserError(
                "config.judge.members names fewer than two judges: an ensemble has several"
            )
        return Ensemble(each.label or each.name, members, each.combine)

    judges = [judge(each) for each in named]
    judges += [made[each] for each in single if each not in named]
    for name, count in Counter(one.name for one in judges).items():
        if count > 1:
            raise UserError(
                f"{count} judges are called {name!r}: give each another label (config.judge.label, or "
                '"label" in a file of config.judge.others)'
            )
    return tuple(judges)


def _load(
    settings: JudgeSettings, folder: str | Path, ask: bool, documents: Sequence[Document] = ()
) -> Judge:
    """Imports only the judge's own module: each needs packages that the others do not."""
    if settings.name in ("shorter", "longer"):
        return LengthJudge(settings.name, settings.label)
    if settings.name == "embedding":
        from srpo_jax.judges.embedding import EmbeddingJudge

        return EmbeddingJudge(name=settings.label or settings.name)
    if settings.name == "overlap":
        from srpo_jax.judges.overlap import OverlapJudge

        return OverlapJudge(documents, settings.label)
    if settings.name == "reward":
        from srpo_jax.judges import reward

        return reward.judge(settings)
    if settings.name == "shannon":
        from srpo_jax.judges import shannon

        return shannon.judge(settings)
    from srpo_jax.judges.llm import LlmJudge

    return LlmJudge(settings, folder, ask=ask)


def sections(settings: JudgeSettings) -> tuple[JudgeSettings, ...]:
    """The settings of each judge, its own first.

    An entry of `settings.others` is a judge's name, with the settings of this section, or a JSON file
    whose keys are those of the section; what it leaves out has its default.
    """
    return settings, *_entries(settings, settings.others, "others")


def names(settings: JudgeSettings) -> tuple[str, ...]:
    """What the judges of `sections` are called, in that order; none of them is loaded."""
    return tuple(each.label or each.name for each in sections(settings))


def asks_endpoint(settings: JudgeSettings) -> bool:
    """Whether the judge of `settings.name`, or a member of it, is a model behind an endpoint."""
    return any(each.name == "llm" for each in (settings, *_members([settings])))


def require_no_gold(settings: JudgeSettings) -> None:
    """UserError for a judge that compares with the gold, which then nothing beats."""
    named = sections(settings)
    if any(each.name == "overlap" for each in (*named, *_members(named))):
        raise UserError(
            "the judge overlap compares with the gold, which nothing beats: leave gold out of "
            "config.evaluate.against (own and baseline:NAME remain), or use another judge"
        )


def require_apart(settings: JudgeSettings, models: Mapping[str, str]) -> None:
    """UserError for a judge that is one of the models compared. models: name -> source."""
    named = sections(settings)
    for each in (*named, *_members(named)):
        if each.name == "shannon":
            from srpo_jax.judges import shannon

            shannon.require_apart(each.source, models)


def check(settings: JudgeSettings) -> None:
    """UserError where a model behind an endpoint lacks its package, its key or a setting; nothing is asked.

    For who has much to write before there is anything to judge. Other judges say so when they are loaded.
    """
    named = sections(settings)
    for each in (*named, *_members(named)):
        if each.name == "llm":
            _load(dataclasses.replace(each, cache=""), ".", ask=True)


def _members(settings: Sequence[JudgeSettings]) -> list[JudgeSettings]:
    """Of the ensembles among these."""
    found: list[JudgeSettings] = []
    for each in settings:
        if each.name == "ensemble":
            found += _entries(each, each.members, "members")
    if any(member.name == "ensemble" for member in found):
        raise UserError("config.judge.members names an ensemble: name the judges in it instead")
    return found


def _entries(settings: JudgeSettings, entries: Sequence[str], key: str) -> list[JudgeSettings]:
    return [_entry(settings, entry, f"config.judge.{key}") for entry in entries]


def _entry(settings: JudgeSettings, entry: str, key: str) -> JudgeSettings:
    try:
        if not entry.endswith(".json"):
            return dataclasses.replace(settings, name=entry, label="", others=())
        values = json.loads(Path(entry).read_text(encoding="utf-8"))
        if not isinstance(values, dict) or values.get("others"):
            raise UserError("it must be a JSON object of the settings of one judge")
        return build(JudgeSettings, values, "config.judge")
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {entry} cannot be read ({error})") from error
    except UserError as error:
        raise UserError(f"{key}: {entry}: {error}") from error


def _alike(a: JudgeSettings, b: JudgeSettings) -> bool:
    """Whether two judges would say the same, whatever they are called."""

    def bare(one: JudgeSettings) -> JudgeSettings:
        return dataclasses.replace(one, label="", others=(), members=(), combine="mean")

    return bare(a) == bare(b)
