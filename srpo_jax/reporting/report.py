"""What `evaluate` and `quickstart` leave behind: a picture, tables, a page, and the numbers.

Data in, files out: no model and no mesh is imported here.
"""

import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from srpo_jax.reporting import figure as report_figure
from srpo_jax.reporting import page as report_page
from srpo_jax.reporting.data import (
    Curve,
    Interval,
    JudgeCheck,
    Report,
    Role,
    Sample,
    from_json,
    to_json,
)
from srpo_jax.runtime.errors import UserError

__all__ = [
    "Curve",
    "Interval",
    "JudgeCheck",
    "Report",
    "Role",
    "Sample",
    "from_json",
    "markdown",
    "print_table",
    "to_json",
    "write",
]


def write(report: Report, directory: str | Path) -> dict[str, Path]:
    """Writes win_rate.png, table.md, report.html and results.json; returns their paths by name.

    A file appears complete or not at all, and replaces its forerunner; results.json comes last.
    Raises UserError where the directory cannot be written.
    """
    directory = Path(directory)
    picture = report_figure.draw(report)
    contents = {
        "win_rate.png": picture,
        "table.md": markdown(report).encode(),
        "report.html": report_page.render(report, picture).encode(),
        "results.json": to_json(report).encode(),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            _write_atomically(directory / name, content)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to {directory} ({error.strerror}); "
            "name a folder that can be written and has room"
        ) from error
    return {name: directory / name for name in contents}


def markdown(report: Report) -> str:
    """The win rates, lengths and judge checks as Markdown tables, ready for a README."""
    blocks = []
    for documents in report.documents:
        curves, ks = report.on(documents), report.revisions(documents)
        blocks += [
            f"**{_plain(documents)}** ({curves[0].role}, "
            f"{report.document_counts[documents]:,} documents): win rate against the human gold "
            f"in %, with the {_plain(report.interval)}, by number of revisions",
            _table(
                ["method", *map(str, ks), "change"],
                ([_label(report, curve), *_rates(curve, ks), _change(curve)] for curve in curves),
            ),
            "Mean words of a completion, and the share that equals the revision before it "
            f"(the gold has {report.gold_words[documents]:.1f} words)",
            _table(
                ["method", *map(str, ks)],
                ([_label(report, curve), *_lengths(curve, ks)] for curve in curves),
            ),
        ]
    blocks.append(f"Judge: **{_plain(report.judge_name)}**. {_plain(report.judge_description)}")
    if report.proxy_warning:
        blocks.append(_plain(report.proxy_warning))
    if report.checks:
        blocks += [
            "How often the judge prefers the human gold to a damaged text, on held-out documents",
            _table(
                ["gold against", "documents", "preferred (%)", "interval", "count"],
                (
                    [check.damage, check.documents, *_check(check), f"{check.count:,}"]
                    for check in report.checks
                ),
                texts=2,
            ),
        ]
    return "\n\n".join(blocks) + "\n"


def print_table(report: Report, console: Console | None = None) -> None:
    """Prints the win rates, one table per document set, and the judge's checks."""
    console = console or Console()
    styles = report_figure.looks(report)
    for documents in report.documents:
        curves, ks = report.on(documents), report.revisions(documents)
        title = f"{documents} ({curves[0].role}): win rate against the human gold, %"
        table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("revisions")
        for k in ks:
            table.add_column(str(k), justify="right")
        table.add_column("change", justify="right")
        for curve in curves:
            look = styles[curve.method]
            cells = (
                Text(f"{100 * rate.mean:.1f}\n").append(_span(rate.low, rate.high, 0), "dim")
                for rate in curve.win_rates
            )
            padding = [""] * (len(ks) - len(curve.win_rates))
            table.add_row(Text(look.label, look.colour), *cells, *padding, _change(curve))
        console.print(table)
    if report.checks:
        title = "How often the judge prefers the gold to a damaged text, %"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        table.add_column("gold against")
        table.add_column("documents")
        for header in ("preferred", "interval", "count"):
            table.add_column(header, justify="right")
        for check in report.checks:
            row = [check.damage, check.documents, *_check(check), f"{check.count:,}"]
            table.add_row(*map(Text, row))
        console.print(table)
    console.print(Text(report.proxy_warning or f"Judge: {report.judge_name}"))


def _label(report: Report, curve: Curve) -> str:
    return report_figure.looks(report)[curve.method].label


def _rates(curve: Curve, ks: range) -> list[str]:
    cells = [f"{100 * rate.mean:.1f} ({_span(rate.low, rate.high)})" for rate in curve.win_rates]
    return cells + [""] * (len(ks) - len(cells))


def _lengths(curve: Curve, ks: range) -> list[str]:
    cells = [
        f"{words:.1f}" + (f" ({100 * unchanged:.0f} % unchanged)" if k else "")
        for k, (words, unchanged) in enumerate(zip(curve.mean_words, curve.unchanged, strict=True))
    ]
    return cells + [""] * (len(ks) - len(cells))


def _check(check: JudgeCheck) -> tuple[str, str]:
    return f"{100 * check.rate:.1f}", _span(check.low, check.high)


def _change(curve: Curve) -> str:
    """Points of win rate from no revision to the last."""
    return f"{100 * curve.change:+.1f}"


def _span(low: float, high: float, digits: int = 1) -> str:
    return f"{100 * low:.{digits}f}–{100 * high:.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """A Markdown table whose first `texts` columns are words and the others numbers."""
    lines = [list(header), ["---"] * texts + ["---:"] * (len(header) - texts)]
    lines += [[_plain(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(text: str) -> str:
    """Text as it will look in Markdown: one line, with every mark that means something escaped."""
    return re.sub(r"([\\`*_\[\]<>|#&~$])", r"\\\1", " ".join(text.split()))


def _write_atomically(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp lets nobody else read, and a report is to be shared
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
