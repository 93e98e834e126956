"""The second stage: judges compare what is written. One process runs it; no model of ours is needed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srpo_jax.config.programs import EvaluateSettings
from srpo_jax.data import documents as documents_module
from srpo_jax.data.documents import BUILT_IN, Summarized
from srpo_jax.evaluation import store
from srpo_jax.evaluation.store import Chosen
from srpo_jax.judges import Estimate, Judge, Prompt, estimate, total, validation
from srpo_jax.judges.judge import knows_gold
from srpo_jax.reporting.evidence import JudgeCheck, JudgeRecord
from srpo_jax.reporting.verdicts import GOLD, NO_GOLD, OWN, Key, Missing, VerdictTable
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

    @property
    def golds(self) -> str:
        """A digest of the golds, on which verdicts of a judge that is shown them depend."""
        return store.digest([document.gold for document in self.chosen.documents])

    @property
    def judged(self) -> list[int]:
        """Documents that have an opponent's completion."""
        return [i for i, texts in enumerate(self.b) if texts[0] is not None]

    def at(self, k: int) -> tuple[list[Prompt], list[str], list[str]]:
        """Prompts, completions and the opponent's completions at revision k, of the documents `judged`."""
        rows = self.judged
        prompts = [self.chosen.documents[i].prompt for i in rows]
        return prompts, [self.a[i][k] for i in rows], [self.b[i][k] or "" for i in rows]

    def key(self, judge: str) -> Key:
        """The name of its table."""
        return Key(self.chosen.name, self.model, judge, self.opponent)


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
        tables = [_table(one, match) for match in found]
        checks = _check(one, settings, found)
        record = JudgeRecord(
            name=one.name,
            description=one.description,
            is_proxy=one.is_proxy,
            prompt=getattr(getattr(one, "template", None), "text", ""),
            facts=dict(getattr(one, "facts", {})),
            cost=dict(one.cost()),
            checks=tuple(JudgeCheck(**dataclasses.asdict(check)) for check in checks),
        )
        # What a judge is may only be known once it was asked: where an endpoint's verdicts are read.
        for match, table in zip(found, tables, strict=True):
            golds = match.golds if knows_gold(one) else None
            store.write_table(workdir, table, match.digest, record.identity, golds)
        store.write_judge(workdir, record)


def estimates(
    judges: Sequence[Judge], found: Sequence[Match], settings: EvaluateSettings
) -> list[Estimate]:
    """What `judge` would cost, of each judge, its check included; nothing is asked.

    Of all comparisons at once: what a revision leaves as it was is asked once, and counted once.
    """
    held_out = _held_out(settings, found)
    prompts: list[Prompt] = []
    a: list[str] = []
    b: list[str] = []
    for match in found:
        for k in range(len(match.a[0])):
            asked, ours, theirs = match.at(k)
            prompts += asked
            a += ours
            b += theirs
    return [total([estimate(one, prompts, a, b), validation.cost(one, held_out)]) for one in judges]


def verdicts(
    workdir: Path, found: Sequence[Match], first: Sequence[str] = ()
) -> tuple[list[JudgeRecord], list[VerdictTable]]:
    """Judges and their tables, of all judges that have judged these texts.

    Those named in `first` come first, in that order, then the others by name. Says which have judged
    something else. Raises UserError where there is none.
    """
    entries, tables = [], []
    reasons = []
    places = {name: place for place, name in enumerate(first)}
    judged = store.read_judges(workdir)
    for entry in sorted(judged, key=lambda e: (places.get(e.name, len(places)), e.name)):
        try:
            tables += [
                store.read_table(workdir, m.key(entry.name), m.digest, entry.identity, m.golds)
                for m in found
            ]
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


def _table(judge: Judge, match: Match) -> VerdictTable:
    """A judge's verdicts on one comparison, revision after revision."""
    documents, ks = match.chosen.documents, range(len(match.a[0]))
    rows = match.judged
    alone = set(range(len(documents))) - set(rows)
    probabilities = np.full((len(documents), len(ks)), np.nan)
    orders = np.full((2, *probabilities.shape), np.nan)
    ordered, missing = False, []
    what = f"judge {match.model} against {match.opponent} on {match.chosen.name}"
    with Progress(what, len(ks), unit="revisions") as progress:
        for k in ks:
            said = judge.judge(*match.at(k))
            probabilities[rows, k] = said.probabilities
            if said.orders is not None:
                ordered, orders[:, rows, k] = True, said.orders
            reasons = {rows[place]: reason for place, reason in said.missing.items()}
            for i in map(int, np.flatnonzero(np.isnan(probabilities[:, k]))):
                usual = NO_GOLD if i in alone else "no verdict"
                missing.append(Missing(i, k, reasons.get(i, usual)))
            progress.advance()
    if silent := len(missing) - len(alone) * len(ks):
        status(f"{what}: {silent} of {len(rows) * len(ks)} verdicts are missing")
    key = match.key(judge.name)
    return VerdictTable(key, probabilities, orders if ordered else None, tuple(missing))


def _check(
    judge: Judge, settings: EvaluateSettings, found: Sequence[Match]
) -> list[validation.Check]:
    """How the judge itself does on validation documents, which nothing here was fitted to.

    One that is shown the gold is not asked whether it prefers the gold.
    """
    held_out = _held_out(settings, found)
    if not held_out or knows_gold(judge):
        return []
    cost = validation.cost(judge, held_out)
    price = f": {cost}" if cost.requests else ""
    status(
        f"checking the judge {judge.name} on {len(held_out)} validation documents "
        f"(config.evaluate.judge_check={settings.judge_check} a set, 0 for none){price}"
    )
    return validation.validate(judge, held_out)


def _held_out(settings: EvaluateSettings, found: Sequence[Match]) -> list[Summarized]:
    """Validation documents of the built-in sets that are judged; of other sets none is known to be one."""
    names = dict.fromkeys(match.chosen.set.source for match in found)
    return [
        document
        for name in names
        if name in BUILT_IN and settings.judge_check
        for document in documents_module.load(name, "validation")[: settings.judge_check]
    ]
