"""The picture: win rate against the human gold by number of revisions."""

import io
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from srpo_jax.reporting.data import Curve, Report


@dataclass(frozen=True)
class Look:
    """How a method is drawn wherever it appears: a label, a colour (#rrggbb) and a marker."""

    label: str
    colour: str
    marker: str


# Okabe and Ito's palette, told apart with any colour vision; yellow tones darkened for text on
# white. Markers differ as well, for print in grey.
_LOOKS = {
    "srpo": Look("SRPO", "#0072b2", "o"),
    "dpo": Look("DPO", "#d55e00", "s"),
    "ipo": Look("IPO", "#009e73", "^"),
    "ppo": Look("PPO", "#b95c92", "v"),
    "sft": Look("SFT", "#a87900", "D"),
    "start": Look("start policy", "#6b6b6b", "X"),
}
_SPARE = (("#332288", "P"), ("#882255", "p"), ("#117733", "h"), ("#4a8fb8", "*"))

_WIDTH = 9.0  # inches; shown 900 pixels wide, a font size of 10 is 14 pixels
_PIXELS_PER_INCH = 200
_TITLE_WIDTH = 100  # characters
_DODGE = 0.08  # revisions between the points of neighbouring methods
_LABEL_HEIGHT = 14.0  # points kept between the baselines of two direct labels
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#222222",
    "text.color": "#222222",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "text.parse_math": False,  # a "$" in a judge's name is a dollar sign
}


def looks(report: Report) -> dict[str, Look]:
    """The look of each method of a report; known methods look the same in every report."""
    methods = dict.fromkeys(curve.method for curve in report.curves)
    methods |= dict.fromkeys(method for sample in report.samples for method in sample.revisions)
    unknown = [method for method in methods if method.lower() not in _LOOKS]
    spare = {method: Look(method, *_SPARE[i % len(_SPARE)]) for i, method in enumerate(unknown)}
    return {method: spare.get(method) or _LOOKS[method.lower()] for method in methods}


def draw(report: Report) -> bytes:
    """The win-rate picture as PNG: one panel per document set, 1,800 pixels wide for two."""
    panels = report.documents
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    with rc_context(_STYLE):
        figure = Figure(
            figsize=(_WIDTH if columns == 2 else 0.65 * _WIDTH, 0.8 + 3.4 * rows),
            dpi=_PIXELS_PER_INCH,
            facecolor="white",
            layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08),  # inches
        )
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        axes: list[Axes] = list(grid.flat)
        for spare in axes[len(panels) :]:
            spare.remove()
        styles = looks(report)
        bottom, top = _limits(report.curves)
        for i, (documents, panel) in enumerate(zip(panels, axes, strict=False)):
            _draw_panel(panel, report, documents, styles)
            panel.set_ylim(bottom, top)
            panel.tick_params(labelleft=True)
            if i % columns == 0:
                panel.set_ylabel("win rate (%)")
        kind = " (a proxy)" if report.judge_is_proxy else ""
        title = f"Win rate against the human gold, judged by {report.judge_name}{kind}"
        width = _TITLE_WIDTH if columns == 2 else int(0.58 * _TITLE_WIDTH)
        figure.suptitle(textwrap.fill(title, width), fontsize=11.5, fontweight="bold")
        caption = f"Bars: {report.interval}. Dashed: a draw with the human gold."
        figure.supxlabel(caption, fontsize=8.5, color="#555555")
        figure.draw_without_rendering()  # settles the panels' height, which label spacing needs
        for documents, panel in zip(panels, axes, strict=False):
            _label_lines(panel, report.on(documents), styles)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_panel(panel: Axes, report: Report, documents: str, styles: dict[str, Look]) -> None:
    curves, last = report.on(documents), report.revisions(documents)[-1]
    panel.set_title(
        f"{documents}: {curves[0].role}, {report.document_counts[documents]:,} documents",
        fontsize=10.5,
        loc="left",
        pad=10,
    )
    panel.axhline(50, color="#444444", linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.7, zorder=0)
    panel.set_axisbelow(True)
    for i, curve in enumerate(curves):
        look = styles[curve.method]
        shift = _DODGE * (i - (len(curves) - 1) / 2)
        x = [k + shift for k in range(len(curve.win_rates))]
        lows = [100 * rate.low for rate in curve.win_rates]
        highs = [100 * rate.high for rate in curve.win_rates]
        # SRPO is what the picture is about: on top, and a little heavier.
        leading = look.label == "SRPO"
        panel.vlines(x, lows, highs, color=look.colour, linewidth=1.3, alpha=0.55, zorder=2)
        panel.plot(
            x,
            [100 * rate.mean for rate in curve.win_rates],
            color=look.colour,
            marker=look.marker,
            markersize=6,
            markeredgecolor="white",
            markeredgewidth=0.8,
            linewidth=2.4 if leading else 1.7,
            zorder=4 if leading else 3,
        )
    panel.set_xlabel("number of revisions")
    panel.set_xticks(range(0, last + 1, math.ceil((last + 1) / 12)))
    panel.set_xlim(-0.3, last + 0.3)
    panel.tick_params(length=3)


def _label_lines(panel: Axes, curves: Sequence[Curve], styles: dict[str, Look]) -> None:
    """Names each line at its right end, with its last win rate, labels pushed apart."""
    ends = sorted(curves, key=lambda curve: curve.win_rates[-1].mean)
    bottom, top = panel.get_ylim()
    height_points = panel.get_window_extent().height * 72 / _PIXELS_PER_INCH
    gap = _LABEL_HEIGHT * (top - bottom) / height_points
    heights = spread([100 * curve.win_rates[-1].mean for curve in ends], gap)
    for curve, height in zip(ends, heights, strict=True):
        look = styles[curve.method]
        panel.text(
            1.01,
            height,
            f"{look.label} {100 * curve.win_rates[-1].mean:.0f} %",
            transform=panel.get_yaxis_transform(),
            color=look.colour,
            fontsize=10,
            fontweight="bold" if look.label == "SRPO" else "normal",
            va="center",
        )


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The nearest positions (least squares) that are at least `gap` apart, in the same order.

    `positions` must be ascending. With i * gap subtracted the gaps become "not descending", so
    this is isotonic regression: neighbours that would collide are pooled at their mean.
    """
    pools: list[tuple[float, int]] = []  # mean, size
    for i, position in enumerate(positions):
        mean, size = position - i * gap, 1
        while pools and pools[-1][0] > mean:
            before, members = pools.pop()
            mean = (before * members + mean * size) / (members + size)
            size += members
        pools.append((mean, size))
    levels = [mean for mean, size in pools for _ in range(size)]
    return [level + i * gap for i, level in enumerate(levels)]


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Limits of the y axis in %, all intervals and the 50 % line inside with some air."""
    rates = [rate for curve in curves for rate in curve.win_rates]
    low = min(50.0, *(100 * rate.low for rate in rates))
    high = max(50.0, *(100 * rate.high for rate in rates))
    # At least 20 points in view: noise of a point or two should look like noise.
    air = max(0.06 * (high - low), (20 - (high - low)) / 2)
    return max(-1.0, low - air), min(101.0, high + air)
