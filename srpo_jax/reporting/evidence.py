"""What a report is computed from: documents, what was written, what the judges said. Plain records.

Everything a later report needs (another figure, other models beside these) is here; nothing here is
derived from something else here.
"""

from __future__ import annotations

import functools
import json
import typing
from dataclasses import dataclass, field
from typing import Literal

from srpo_jax.data.documents import subject
from srpo_jax.reporting.groups import Groups, numbered
from srpo_jax.reporting.verdicts import GOLD, OWN, Key, VerdictTable

START = "start"  # the name of the policy that training began from

Role = Literal["in distribution", "out of distribution"]


@dataclass(frozen=True)
class Documents:
    """A set of documents, in one order everywhere. `template` is how prompts were put.

    about: a key of what each is about, see `data.documents.subject`; () in a report made before they were
    kept, which are then told by ids and prompts. Raises ValueError where ids repeat or the tuples differ in
    length.
    """

    name: str
    role: Role
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    golds: tuple[str | None, ...]
    template: str = ""
    about: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.prompts) == len(self.golds) > 0:
            raise ValueError(f"{self.name!r} needs as many ids as prompts and golds, at least one")
        if self.about and len(self.about) != len(self.ids):
            raise ValueError(f"{self.name!r} needs a key of what it is about for each id, or none")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(f"{self.name!r} has the same document id twice")
        if self.role not in typing.get_args(Role):
            raise ValueError(f"role must be one of {typing.get_args(Role)}, got {self.role!r}")

    @property
    def subjects(self) -> tuple[str, ...]:
        """`about`, or what is known of it."""
        return self.about or tuple(map(subject, self.ids, self.prompts))

    @functools.cached_property
    def groups(self) -> Groups | None:
        """The numbers of the `subjects` [D]; None where each document has its own."""
        return numbered(self.subjects)

    @property
    def count(self) -> str:
        """How many they are, and about how many texts where these are fewer."""
        texts = "" if self.groups is None else f" about {len(set(self.subjects)):,} texts"
        return f"{len(self.ids):,} documents{texts}"


@dataclass(frozen=True)
class Texts:
    """What one model wrote on one set: `revisions[i][k]` is revision k of document i.

    `cut[i][k]`: that completion ended at the token limit; empty where it is not known (a file of
    outputs). Raises ValueError where documents differ in their number of revisions.
    """

    model: str
    documents: str
    revisions: tuple[tuple[str, ...], ...]
    cut: tuple[tuple[bool, ...], ...] = ()

    def __post_init__(self) -> None:
        shapes = {len(entries) for entries in self.revisions}
        if len(shapes) != 1 or 0 in shapes:
            raise ValueError(
                f"{self.model!r} on {self.documents!r} needs equally many revisions each"
            )
        if self.cut and [len(c) for c in self.cut] != [len(r) for r in self.revisions]:
            raise ValueError(f"{self.model!r} on {self.documents!r} needs `cut` for every revision")

    @property
    def count(self) -> int:
        """K + 1: completions of a document."""
        return len(self.revisions[0])


@dataclass(frozen=True)
class JudgeCheck:
    """How often the judge prefers the gold to a damaged text, on `count` held-out documents.

    `held_out`: this kind of damage was not used to fit the judge.
    """

    damage: str
    documents: str
    rate: float
    low: float
    high: float
    count: int
    held_out: bool = True

    def __post_init__(self) -> None:
        if not all(0.0 <= value <= 1.0 for value in (self.rate, self.low, self.high)):
            raise ValueError(f"judge check must lie in [0, 1], got {self}")


@dataclass(frozen=True)
class JudgeRecord:
    """A judge as the report shows it. `prompt` is its template, "" where it has none.

    `facts`: what else one needs to ask it the same again, by name (model, endpoint, parameters …).
    `cost`: what was paid, by name (requests, prompt_tokens, completion_tokens, price …), empty where
    nothing is.
    """

    name: str
    description: str
    is_proxy: bool
    prompt: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    cost: dict[str, float] = field(default_factory=dict)
    checks: tuple[JudgeCheck, ...] = ()

    @property
    def identity(self) -> str:
        """All that its verdicts depend on, as text; with those of another identity they share no table."""
        return json.dumps([self.description, self.prompt, self.facts], sort_keys=True)


@dataclass(frozen=True, eq=False)
class Evidence:
    """All of it. `facts` are (label, value) lines that make the run reproducible; `command` repeats it.

    Models, judges and sets are shown in the order of their first appearance. Raises ValueError where
    a table or a model's texts do not fit the documents, or something is named and not there.
    """

    title: str
    sets: tuple[Documents, ...]
    texts: tuple[Texts, ...]
    tables: tuple[VerdictTable, ...]
    judges: tuple[JudgeRecord, ...]
    facts: tuple[tuple[str, str], ...] = ()
    command: str = ""

    def __post_init__(self) -> None:
        _require_distinct("document set", [each.name for each in self.sets])
        _require_distinct("judge", [each.name for each in self.judges])
        _require_distinct("model's texts", [(each.model, each.documents) for each in self.texts])
        _require_distinct("comparison", [each.key for each in self.tables])
        if not self.sets or not self.texts:
            raise ValueError("a report needs at least one set of documents and one model's texts")
        for reserved in {GOLD, OWN} & set(self.models):
            raise ValueError(f"no model may be called {reserved!r}: it is an opponent's name")
        for texts in self.texts:
            if len(texts.revisions) != len(self.set(texts.documents).ids):
                raise ValueError(
                    f"{texts.model!r} has {len(texts.revisions)} documents of {texts.documents!r}"
                )
        for table in self.tables:
            self._check(table)

    def _check(self, table: VerdictTable) -> None:
        key = table.key
        texts = self.written(key.model, key.documents)
        if table.probabilities.shape != (len(texts.revisions), texts.count):
            raise ValueError(f"{key} has verdicts of another shape than the texts")
        if key.judge not in {judge.name for judge in self.judges}:
            raise ValueError(f"{key} names a judge that is not described")
        if key.opponent not in (GOLD, OWN):
            self.written(key.opponent, key.documents)

    @property
    def models(self) -> tuple[str, ...]:
        """The models, in order of appearance."""
        return tuple(dict.fromkeys(each.model for each in self.texts))

    def set(self, name: str) -> Documents:
        """The set of this name; ValueError where there is none."""
        for each in self.sets:
            if each.name == name:
                return each
        raise ValueError(f"there is no document set {name!r}")

    def written(self, model: str, documents: str) -> Texts:
        """What a model wrote on a set; ValueError where there is nothing."""
        for each in self.texts:
            if (each.model, each.documents) == (model, documents):
                return each
        raise ValueError(f"there are no texts of {model!r} on {documents!r}")

    def table(self, key: Key) -> VerdictTable | None:
        """The verdicts of a comparison, None where there are none."""
        return next((table for table in self.tables if table.key == key), None)

    def against(self, key: Key) -> tuple[tuple[str | None, ...], ...]:
        """The opponent's completion [document][k] that revision k was compared with."""
        count = self.written(key.model, key.documents).count
        if key.opponent == GOLD:
            return tuple((gold,) * count for gold in self.set(key.documents).golds)
        other = self.written(key.model if key.opponent == OWN else key.opponent, key.documents)
        if key.opponent == OWN:
            return tuple((entries[0],) * count for entries in other.revisions)
        return tuple(
            tuple(entries[min(k, len(entries) - 1)] for k in range(count))
            for entries in other.revisions
        )


def _require_distinct(what: str, names: list[typing.Any]) -> None:
    twice = {str(name) for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{what} given twice: {', '.join(sorted(twice))}")
