"""The figure: win rate by number of revisions, exact (dashed) and network (with its interval)."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from srpo_jax.theory.revision_task.cells import METHODS, WHERE, Store, curve
from srpo_jax.theory.revision_task.exact import REVISIONS
from srpo_jax.theory.revision_task.measure import gold_table
from srpo_jax.theory.revision_task.plan import Plan, selected
from srpo_jax.theory.revision_task.statistics import means_of

COLOURS = {
    "srpo": "#56b4e9",
    "srpo_anchored": "#0072b2",
    "dpo": "#e69f00",
    "dpo_anchored": "#d55e00",
    "ipo": "#009e73",
}


def draw(path: Path, store: Store, plan: Plan) -> None:
    """Panels: exact; network in and out of distribution, at the betas selected."""
    figure = Figure(figsize=(11, 3.8))
    axes = figure.subplots(1, 1 + len(WHERE), sharey=True)
    _draw_exact(axes[0], store, plan)
    for axis, where in zip(axes[1:], WHERE, strict=True):
        _draw_network(axis, store, plan, where)
    for axis in axes:
        axis.set_xlabel("revisions")
        axis.set_ylim(0, 100)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("win rate against the gold writer, %")
    axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def _draw_exact(axis: Axes, store: Store, plan: Plan) -> None:
    """What several methods share a closed form of is drawn once for each beta."""
    drawn = set()
    for method in plan.methods:
        closed, beta = METHODS[method].closed_form, selected(store, plan, method)
        if (closed, beta) in drawn:
            continue
        drawn.add((closed, beta))
        exact = gold_table(plan.desk)
        rates = exact.curve(exact.solve(closed, beta)).win_rate
        label = f"{closed.upper()}, beta {beta:g}"
        axis.plot(rates, "o--", markersize=3, color=COLOURS[method], label=label)
    axis.set_title("exact, 4,096 answers" if plan.desk.places == 6 else "exact", fontsize=10)


def _draw_network(axis: Axes, store: Store, plan: Plan, where: str) -> None:
    at = np.arange(REVISIONS + 1)
    start = np.mean([curve(r, where) for r in store.find(plan.starts("test"))], axis=0)
    axis.plot(at, start, ":", color="#4c566a", label="the start (SFT)")
    for method in plan.methods:
        beta = selected(store, plan, method)
        records = store.find(plan.tests(method, beta))
        means = means_of(np.array([curve(record, where) for record in records]))
        middle, half = (np.array([getattr(m, name) for m in means]) for name in ("mean", "half"))
        label = f"{METHODS[method].label}, beta {beta:g}"
        axis.plot(at, middle, "o-", markersize=3, color=COLOURS[method], label=label)
        band = middle - half, middle + half
        axis.fill_between(at, *band, color=COLOURS[method], alpha=0.2, linewidth=0)
    axis.set_title(f"network, {where} of distribution, {len(plan.seeds)} seeds", fontsize=10)
    axis.legend(frameon=False, fontsize=7)
