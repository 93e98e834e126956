"""The tables, in Markdown: the closed form beside the network, and the comparisons.

Win rates against the gold writer in percent. Each network number is a mean over seeds with its 95 %
interval of Student's t; of differences, the differences are taken seed by seed.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.theory import bandit
from srpo_jax.theory.revision_task.cells import METHODS, START, WHERE, Cell, Store, curve, way_name
from srpo_jax.theory.revision_task.desk import CIRCLE, LETTERS
from srpo_jax.theory.revision_task.exact import REVISIONS, Policy, Table
from srpo_jax.theory.revision_task.measure import Way, gold_table
from srpo_jax.theory.revision_task.plan import (
    ALL_WAYS,
    BEHAVIOUR_BETAS,
    RULE,
    STUDY_METHOD,
    WRITERS,
    Plan,
    by_first_answer,
    selected,
    study,
)
from srpo_jax.theory.revision_task.statistics import Mean, mean_of, means_of

OURS = "srpo_anchored"  # what the others are compared with
Rows = list[list[str]]


def summary(store: Store, plan: Plan) -> str:
    """All tables that the plan's cells give."""
    parts = [heading(plan), selection(store, plan), main_table(store, plan)]
    if plan.everything:
        parts.append(ways(store, plan))
    parts += [differences(store, plan), equal_kl(store, plan)]
    if plan.compared():
        parts.append(behaviours(store, plan))
    if plan.study:
        parts.append(study_table(store, plan))
    return "\n\n".join(parts) + "\n"


def heading(plan: Plan) -> str:
    seeds, chosen = (" ".join(map(str, s)) for s in (plan.seeds, plan.validation_seeds))
    recipe = plan.recipe
    return (
        f"Test seeds {seeds}; validation seeds {chosen}; {plan.prompts} prompts in and as many out of "
        f"distribution. Network: {recipe.layers} layers, width {recipe.width}, {recipe.pairs:,} pairs, "
        f"{recipe.steps} steps of {recipe.batch}; anchor {plan.nll_weight:g}.\n\n"
        f"Selection: {RULE}."
    )


def selection(store: Store, plan: Plan) -> str:
    """The whole grid on validation: what was selected from."""
    rows: Rows = []
    for method in plan.methods:
        best, first = selected(store, plan, method), selected(store, plan, method, 0)
        for beta in plan.betas(method):
            records = store.find(plan.validation(method, beta))
            wins = np.mean([curve(record, "in") for record in records], axis=0)
            note = "selected" if beta == best else ""
            if by_first_answer(method) and beta == first:
                note = f"{note}, by N = 0 too" if note else "selected by N = 0"
            numbers = (f"{wins[n]:.1f}" for n in (0, 1, REVISIONS))
            rows.append([METHODS[method].label, f"{beta:g}", *numbers, note])
    return table(
        "The grid, on validation prompts", ["", "beta", "N = 0", "1", f"{REVISIONS}", ""], rows
    )


def main_table(store: Store, plan: Plan) -> str:
    """Each method at the beta selected: exact, and the network in and out of distribution."""
    rows = _curves("the start", gold_table(plan.desk).start(), plan, store.find(plan.starts("test")))
    for method, beta, note in _shown(store, plan):
        label = f"{METHODS[method].label}, beta {beta:g}{note}"
        closed = gold_table(plan.desk).solve(METHODS[method].closed_form, beta)
        rows += _curves(label, closed, plan, store.find(plan.tests(method, beta)))
    header = ["", "", *(str(n) for n in range(REVISIONS + 1)), f"{REVISIONS} less 0"]
    text = table("Win rate by number of revisions: exact | network", header, rows)
    return (
        f"{text}\n\nThe exact rows are the minimisers of the losses without anchor; DPO and IPO revise with "
        "the start's improve policy. Perfect answers win "
        f"{100 * _perfect(gold_table(plan.desk)):.1f} %."
    )


def _perfect(exact: Table) -> float:
    return float((exact.preference @ exact.gold)[np.argmax(exact.tallies[:, 0])])


def _shown(store: Store, plan: Plan) -> list[tuple[str, float, str]]:
    """(method, beta, note): as selected, and as the first answer would have selected."""
    found = []
    for method in plan.methods:
        best = selected(store, plan, method)
        found.append((method, best, ""))
        if by_first_answer(method) and (first := selected(store, plan, method, 0)) != best:
            found.append((method, first, " (selected by N = 0)"))
    return found


def _curves(label: str, closed: Policy, plan: Plan, records: Sequence[Any]) -> Rows:
    exact = gold_table(plan.desk).curve(closed).win_rate
    rows = [[label, "exact", *(f"{w:.1f}" for w in exact), f"{exact[-1] - exact[0]:+.1f}"]]
    for where in WHERE:
        rows.append(["", f"network, {where}", *_network(records, where, Way())])
    return rows


def _network(records: Sequence[Any], where: str, way: Way) -> list[str]:
    wins = np.array([curve(record, where, way) for record in records])
    gain = mean_of(wins[:, -1] - wins[:, 0])
    return [*map(str, means_of(wins)), f"{'+' if gain.mean > 0 else ''}{gain}"]


def ways(store: Store, plan: Plan) -> str:
    """Temperature 1 and greedy, free and fixed length."""
    rows: Rows = []
    for method, beta, note in [("start", 0.0, ""), *_shown(store, plan)]:
        cells = plan.starts("test") if method == "start" else plan.tests(method, beta)
        records = store.find(cells)
        label = START.label if method == "start" else f"{METHODS[method].label} {beta:g}{note}"
        for way in ALL_WAYS:
            for where in WHERE:
                wrong = [record[where][way_name(way)]["wrong_length"][-1] for record in records]
                told = [*_network(records, where, way), f"{np.mean(wrong):.1f}"]
                rows.append([label, f"{_greedy(way)}, {way.length}, {where}", *told])
    header = ["", "", *(str(n) for n in range(REVISIONS + 1)), f"{REVISIONS} less 0", "wrong length"]
    return table("The same by way of decoding (wrong length: percent, of the last)", header, rows)


def _greedy(way: Way) -> str:
    return "greedy" if way.temperature == 0 else f"temperature {way.temperature:g}"


# --- comparisons ------------------------------------------------------------------------------------------


def differences(store: Store, plan: Plan) -> str:
    """Head to head at equal inference compute: 1 + N answers written, the last or the likeliest taken."""
    if OURS not in plan.methods:
        return ""
    exact, rows = gold_table(plan.desk), []
    ours = selected(store, plan, OURS)
    mine = store.find(plan.tests(OURS, ours))
    for method, beta, note in _shown(store, plan):
        theirs = store.find(plan.tests(method, beta))
        policy = exact.solve(METHODS[method].closed_form, beta)
        row = [f"{METHODS[method].label}, beta {beta:g}{note}"]
        row.append(f"{exact.best_of(policy.direct, 1 + REVISIONS):.1f}")
        for where in WHERE:
            best = np.array([record[where]["best_of"] for record in theirs])
            last = np.array([curve(record, where)[-1] for record in mine])
            row += [str(mean_of(best)), _signed(mean_of(last - best))]
        rows.append(row)
    count = 1 + REVISIONS
    header = ["", f"exact best of {count}"]
    for where in WHERE:
        header += [f"best of {count}, {where}", f"y_{REVISIONS} of SRPO, anchored, less it"]
    title = f"Equal inference compute: the likeliest of {count} answers under the model's own likelihood"
    return table(title, header, rows)


def _signed(value: Mean) -> str:
    return f"{'+' if value.mean > 0 else ''}{value}"


def equal_kl(store: Store, plan: Plan) -> str:
    """SRPO at each beta beside DPO and IPO at the same KL(pi || reference) of the first answer."""
    if OURS not in plan.methods:
        return ""
    rows: Rows = []
    others = [name for name in plan.methods if by_first_answer(name)]
    for beta in plan.betas(OURS):
        rows += _at_one_beta(store, plan, beta, others)
    header = ["SRPO, anchored", "", "KL of y_0", "N = 0", f"N = {REVISIONS}"]
    for name in others:
        label = METHODS[name].label
        header += [f"{label}, N = 0", "its best N", "SRPO's N = 5 less that"]
    text = table(
        f"At equal KL(pi || reference) of the first answer, nats ({plan.frontier_split} seeds)",
        header,
        rows,
    )
    return (
        f"{text}\n\nExact: beta of the other method by bisection. Network: its win rates between two betas "
        "are interpolated in KL, seed by seed, from the start (KL 0) on; a dash is beyond its grid. The KL "
        "of the revisions, each from the reference's editor, comes on top for SRPO: in all "
        f"{_whole_cost(store, plan)} nats over y_0 and {REVISIONS} revisions at the beta selected."
    )


def _whole_cost(store: Store, plan: Plan) -> str:
    records = store.find(plan.frontier(OURS, selected(store, plan, OURS)))
    return str(mean_of([sum(record["in"]["kl"]) for record in records]))


def _at_one_beta(store: Store, plan: Plan, beta: float, others: Sequence[str]) -> Rows:
    exact = gold_table(plan.desk)
    policy = exact.solve("srpo", beta)
    curves = exact.curve(policy)
    rates = curves.win_rate
    told = [f"beta {beta:g}", "exact", f"{curves.kl[0]:.2f}", f"{rates[0]:.1f}", f"{rates[-1]:.1f}"]
    for name in others:
        other = exact.curve(exact.at_kl(METHODS[name].closed_form, float(curves.kl[0]))[1]).win_rate
        told += [f"{other[0]:.1f}", f"{other.max():.1f}", f"{rates[-1] - other.max():+.1f}"]
    rows = [told]
    mine = store.find(plan.frontier(OURS, beta))
    for where in WHERE:
        kl = np.array([record[where]["kl"][0] for record in mine])
        wins = np.array([curve(record, where) for record in mine])
        row = ["", f"network, {where}", f"{kl.mean():.2f}"]
        row += [str(mean_of(wins[:, n])) for n in (0, -1)]
        for name in others:
            at_same = _interpolated(store, plan, name, where, kl)
            if at_same is None:
                row += ["-"] * 3
                continue
            best = at_same[:, int(np.argmax(at_same.mean(axis=0)))]
            row += [str(mean_of(at_same[:, 0])), str(mean_of(best))]
            row.append(_signed(mean_of(wins[:, -1] - best)))
        rows.append(row)
    return rows


def _interpolated(
    store: Store, plan: Plan, method: str, where: str, kl: np.ndarray
) -> np.ndarray | None:
    """[seeds, R]: the win rates of `method` at these KLs [seeds]; None where its grid ends before."""
    columns = [store.find(plan.starts(plan.frontier_split))]
    columns += [store.find(plan.frontier(method, beta)) for beta in plan.betas(method)]
    found = []
    for seed, target in enumerate(kl):
        mine = [column[seed] for column in columns]
        reached = np.array([record[where]["kl"][0] for record in mine])
        if target > reached.max():
            return None
        order = np.argsort(reached)
        wins = np.array([curve(record, where) for record in mine])[order]
        found.append([np.interp(target, reached[order], column) for column in wins.T])
    return np.array(found)


def behaviours(store: Store, plan: Plan) -> str:
    """How far two behaviour policies part the shares of letters, and their win rates."""
    rows: Rows = []
    for preference in plan.preferences:
        for method in plan.compared():
            rows.append(_two_writers(store, plan, method, preference))
    header = ["P", "", "exact", "network", "two seeds of one", "N = 0, A", "B", "N = 5, A", "B"]
    return (
        table("Two behaviour policies, A and B: how far the first answers part", header, rows)
        + "\n\nTotal variation, in percent, between how often a letter is right, or of each kind of mistake; "
        "seed by seed, A and B sharing start and prompts. Beside it, that of two seeds under A: what chance "
        "makes. Exact: the closed forms; SRPO's does not move whatever P is."
    )


def _two_writers(store: Store, plan: Plan, method: str, preference: str) -> list[str]:
    beta = BEHAVIOUR_BETAS[method]
    cells = {writer: plan.behaviours(method, preference, writer) for writer in WRITERS}
    exact = gold_table(cells["A"][0].desk)
    closed = METHODS[method].closed_form
    theory = [exact.kinds(exact.solve(closed, beta, writer).direct) for writer in WRITERS]
    records = {writer: store.find(mine) for writer, mine in cells.items()}
    kinds = {w: np.array([_first_kinds(r) for r in mine]) for w, mine in records.items()}
    between = [100 * bandit.total_variation(a, b) for a, b in zip(*kinds.values(), strict=True)]
    a = kinds["A"]
    within = [
        100 * bandit.total_variation(a[i], a[j]) for i in range(len(a)) for j in range(i)
    ] or [float("nan")]
    row = [preference, f"{METHODS[method].label}, beta {beta:g}"]
    row += [f"{100 * bandit.total_variation(*theory):.1f}", str(mean_of(between))]
    row.append(f"{np.mean(within):.1f}")
    for n in (0, -1):
        row += [str(mean_of([curve(r, "in")[n] for r in records[w]])) for w in WRITERS]
    return row


def _first_kinds(record: Any) -> np.ndarray:
    """[LETTERS + 1] of the first answers, in distribution, at temperature 1 and free length."""
    kinds = np.array(record["in"][way_name(Way())]["kinds"][0])
    assert kinds.shape == (LETTERS + 1,)
    return kinds


def study_table(store: Store, plan: Plan) -> str:
    rows: Rows = []
    for label, cells in study(store, plan).items():
        records = store.find(cells)
        wins = [curve(record, "in") for record in records]
        wrong = [record["in"][way_name(Way())]["wrong_length"][-1] for record in records]
        numbers = [f"{w:.1f}" for w in np.mean(wins, axis=0)]
        rows.append([label, *numbers, f"{np.mean(wrong):.1f}"])
    header = ["", *(str(n) for n in range(REVISIONS + 1)), "wrong length, last"]
    beta = selected(store, plan, STUDY_METHOD)
    title = f"What keeps the network below: SRPO, anchored, beta {beta:g}, validation seeds and prompts"
    return table(title, header, rows)


def table(title: str, header: Sequence[str], rows: Rows) -> str:
    """A Markdown table, its columns padded for a terminal."""
    cells = [list(header), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [row[0].ljust(widths[0])]
        padded += [x.rjust(w) for x, w in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (w - 1) + ":" for w in widths[1:])]
    return "\n".join([f"**{title}**", "", line(header), line(rule), *map(line, rows)])


__all__ = ["CIRCLE", "Cell", "summary", "table"]
