"""The numbers as tables: Markdown for a README or a paper, and the terminal's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srpo_jax.reporting import summary
from srpo_jax.reporting.data import (
    Cell,
    Curve,
    Difference,
    Interval,
    Report,
    Style,
    opponent_phrase,
)
from srpo_jax.reporting.evidence import Documents, JudgeRecord
from srpo_jax.reporting.figure import looks
from srpo_jax.reporting.wording import amount, fixed, p_value, percent, points, span


def markdown(report: Report) -> str:
    """Findings, win rates, differences, texts and judges as Markdown."""
    blocks = ["\n".join(f"- {_plain(line)}" for line in summary.findings(report))]
    blocks += [f"**Note.** {_plain(line)}" for line in summary.warnings(report)]
    for view in report.views:
        for documents in report.sets:
            blocks += _view(report, documents, view)
    for documents in report.sets:
        blocks += _styles(report, documents)
    for judge in report.evidence.judges:
        blocks += _judge(report, judge)
    if report.concords:
        rows = [
            [
                each.first,
                each.second,
                _or_none(each.kappa),
                _interval(each.share),
                f"{each.count:,}",
            ]
            for each in report.concords
        ]
        blocks += [
            "Agreement between judges: Cohen's kappa, and the share of equal verdicts",
            _table(["judge", "judge", "kappa", "equal", "pairs"], rows, texts=2),
        ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _view(report: Report, documents: Documents, view: tuple[str, str]) -> list[str]:
    curves = report.on(documents.name, view)
    if not curves:
        return []
    label, ks = _labels(report), range(max(len(curve.cells) for curve in curves))
    header = ["model", "revisions", "win rate", "interval", "spread", "length-controlled"]
    blocks = [
        f"**{_plain(documents.name)}** ({documents.role}, {documents.count}), judged by "
        f"**{_plain(view[0])}**: win rate against {_plain(opponent_phrase(view[1]))} in %, with the "
        f"{_plain(report.notes['interval'])}, by number of revisions",
        _table(
            ["model", *map(str, ks), "change"],
            ([label[c.key.model], *_rates(c, ks), _gain(report, c)] for c in curves),
        ),
        _table(
            [*header, "n", "wins", "ties", "losses", "missing"],
            (
                [label[curve.key.model], str(k), *_cell(cell)]
                for curve in curves
                for k, cell in enumerate(curve.cells)
            ),
        ),
    ]
    differences = report.compared(documents.name, view)
    if differences:
        blocks += [
            f"Differences in points ({_plain(report.notes['test'])}); * tells them from chance",
            _table(
                ["difference", "points", "interval", "n", "p", "p (Holm)", ""],
                (_difference(label, each) for each in differences),
            ),
        ]
    return blocks


def _styles(report: Report, documents: Documents) -> list[str]:
    styles, label = report.styled(documents.name), _labels(report)
    if not styles:
        return []
    return [
        f"**{_plain(documents.name)}**: what the completions look like; {gold_words(documents)}",
        _table(
            [
                "model",
                "revisions",
                "words",
                "unchanged (%)",
                "words changed (%)",
                "repeated trigrams (%)",
                "cut off (%)",
                "shared with the gold (F1, %)",
            ],
            (
                [label[style.model], str(k), *_style(style, k)]
                for style in styles
                for k in range(len(style.mean_words))
            ),
        ),
    ]


def _judge(report: Report, judge: JudgeRecord) -> list[str]:
    blocks = [f"Judge: **{_plain(judge.name)}**. {_plain(judge.description)}"]
    blocks += [_plain(line) for line in (*judge_facts(judge), *judge_lines(report, judge))]
    if judge.checks:
        blocks += [
            "How often this judge prefers the human gold to a damaged text, on held-out documents († a "
            "kind of damage that it was fitted with)",
            _table(
                ["gold against", "documents", "preferred (%)", "interval", "count"],
                (
                    [
                        check.damage + ("" if check.held_out else " †"),
                        check.documents,
                        percent(check.rate),
                        span(check.low, check.high),
                        f"{check.count:,}",
                    ]
                    for check in judge.checks
                ),
                texts=2,
            ),
        ]
    return blocks


def judge_facts(judge: JudgeRecord) -> list[str]:
    """What one needs to ask a judge the same again, a line; none for one that is not asked."""
    facts = "; ".join(f"{name} {value}" for name, value in judge.facts.items())
    return [f"Asked: {facts}."] if facts else []


def judge_lines(report: Report, judge: JudgeRecord) -> list[str]:
    """Position agreement, missing verdicts and cost of one judge, a sentence each."""
    lines = []
    for each in report.positions:
        if each.judge == judge.name and each.agreement:
            first = (
                f"; what is shown first is preferred in {_interval(each.first)} of its choices"
                if each.first
                else ""
            )
            lines.append(
                f"Position: both orders agree on {_interval(each.agreement)} of {each.count:,} pairs, "
                f"where position alone gives {percent(each.chance)} %{first}."
            )
    for absence in report.absences:
        if absence.judge == judge.name and absence.asked:
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in absence.reasons.items())
            lines.append(
                f"Missing: {absence.missing:,} of {absence.asked:,} verdicts "
                f"({percent(absence.share)} %){': ' + reasons if reasons else ''}."
            )
    if judge.cost:
        paid = ", ".join(f"{name.replace('_', ' ')} {amount(v)}" for name, v in judge.cost.items())
        lines.append(f"Cost: {paid}.")
    return lines


def gold_words(documents: Documents) -> str:
    """How long the golds are, a clause."""
    lengths = [len(gold.split()) for gold in documents.golds if gold is not None]
    if not lengths:
        return "there is no gold"
    return f"the gold has {fixed(sum(lengths) / len(lengths))} words"


def print_table(report: Report, console: Console | None = None) -> None:
    """Prints the win rates, a table for each judge, opponent and set, and what to be warned of."""
    console = console or Console()
    styles = looks(report.evidence.models)
    for view in report.views:
        for documents in report.sets:
            curves = report.on(documents.name, view)
            if curves:
                against = f"against {opponent_phrase(view[1])}, judged by {view[0]}"
                title = f"{documents.name} ({documents.role}): win rate {against}, %"
                table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
                table.add_column("revisions")
                ks = range(max(len(curve.cells) for curve in curves))
                for header in (*map(str, ks), "change"):
                    table.add_column(header, justify="right")
                for curve in curves:
                    look = styles[curve.key.model]
                    cells = [_short_cell(cell.rate) for cell in curve.cells]
                    cells += [Text("")] * (len(ks) - len(cells))
                    table.add_row(Text(look.label, look.colour), *cells, _gain(report, curve))
                console.print(table)
    for judge in report.evidence.judges:
        for line in judge_lines(report, judge):
            console.print(Text(f"{judge.name}: {line}"))
    for line in summary.warnings(report):
        console.print(Text(line, "yellow"))


def _labels(report: Report) -> dict[str, str]:
    return {model: look.label for model, look in looks(report.evidence.models).items()}


def _short_cell(rate: Interval | None) -> Text:
    if rate is None:
        return Text("none")
    return Text(f"{percent(rate.mean)}\n").append(span(rate.low, rate.high, 0), "dim")


def _interval(rate: Interval) -> str:
    return f"{percent(rate.mean)} % ({span(rate.low, rate.high)})"


def _rates(curve: Curve, ks: range) -> list[str]:
    cells = [
        f"{percent(cell.rate.mean)} ({span(cell.rate.low, cell.rate.high)})"
        if cell.rate
        else "none"
        for cell in curve.cells
    ]
    return cells + [""] * (len(ks) - len(cells))


def _gain(report: Report, curve: Curve) -> str:
    """Points of win rate from no revision to the last, marked where told from chance."""
    gain = report.gain(curve)
    return points(gain.mean) + (" *" if gain.significant else "") if gain else ""


def _cell(cell: Cell) -> list[str]:
    rate, controlled = cell.rate, cell.controlled
    return [
        percent(rate.mean) if rate else "none",
        span(rate.low, rate.high) if rate else "",
        "" if cell.spread is None else percent(cell.spread),
        f"{percent(controlled.mean)} ({span(controlled.low, controlled.high)})"
        if controlled
        else "",
        *(f"{n:,}" for n in (cell.count, cell.wins, cell.ties, cell.losses, cell.missing)),
    ]


def _difference(label: dict[str, str], each: Difference) -> list[str]:
    return [
        f"{label[each.model]} y_{each.revision} − {label[each.baseline]} y_{each.baseline_revision}",
        points(each.mean),
        span(each.low, each.high),
        f"{each.count:,}",
        p_value(each.p),
        p_value(each.adjusted),
        "*" if each.significant else "",
    ]


def _style(style: Style, k: int) -> list[str]:
    return [
        fixed(style.mean_words[k]),
        percent(style.unchanged[k]) if k else "",
        percent(style.edits[k]) if k and style.edits else "",
        percent(style.repetition[k]),
        percent(style.cut[k]) if style.cut else "unknown",
        percent(style.overlap[k]) if style.overlap else "",
    ]


def _or_none(value: float | None) -> str:
    return "none" if value is None else fixed(value, 2)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table whose first `texts` columns are words and the others numbers."""
    lines = [list(header), ["---"] * texts + ["---:"] * (len(header) - texts)]
    lines += [[_plain(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text as it will look in Markdown: one line, with every mark that means something escaped."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(text.split()))
