"""The picture: win rate by number of revisions, a panel for each set of documents."""

import io
import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from srpo_jax.reporting.data import Curve, Report, judged, opponent_phrase
from srpo_jax.reporting.evidence import Documents
from srpo_jax.reporting.wording import short


@dataclass(frozen=True)
class Look:
    """How a model is drawn wherever it appears: a label, a colour (#rrggbb) and a marker."""

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


def looks(models: Sequence[str]) -> dict[str, Look]:
    """The look of each model, no two labels alike; known ones look the same in every report.

    Of names that differ in case alone ("srpo" and "SRPO"), or are another's label, each stands for itself.
    """
    names = {model: _LOOKS[model.lower()].label for model in models if model.lower() in _LOOKS}
    labels = Counter((names.get(model, model)).lower() for model in models)
    known = [model for model, label in names.items() if labels[label.lower()] == 1]
    unknown = [model for model in models if model not in known]
    count = len(_SPARE)
    # Behind the first four, their colours with each other's markers.
    spare = {
        model: Look(model, _SPARE[i % count][0], _SPARE[(i + i // count) % count][1])
        for i, model in enumerate(unknown)
    }
    return {model: spare.get(model) or _LOOKS[model.lower()] for model in models}


def draw(report: Report, view: tuple[str, str]) -> bytes:
    """The picture of one (judge, opponent) as PNG: a panel per document set, 1,800 pixels for two."""
    panels = _panels(report, view)
    columns = min(len(panels), 2)
    rows = math.ceil(len(panels) / columns)
    with rc_context(_STYLE):
        figure = _figure(_WIDTH if columns == 2 else 0.65 * _WIDTH, 0.8 + 3.4 * rows)
        axes = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for spare in axes[len(panels) :]:
            spare.remove()
        judge = next(each for each in report.evidence.judges if each.name == view[0])
        kind = " (a proxy)" if judge.is_proxy else ""
        title = f"Win rate against {opponent_phrase(view[1])}, judged by {judge.name}{kind}"
        width = _TITLE_WIDTH if columns == 2 else int(0.58 * _TITLE_WIDTH)
        figure.suptitle(textwrap.fill(title, width), fontsize=11.5, fontweight="bold")
        caption = f"Shaded: {report.notes['interval']}. Dashed: a draw."
        figure.supxlabel(textwrap.fill(caption, width + 30), fontsize=8.5, color="#555555")
        _draw_panels(figure, report, view, list(zip(panels, axes, strict=False)))
        return _png(figure)


def draw_apart(report: Report, view: tuple[str, str]) -> dict[str, bytes]:
    """The same panels as PNGs of their own, by document set, on one scale: for narrow screens."""
    pictures = {}
    for documents in _panels(report, view):
        with rc_context(_STYLE):
            figure = _figure(_WIDTH / 2, 3.3)
            _draw_panels(figure, report, view, [(documents, figure.subplots())])
            pictures[documents.name] = _png(figure)
    return pictures


def _panels(report: Report, view: tuple[str, str]) -> list[Documents]:
    return [each for each in report.sets if report.on(each.name, view)]


def _figure(width: float, height: float) -> Figure:
    return Figure(
        figsize=(width, height),
        dpi=_PIXELS_PER_INCH,
        facecolor="white",
        layout=ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08),  # inches
    )


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_panels(
    figure: Figure,
    report: Report,
    view: tuple[str, str],
    panels: Sequence[tuple[Documents, Axes]],
) -> None:
    styles = looks(report.evidence.models)
    shown = [curve for curve in report.curves if (curve.key.judge, curve.key.opponent) == view]
    bottom, top = _limits(shown)
    for i, (documents, panel) in enumerate(panels):
        _draw_panel(panel, documents, report.on(documents.name, view), styles)
        panel.set_ylim(bottom, top)
        panel.tick_params(labelleft=True)
        if i % 2 == 0:
            panel.set_ylabel("win rate (%)")
    figure.draw_without_rendering()  # settles the panels' height, which label spacing needs
    for documents, panel in panels:
        _label_lines(panel, report.on(documents.name, view), styles)


def _draw_panel(
    panel: Axes, documents: Documents, curves: Sequence[Curve], styles: dict[str, Look]
) -> None:
    last = max(len(curve.cells) for curve in curves) - 1
    panel.set_title(
        f"{short(documents.name, 24)}: {documents.role}, n = {judged(curves):,}",
        fontsize=10.5,
        loc="left",
        pad=10,
    )
    panel.axhline(50, color="#444444", linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    panel.grid(axis="y", color="#e6e6e6", linewidth=0.7, zorder=0)
    panel.set_axisbelow(True)
    for curve in curves:
        _draw_curve(panel, curve, styles[curve.key.model])
    panel.set_xlabel("number of revisions")
    panel.set_xticks(range(0, last + 1, math.ceil((last + 1) / 12)))
    panel.set_xlim(-0.3, last + 0.3)
    panel.tick_params(length=3)


def _draw_curve(panel: Axes, curve: Curve, look: Look) -> None:
    """A line through the revisions that were judged, its interval shaded."""
    points = [(k, cell.rate) for k, cell in enumerate(curve.cells) if cell.rate]
    x = [k for k, _ in points]
    lows, highs = [100 * rate.low for _, rate in points], [100 * rate.high for _, rate in points]
    # SRPO is what the picture is about: on top, and a little heavier.
    leading = look.label == "SRPO"
    if len(points) > 1:
        panel.fill_between(x, lows, highs, color=look.colour, alpha=0.13, linewidth=0, zorder=2)
    else:  # a band of one point has no width
        panel.vlines(x, lows, highs, color=look.colour, linewidth=1.3, alpha=0.55, zorder=2)
    panel.plot(
        x,
        [100 * rate.mean for _, rate in points],
        color=look.colour,
        marker=look.marker,
        markersize=6,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linewidth=2.4 if leading else 1.7,
        zorder=4 if leading else 3,
    )


def _label_lines(panel: Axes, curves: Sequence[Curve], styles: dict[str, Look]) -> None:
    """Names each line at its right end, with its last win rate, labels pushed apart."""
    found = [(curve.last.mean, curve) for curve in curves if curve.last]
    ends = sorted(found, key=lambda end: end[0])
    bottom, top = panel.get_ylim()
    height_points = panel.get_window_extent().height * 72 / _PIXELS_PER_INCH
    gap = _LABEL_HEIGHT * (top - bottom) / height_points
    heights = spread([100 * mean for mean, _ in ends], gap)
    for (mean, curve), height in zip(ends, heights, strict=True):
        look = styles[curve.key.model]
        panel.text(
            1.01,
            height,
            f"{short(look.label, 22)} {100 * mean:.0f} %",
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
    rates = [cell.rate for curve in curves for cell in curve.cells if cell.rate]
    low = min([50.0, *(100 * rate.low for rate in rates)])
    high = max([50.0, *(100 * rate.high for rate in rates)])
    # At least 20 points in view: noise of a point or two should look like noise.
    air = max(0.06 * (high - low), (20 - (high - low)) / 2)
    return max(-1.0, low - air), min(101.0, high + air)
