"""Tables in Markdown, padded for a terminal."""

from collections.abc import Sequence

from srpo_jax.reporting.student import Mean

Rows = list[list[str]]


def table(title: str, header: Sequence[str], rows: Rows) -> str:
    """rows: the cells of each, as many as the header has. The first column is left-aligned."""
    cells = [list(header), *rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0])]
        padded += [x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([f"**{title}**", "", line(header), line(rule), *map(line, rows)])


def signed(value: Mean) -> str:
    return f"{'+' if value.mean > 0 else ''}{value}"
