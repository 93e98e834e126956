"""The second stage: judges compare what is written. One process runs it; no model of ours is needed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srpo_jax.config.programs import EvaluateSettings
from srpo_jax.data import documents as documents_module
from srpo_jax.data.documents import BUILT_IN, Document
from srpo_jax.evaluation import store
from srpo_jax.evaluation.contestants import GOLD, OWN
from srpo_jax.evaluation.store import Chosen, JudgeEntry, Table
from srpo_jax.judges import Judge, validation
from srpo_jax.revision.samples import Written
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress, status


@dataclasses.dataclass(frozen=True)
class Match:
    """A comparison: for document i and revision k, a[i][k] against b[i][k], None where there is no gold."""

    chosen: Chosen
    model: str
    opponent: str
    a: tuple[tuple[str, ...], ...]
    b: tuple[tuple[str | None, ...], ...]

    @property
    def digest(self) -> str:
        """Of everything that verdicts on it are about."""
        return store.digest([document.text for document in self.chosen.documents], self.a, self.b)

    def named(self, judge: str) -> Table:
        """Its table without verdicts."""
        shape = len(self.a), len(self.a[0])
        empty = np.full(shape, np.nan)
        return Table(self.chosen.name, self.model, judge, self.opponent, empty, None, {})


def matches(
    chosen: Sequence[Chosen],
    written: Sequence[Written],
    opponents: Sequence[tuple[str, str]],
) -> list[Match]:
    """All comparisons, set after set; those with the gold only where a set has golds.

    Raises UserError for a set of which nothing would be compared.
    """
    texts = {(one.model, one.documents): one.revisions for one in written}
    found: list[Match] = []
    for one in chosen:
        golds = [document.gold for document in one.documents]
        before = len(found)
        for model, opponent in opponents:
            a = texts[model, one.name]
            columns = range(len(a[0]))
            b: tuple[tuple[str | None, ...], ...]
            if opponent == GOLD:
                if all(gold is None for gold in golds):
                    continue
                b = tuple((gold,) * len(columns) for gold in golds)
            elif opponent == OWN:
                b = tuple((ys[0],) * len(columns) for ys in a)
            else:
                # One with fewer revisions stays with its last.
                other = texts[opponent, one.name]
                b = tuple(tuple(ys[min(k, len(ys) - 1)] for k in columns) for ys in other)
            found.append(Match(one, model, opponent, a, b))
        if len(found) == before:
            raise UserError(
                f"nothing of {one.name} can be compared: it has no golds, so set "
                "config.evaluate.against to own or to baseline:NAME"
            )
    return found


def judge(
    workdir: Path, judges: Sequence[Judge], found: Sequence[Match], settings: EvaluateSettings
) -> None:
    """Writes every judge's verdicts, with what it said of itself, to workdir/verdicts."""
    for one in judges:
        for match in found:
            store.write_table(workdir, _table(one, match), match.digest)
        cost = one.cost() if hasattr(one, "cost") else {}
        entry = JudgeEntry(
            name=one.name,
            description=one.description,
            is_proxy=bool(getattr(one, "is_proxy", False)),
            cost=dict(cost),
            checks=tuple(map(dataclasses.asdict, _check(one, settings, found))),
        )
        store.write_judge(workdir, entry)


def verdicts(
    workdir: Path, found: Sequence[Match], first: Sequence[str] = ()
) -> tuple[list[JudgeEntry], list[Table]]:
    """Judges and their tables, of all judges that have judged these texts; those named in `first` first.

    Says which others have judged something else. Raises UserError where there is none.
    """
    entries, tables = [], []
    reasons = []
    for entry in sorted(store.read_judges(workdir), key=lambda e: (e.name not in first, e.name)):
        try:
            tables += [store.read_table(workdir, m.named(entry.name), m.digest) for m in found]
        except UserError as error:
            reasons.append(f"the judge {entry.name!r} is left out: {error}")
            continue
        entries.append(entry)
    if not entries:
        raise UserError(
            reasons[0] if reasons else f"{workdir}/verdicts is missing: judge with --stage=judge"
        )
    for reason in reasons:
        status(reason)
    return entries, tables


def _table(judge: Judge, match: Match) -> Table:
    """A judge's verdicts on one comparison, revision after revision."""
    documents = match.chosen.documents
    table = match.named(judge.name)
    orders = np.full((2, *table.probabilities.shape), np.nan)
    ordered, missing = False, {}
    golds = [i for i in range(len(documents)) if match.b[i][0] is not None]
    what = f"judge {match.model} against {match.opponent} on {match.chosen.name}"
    with Progress(what, len(match.a[0]), unit="revisions") as progress:
        for k in range(len(match.a[0])):
            said = _said(
                judge,
                [documents[i] for i in golds],
                [match.a[i][k] for i in golds],
                [match.b[i][k] or "" for i in golds],
            )
            table.probabilities[golds, k] = said.probabilities
            if said.orders is not None:
                ordered, orders[:, golds, k] = True, said.orders
            for i in range(len(documents)):
                if np.isnan(table.probabilities[i, k]):
                    place = golds.index(i) if i in golds else -1
                    reason = said.missing.get(place, "no verdict") if place >= 0 else "no gold"
                    missing[i, k] = reason
            progress.advance()
    return dataclasses.replace(table, orders=orders if ordered else None, missing=missing)


def _said(judge: Judge, documents: Sequence[Document], a: list[str], b: list[str]) -> Any:
    """The judge's Verdicts; of one that gives probabilities only, those."""
    prompts = [document.text for document in documents]
    if hasattr(judge, "judge"):
        return judge.judge(prompts, a, b)
    return _Said(judge.probabilities(prompts, a, b))


@dataclasses.dataclass
class _Said:
    probabilities: np.ndarray
    orders: np.ndarray | None = None
    missing: dict[int, str] = dataclasses.field(default_factory=dict)


def _check(
    judge: Judge, settings: EvaluateSettings, found: Sequence[Match]
) -> list[validation.Check]:
    """How the judge itself does on validation documents, which nothing here was fitted to.

    Only the built-in sets say which these are.
    """
    names = dict.fromkeys(match.chosen.set.source for match in found)
    built_in = [name for name in names if name in BUILT_IN]
    if not settings.judge_check or not built_in:
        return []
    held_out = [
        document
        for name in built_in
        for document in documents_module.load(name, "validation")[: settings.judge_check]
    ]
    status(f"checking the judge on {len(held_out)} validation documents")
    return validation.validate(judge, held_out)
