"""The anchored SRPO beside the others on equal terms, and what the behaviour policy does to each.

Win rates in percent; network numbers are means over seeds with Student's 95 % interval; of differences,
they are taken seed by seed.
"""

from typing import Any

import numpy as np

from srpo_jax.reporting.student import mean_of
from srpo_jax.theory import bandit
from srpo_jax.theory.revision_task.cells import METHODS, WHERE, Store, curve, way_name
from srpo_jax.theory.revision_task.exact import REVISIONS
from srpo_jax.theory.revision_task.markdown import Rows, signed, table
from srpo_jax.theory.revision_task.measure import SAMPLED, gold_table
from srpo_jax.theory.revision_task.plan import (
    BEHAVIOUR_BETAS,
    OURS,
    WRITERS,
    Plan,
    frontier,
    selected,
    shown,
    tried_at_equal_kl,
)


def at_equal_compute(store: Store, plan: Plan) -> str:
    """1 + N answers are written: our last one, or the other's likeliest."""
    exact, rows = gold_table(plan.desk), []
    beta = selected(store, plan, OURS)
    mine = store.find(plan.tests(OURS, beta))
    for method, other_beta, note in shown(store, plan):
        theirs = store.find(plan.tests(method, other_beta))
        policy = exact.solve(METHODS[method].closed_form, other_beta)
        row = [f"{METHODS[method].label}, beta {other_beta:g}{note}"]
        row.append(f"{exact.best_of(policy.direct, 1 + REVISIONS):.1f}")
        for where in WHERE:
            best = np.array([record[where]["best_of"] for record in theirs])
            last = np.array([curve(record, where)[-1] for record in mine])
            row += [str(mean_of(best)), signed(mean_of(last - best))]
        rows.append(row)
    header = ["", "exact"]
    for where in WHERE:
        header += [f"network, {where}", f"SRPO less it, {where}"]
    count = 1 + REVISIONS
    title = (
        f"Equal inference compute: the likeliest of {count} answers under the model's own likelihood, "
        f"and how much better y_{REVISIONS} of the anchored SRPO, beta {beta:g}, is"
    )
    return table(title, header, rows)


def at_equal_kl(store: Store, plan: Plan) -> str:
    """Each beta of SRPO beside each other method at the same KL(pi || reference) of the first answer."""
    rows: Rows = []
    for beta in plan.betas(OURS):
        for method in filter(tried_at_equal_kl, plan.methods):
            rows += _beside(store, plan, beta, method)
    header = ["SRPO, anchored", "", "KL", "N = 0", f"N = {REVISIONS}", "beside", "its N = 0"]
    header += ["its best N", "difference", "KL of all steps", "its N = 0 at that"]
    title = f"Equal KL(pi || reference), nats ({plan.frontier_split} seeds and prompts)"
    text = table(title, header, rows)
    return (
        f"{text}\n\nKL: of the first answer, where the other method is given the same; difference: SRPO's "
        f"N = {REVISIONS} less the other's best N. KL of all steps: that of the revisions added, each from "
        "the start's own revision; at that price the other has the last column. Exact: beta of the other "
        "by bisection. Network: win rates between two betas are interpolated in KL, seed by seed, from the "
        "start (KL 0) on, along straight lines, which lie below a curve that flattens; a dash is beyond "
        "the grid."
    )


def _beside(store: Store, plan: Plan, beta: float, method: str) -> Rows:
    exact, closed = gold_table(plan.desk), METHODS[method].closed_form
    policy = exact.solve("srpo", beta)
    rates, costs = exact.curve(policy).win_rate, exact.costs(policy)
    same = exact.curve(exact.at_kl(closed, float(costs[0]))[1]).win_rate
    dear = exact.curve(exact.at_kl(closed, float(costs.sum()))[1]).win_rate
    row = [f"beta {beta:g}", "exact", f"{costs[0]:.2f}", f"{rates[0]:.1f}", f"{rates[-1]:.1f}"]
    row += [METHODS[method].label, f"{same[0]:.1f}", f"{same.max():.1f}"]
    row += [f"{rates[-1] - same.max():+.1f}", f"{costs.sum():.1f}", f"{dear[0]:.1f}"]
    rows = [row]
    mine = store.find(frontier(store, plan, OURS, beta))
    for where in WHERE:
        costs = np.array([record[where]["kl"] for record in mine])
        wins = np.array([curve(record, where) for record in mine])
        row = ["", f"network, {where}", f"{costs[:, 0].mean():.2f}"]
        row += [str(mean_of(wins[:, n])) for n in (0, -1)] + [METHODS[method].label]
        same_kl = _interpolated(store, plan, method, where, costs[:, 0])
        if same_kl is None:
            row += ["-"] * 3
        else:
            best = same_kl[:, int(np.argmax(same_kl.mean(axis=0)))]
            row += [str(mean_of(same_kl[:, 0])), str(mean_of(best))]
            row.append(signed(mean_of(wins[:, -1] - best)))
        whole = _interpolated(store, plan, method, where, costs.sum(axis=1))
        row.append(f"{costs.sum(axis=1).mean():.1f}")
        row.append("-" if whole is None else str(mean_of(whole[:, 0])))
        rows.append(row)
    return rows


def _interpolated(
    store: Store, plan: Plan, method: str, where: str, kl: np.ndarray
) -> np.ndarray | None:
    """[seeds, R]: the win rates of `method` at these KLs [seeds]; None where its grid ends before."""
    columns = [store.find(plan.starts(plan.frontier_split))]
    columns += [store.find(frontier(store, plan, method, beta)) for beta in plan.betas(method)]
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


def two_behaviours(store: Store, plan: Plan) -> str:
    """How far two behaviour policies part the shares of letters, and their win rates."""
    rows = [
        _two_writers(store, plan, method, preference)
        for preference in plan.preferences
        for method in plan.compared()
    ]
    header = ["P", "", "exact", "network", "two seeds of A", "N = 0, A", "B"]
    header += [f"N = {REVISIONS}, A", "B"]
    text = table("Two behaviour policies, A and B: how far the first answers part", header, rows)
    return (
        f"{text}\n\nTotal variation, in percent, between how often a letter is right, or of each kind of "
        "mistake; seed by seed, A and B sharing start and prompts. Beside it, that of two seeds under A: "
        "what chance makes. Exact: the closed forms; SRPO's does not move whatever P is."
    )


def _two_writers(store: Store, plan: Plan, method: str, preference: str) -> list[str]:
    beta, closed = BEHAVIOUR_BETAS[method], METHODS[method].closed_form
    cells = {writer: plan.behaviours(method, preference, writer) for writer in WRITERS}
    exact = gold_table(cells["A"][0].desk)
    theory = [exact.kinds(exact.solve(closed, beta, writer).direct) for writer in WRITERS]
    records = {writer: store.find(mine) for writer, mine in cells.items()}
    a, b = (np.array([_first_kinds(r) for r in records[writer]]) for writer in WRITERS)
    between = [100 * bandit.total_variation(p, q) for p, q in zip(a, b, strict=True)]
    within = [100 * bandit.total_variation(a[i], a[j]) for i in range(len(a)) for j in range(i)]
    row = [preference, f"{METHODS[method].label}, beta {beta:g}"]
    row += [f"{100 * bandit.total_variation(*theory):.1f}", str(mean_of(between))]
    row.append(f"{np.mean(within):.1f}" if within else "-")
    for n in (0, -1):
        row += [str(mean_of([curve(r, "in")[n] for r in records[w]])) for w in WRITERS]
    return row


def _first_kinds(record: Any) -> np.ndarray:
    """How often a letter of the first answers is of each kind, in distribution, at temperature 1 and free
    length; the last one of them is no letter."""
    return np.array(record["in"][way_name(SAMPLED)]["kinds"][0])
