"""What the numbers say, in sentences: the findings first, and what a reader must be warned of."""

from __future__ import annotations

from srpo_jax.reporting.data import (
    MANY_CUT,
    MANY_EDITS,
    MANY_MISSING,
    Curve,
    Difference,
    Interval,
    Report,
    opponent_phrase,
)
from srpo_jax.reporting.evidence import Documents
from srpo_jax.reporting.figure import looks
from srpo_jax.reporting.wording import p_value, percent, points, span


def findings(report: Report) -> list[str]:
    """A sentence for each set on the model that wins most in the end, by the first judge and opponent."""
    found = []
    for documents in report.sets:
        curves = report.on(documents.name, report.views[0]) if report.views else ()
        judged = [(curve.last.mean, curve) for curve in curves if curve.last]
        if judged:
            best = max(judged, key=lambda pair: pair[0])[1]
            found.append(_finding(report, best, documents, len(judged)))
    return found


def warnings(report: Report) -> list[str]:
    """What makes the numbers worth less: proxies, models decoded in other ways, judges that do not judge,
    missing verdicts, cut texts, a first model that rewrites where it should edit, and gains that are the
    judge's alone."""
    judged = {judge for judge, _ in report.views}
    found = [
        f"{judge.name} is a proxy: it stands in for human readers, has not been validated against "
        "them, and its win rates compare the models here and nothing else."
        for judge in report.evidence.judges
        if judge.is_proxy and judge.name in judged
    ]
    found += [note for name, note in report.notes.items() if name == "decoding"]
    found += [f"{each.judge}: {each.warning}." for each in report.positions if each.warning]
    for absence in report.absences:
        if absence.share > MANY_MISSING:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in absence.reasons.items())
            found.append(
                f"{absence.judge} gave no verdict on {percent(absence.share)} % of "
                f"{absence.asked:,} comparisons ({reasons}); {report.notes['missing']}."
            )
    for style in report.styles:
        if style.cut and max(style.cut) > MANY_CUT:
            found.append(
                f"{looks(report.evidence.models)[style.model].label} on {style.documents}: up to "
                f"{percent(max(style.cut))} % of completions end at the token limit."
            )
    for documents in report.sets:
        found += _rewrites(report, documents)
        found += _not_nearer(report, documents)
    return found


def _rewrites(report: Report, documents: Documents) -> list[str]:
    """Of the first model, from which the others are usually trained."""
    for style in report.styled(documents.name)[:1]:
        if len(style.edits) > 1 and style.unchanged[1] < 1:
            share = style.edits[1] / (1 - style.unchanged[1])
            if share > MANY_EDITS:
                return [
                    f"{looks(report.evidence.models)[style.model].label} on {documents.name}: where its "
                    f"first revision changes something, it changes {percent(share)} % of the words: it "
                    "writes anew rather than edits, and revisions have little to build on."
                ]
    return []


def _not_nearer(report: Report, documents: Documents) -> list[str]:
    """Of models that win more by revising (first judge and opponent), and are not nearer to the gold."""
    found = []
    nearer = {style.model: style.nearer for style in report.styled(documents.name)}
    for curve in report.on(documents.name, report.views[0]) if report.views else ():
        gain, change = report.gain(curve), nearer[curve.key.model]
        if gain and gain.significant and gain.mean > 0 and change and change.low <= 0:
            label = looks(report.evidence.models)[curve.key.model].label
            found.append(
                f"{label} on {documents.name}: revising gains {points(gain.mean)} points by "
                f"{curve.key.judge}, and the words shared with the gold do not show it (F1 "
                f"{points(change.mean)} points, {span(change.low, change.high)}): unless many answers are "
                "right, the gain may be the judge's alone."
            )
    return found


def _finding(report: Report, curve: Curve, documents: Documents, count: int) -> str:
    label = looks(report.evidence.models)[curve.key.model].label
    first, last = curve.cells[0].rate, curve.last
    assert last is not None
    rank = f"has the highest of {count} win rates" if count > 1 else "has a win rate"
    start = f"{documents.name} ({documents.role}): {label} {rank} against "
    text = f"{start}{opponent_phrase(curve.key.opponent)}, {_rate(last)}"
    times = max(k for k, cell in enumerate(curve.cells) if cell.rate)
    if not times or first is None:
        return text + "."
    text += (
        f" after {'1 revision' if times == 1 else f'{times} revisions'}; unrevised {_rate(first)}"
    )
    gain = report.gain(curve)
    return text + (f", a change of {_change(gain, documents)}." if gain else ".")


def _rate(rate: Interval) -> str:
    return f"{percent(rate.mean)} % ({span(rate.low, rate.high)})"


def _change(gain: Difference, documents: Documents) -> str:
    told = "told from chance" if gain.significant else "not told from chance"
    if gain.contrary:
        most, fewest = max(gain.wins, gain.losses), min(gain.wins, gain.losses)
        what = "documents" if documents.groups is None else "texts"
        told += f": {most:,} {what} against {fewest:,} changed the other way"
    p = p_value(gain.adjusted)
    return f"{points(gain.mean)} points, {told} (p {p if p.startswith('<') else f'= {p}'} by Holm)"
