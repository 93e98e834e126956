"""From what was written and judged to the report: all derived numbers, in one pure function."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from srpo_jax.reporting import agreement, comparison, winrate
from srpo_jax.reporting import texts as measures
from srpo_jax.reporting.agreement import OrderVerdict
from srpo_jax.reporting.data import (
    Absence,
    Cell,
    Change,
    Concord,
    Curve,
    Difference,
    Interval,
    Position,
    Report,
    Rules,
    Style,
)
from srpo_jax.reporting.evidence import START, Documents, Evidence, Texts
from srpo_jax.reporting.groups import Groups, among, numbered
from srpo_jax.reporting.interval import resample_spread
from srpo_jax.reporting.length_control import length_controlled
from srpo_jax.reporting.verdicts import NO_GOLD, Key, VerdictTable

Mask = npt.NDArray[np.bool_]


def assemble(evidence: Evidence, rules: Rules | None = None) -> Report:
    """The report of this evidence. The same evidence and rules give the same numbers."""
    rules = rules or Rules()
    tables = _ordered(evidence)
    return Report(
        evidence=evidence,
        rules=rules,
        curves=_curves(evidence, tables, rules),
        differences=_differences(evidence, tables, rules),
        styles=tuple(_style(evidence, texts) for texts in evidence.texts),
        positions=_positions(evidence),
        concords=_concords(evidence),
        absences=_absences(evidence),
        notes=_notes(rules, any(each.groups is not None for each in evidence.sets)),
    )


def _notes(rules: Rules, shared: bool) -> dict[str, str]:
    """shared: some documents are about one text."""
    ties = rules.missing_as_ties
    together = " (those about one text drawn together)" if shared else ""
    mean = " (those about one text on their mean)" if shared else ""
    return {
        "interval": f"95 % score interval over documents{together}",
        "controlled": "length-controlled: the win rate at equal length of both completions, by "
        "AlpacaEval 2's regression on words",
        "spread": "standard deviation of the win rate over "
        f"{rules.resamples} bootstrap resamples{together}",
        "test": f"exact sign test on paired documents{mean}, with Holm's correction over all "
        "differences under the same judge and opponent",
        "missing": "missing verdicts count as ties" if ties else "missing verdicts are left out",
    }


def _ordered(evidence: Evidence) -> list[VerdictTable]:
    """The tables by judge, then set, then model, as these appear in the evidence; opponents as given."""
    judges = [judge.name for judge in evidence.judges]
    sets = [each.name for each in evidence.sets]
    return sorted(
        evidence.tables,
        key=lambda table: (
            judges.index(table.key.judge),
            sets.index(table.key.documents),
            evidence.models.index(table.key.model),
        ),
    )


def _curves(evidence: Evidence, tables: Sequence[VerdictTable], rules: Rules) -> tuple[Curve, ...]:
    """Win rates; the length-controlled ones of models that share documents, judge and opponent at once."""
    controlled: dict[tuple[Key, int], Interval] = {}
    for members in _grouped(tables):
        for k in range(max(table.count for table in members)):
            here = [table for table in members if k < table.count]
            for key, value in _length_controlled(evidence, here, k, rules).items():
                controlled[key, k] = value
    return tuple(
        Curve(
            table.key,
            tuple(
                _cell(table, k, controlled.get((table.key, k)), rules, groups)
                for k in range(table.count)
            ),
        )
        for table in tables
        for groups in [evidence.set(table.key.documents).groups]
    )


def _grouped(tables: Sequence[VerdictTable]) -> list[list[VerdictTable]]:
    """Tables of different models with the same documents, judge and opponent."""
    groups: dict[Key, list[VerdictTable]] = {}
    for table in tables:
        groups.setdefault(replace(table.key, model=""), []).append(table)
    return list(groups.values())


def _length_controlled(
    evidence: Evidence, tables: Sequence[VerdictTable], k: int, rules: Rules
) -> dict[Key, Interval]:
    """By table; without those of which every pair has equal texts, or no verdict."""
    verdicts, lengths = {}, {}
    for table in tables:
        own = [ys[k] for ys in evidence.written(table.key.model, table.key.documents).revisions]
        other = [texts[k] for texts in evidence.against(table.key)]
        values = table.filled(rules.missing_as_ties)[:, k]
        if own != other and not np.isnan(values).all():
            verdicts[table.key.model] = values
            lengths[table.key.model] = [
                float(measures.words(a) - measures.words(b or ""))
                for a, b in zip(own, other, strict=True)
            ]
    if not verdicts:
        return {}
    groups = evidence.set(tables[0].key.documents).groups
    found = length_controlled(verdicts, lengths, groups)
    return {
        table.key: Interval(value.rate, value.low, value.high)
        for table in tables
        if (value := found.get(table.key.model))
    }


def _cell(
    table: VerdictTable, k: int, controlled: Interval | None, rules: Rules, groups: Groups | None
) -> Cell:
    """Wins, ties and losses are those said; with missing ones as ties the rate has them too."""
    said = winrate.rate(table.probabilities[:, k])
    values = table.filled(rules.missing_as_ties)[:, k]
    rate = winrate.rate(values, groups)
    spread = resample_spread(values, rules.resamples, rules.seed, groups).spread
    return Cell(
        count=rate.n,
        wins=said.wins,
        ties=said.ties,
        losses=said.losses,
        missing=said.missing,
        rate=Interval(rate.mean, rate.low, rate.high) if rate.n else None,
        controlled=controlled,
        spread=spread if rate.n else None,
    )


def _differences(
    evidence: Evidence, tables: Sequence[VerdictTable], rules: Rules
) -> tuple[Difference, ...]:
    """y_k against y_0 of each model, and each two models at equal k.

    Holm's correction is over all of one judge and opponent, on all document sets.
    """
    pairs = [(table, k, table, 0) for table in tables for k in range(1, table.count)]
    for members in _grouped(tables):
        # The start policy is what others are compared with.
        members.sort(key=lambda table: table.key.model == START)
        for a, b in itertools.combinations(members, 2):
            pairs += [(a, k, b, k) for k in range(min(a.count, b.count))]
    compared = {
        (a.key, k, b.key, j): comparison.compare(
            a.filled(rules.missing_as_ties)[:, k],
            b.filled(rules.missing_as_ties)[:, j],
            evidence.set(a.key.documents).groups,
        )
        for a, k, b, j in pairs
    }
    found: dict[tuple[Key, int, Key, int], comparison.Comparison] = {}
    for view in dict.fromkeys((key.judge, key.opponent) for key, *_ in compared):
        found |= comparison.holm(
            {
                names: value
                for names, value in compared.items()
                if (names[0].judge, names[0].opponent) == view and value.n
            }
        )
    return tuple(
        Difference(
            documents=a.documents,
            judge=a.judge,
            opponent=a.opponent,
            model=a.model,
            revision=k,
            baseline=b.model,
            baseline_revision=j,
            mean=value.difference,
            low=value.low,
            high=value.high,
            count=value.n,
            p=value.p_value,
            adjusted=value.p_holm,
            wins=value.wins,
            losses=value.losses,
        )
        for (a, k, b, j), value in found.items()
    )


def _style(evidence: Evidence, texts: Texts) -> Style:
    ks = range(texts.count)
    overlap, nearer = _overlap(evidence.set(texts.documents), texts)
    column = [[ys[k] for ys in texts.revisions] for k in ks]
    return Style(
        texts.model,
        texts.documents,
        mean_words=tuple(measures.mean([measures.words(y) for y in column[k]]) for k in ks),
        unchanged=tuple(
            measures.mean([measures.unchanged(ys, k) for ys in texts.revisions]) for k in ks
        ),
        edits=tuple(measures.mean([measures.edited(ys, k) for ys in texts.revisions]) for k in ks),
        repetition=tuple(measures.mean([measures.repetition(y) for y in column[k]]) for k in ks),
        cut=tuple(measures.mean([c[k] for c in texts.cut]) for k in ks) if texts.cut else (),
        overlap=overlap,
        nearer=nearer,
    )


def _overlap(documents: Documents, texts: Texts) -> tuple[tuple[float, ...], Change | None]:
    """`Style.overlap` and `Style.nearer`; a gold without letters is that of a report which keeps none."""
    known = np.array([bool(measures.bare(gold or "")) for gold in documents.golds])
    if not known.any():
        return (), None
    shared = np.array(
        [
            [measures.overlap(y, gold or "") for y in ys]
            for ys, gold, there in zip(texts.revisions, documents.golds, known, strict=True)
            if there
        ]
    )
    means = tuple(map(float, shared.mean(axis=0)))
    if len(means) == 1:
        return means, None
    groups = among(documents.groups, known)
    return means, Change(*winrate.difference(shared[:, -1], shared[:, 0], groups))


def _asked(evidence: Evidence, key: Key) -> Mask:
    """Pairs [D, K + 1] that a judge is asked about: different texts, and not the pair of an earlier k.

    Equal texts are ties without asking, and a revision that changes nothing has the old verdict: both
    would make judges agree, with themselves and each other.
    """
    own = evidence.written(key.model, key.documents).revisions
    other = evidence.against(key)
    return np.array(
        [
            [
                y != z and (y, z) not in zip(ys[:k], zs[:k], strict=True)
                for k, (y, z) in enumerate(zip(ys, zs, strict=True))
            ]
            for ys, zs in zip(own, other, strict=True)
        ]
    )


def _positions(evidence: Evidence) -> tuple[Position, ...]:
    """Of each judge that has orders, over all pairs it was asked about."""
    results = []
    for judge in evidence.judges:
        asked = [
            (table.orders, table.key, _asked(evidence, table.key))
            for table in evidence.tables
            if table.key.judge == judge.name and table.orders is not None
        ]
        if not asked:
            continue
        first, second = np.concatenate([orders[:, mask] for orders, _, mask in asked], axis=1)
        found = agreement.position_agreement(
            [_position(p) for p in first],
            [_position(1 - p) for p in second],
            _owners(evidence, [(key, mask) for _, key, mask in asked]),
        )
        results.append(
            Position(
                judge=judge.name,
                count=found.n,
                agreement=_interval(found.share, found.low, found.high),
                chance=found.chance,
                first=_interval(found.first_rate, found.first_low, found.first_high),
                warning=found.warning if len(first) else "",
            )
        )
    return tuple(results)


def _owners(evidence: Evidence, asked: Sequence[tuple[Key, Mask]]) -> Groups | None:
    """What each pair of these tables is about: revisions of one document are no independent pairs."""
    return numbered(
        [
            (key.documents, subject)
            for key, mask in asked
            for subject, row in zip(evidence.set(key.documents).subjects, mask, strict=True)
            for _ in range(int(row.sum()))
        ]
    )


def _position(p: float) -> OrderVerdict:
    """What a probability says of the text shown first."""
    if math.isnan(p):
        return "none"
    return "tie" if p == 0.5 else "first" if p > 0.5 else "second"


def _concords(evidence: Evidence) -> tuple[Concord, ...]:
    """Of each two judges, over all comparisons that both have made."""
    found = []
    tables = {table.key: table for table in evidence.tables}
    for a, b in itertools.combinations([judge.name for judge in evidence.judges], 2):
        asked = [
            (key, _asked(evidence, key))
            for key in tables
            if key.judge == a and replace(key, judge=b) in tables
        ]
        first, second = (
            np.concatenate(
                [np.empty(0)]
                + [tables[replace(key, judge=judge)].probabilities[mask] for key, mask in asked]
            )
            for judge in (a, b)
        )
        if not np.any(~np.isnan(first) & ~np.isnan(second)):
            continue
        both = agreement.agreement(first, second, _owners(evidence, asked))
        found.append(
            Concord(
                first=a,
                second=b,
                count=both.n,
                share=Interval(both.share, both.low, both.high),
                kappa=None if math.isnan(both.kappa) else both.kappa,
            )
        )
    return tuple(found)


def _interval(mean: float, low: float, high: float) -> Interval | None:
    return None if math.isnan(mean) else Interval(mean, low, high)


def _absences(evidence: Evidence) -> tuple[Absence, ...]:
    results = []
    for judge in evidence.judges:
        tables = [table for table in evidence.tables if table.key.judge == judge.name]
        reasons = Counter(entry.reason for table in tables for entry in table.missing)
        asked = sum(table.probabilities.size for table in tables) - reasons.pop(NO_GOLD, 0)
        results.append(Absence(judge.name, asked, reasons.total(), dict(reasons.most_common())))
    return tuple(results)
