"""The figure: win rate by number of revisions, exact (dashed) and network (mean, and each seed thin)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo_jax.theory.revision_task.cells import METHODS, WHERE, Store, curve
from srpo_jax.theory.revision_task.measure import gold_table
from srpo_jax.theory.revision_task.plan import Plan, selected

COLOURS = {
    "srpo": "#56b4e9",
    "srpo_anchored": "#0072b2",
    "dpo": "#e69f00",
    "dpo_anchored": "#d55e00",
    "ipo": "#009e73",
    "rloo": "#cc79a7",
    "ppo": "#999999",
}


def draw(path: Path, store: Store, plan: Plan) -> None:
    """Panels: exact; network in and out of distribution, at the betas selected."""
    figure = Figure(figsize=(11, 4.3))
    axes = figure.subplots(1, 1 + len(WHERE), sharey=True)
    betas = {method: selected(store, plan, method) for method in plan.methods}
    _draw_exact(axes[0], plan, betas)
    for axis, where in zip(axes[1:], WHERE, strict=True):
        _draw_network(axis, store, plan, betas, where)
    for axis in axes:
        axis.set_xlabel("revisions")
        axis.set_ylim(0, 100)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("win rate against the gold writer, %")
    lines, labels = axes[-1].get_legend_handles_labels()
    columns = min(len(lines), 5)  # more do not fit beside each other
    figure.legend(lines, labels, loc="lower center", ncols=columns, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.02 + 0.04 * -(-len(lines) // columns), 1, 1))
    figure.savefig(path, dpi=90)


def _draw_exact(axis: Axes, plan: Plan, betas: Mapping[str, float]) -> None:
    exact = gold_table(plan.desk)
    for method, beta in betas.items():
        rates = exact.curve(exact.solve(METHODS[method].closed_form, beta)).win_rate
        axis.plot(rates, "o--", markersize=3, color=COLOURS[method])
    axis.set_title("exact, without anchors: 4,096 answers", fontsize=10)


def _draw_network(
    axis: Axes, store: Store, plan: Plan, betas: Mapping[str, float], where: str
) -> None:
    """The mean over seeds, and each of them as a thin line."""
    start = np.mean([curve(r, where) for r in store.find(plan.starts("test"))], axis=0)
    axis.plot(start, ":", color="#4c566a", label="the start (SFT)")
    for method, beta in betas.items():
        curves = np.array([curve(r, where) for r in store.find(plan.tests(method, beta))])
        axis.plot(curves.T, color=COLOURS[method], linewidth=0.6, alpha=0.5)
        label = f"{METHODS[method].label}, beta {beta:g}"
        axis.plot(curves.mean(axis=0), "o-", markersize=3, color=COLOURS[method], label=label)
    axis.set_title(f"network, {where} of distribution, {len(plan.seeds)} seeds", fontsize=10)
