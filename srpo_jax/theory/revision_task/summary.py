"""The tables, in Markdown: the closed form beside the network, and the comparisons.

Win rates against the gold writer in percent. Each network number is a mean over seeds with its 95 %
interval of Student's t; of differences, the differences are taken seed by seed. All seeds have the same
prompts: an interval is of training and sampling, not of the choice of prompts.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax.reporting.student import mean_of, means_of
from srpo_jax.theory.revision_task import compute, measure, online
from srpo_jax.theory.revision_task.anchored import anchor_table
from srpo_jax.theory.revision_task.cells import METHODS, START, WHERE, Store, curve, way_name
from srpo_jax.theory.revision_task.comparisons import (
    at_equal_compute,
    at_equal_kl,
    two_behaviours,
)
from srpo_jax.theory.revision_task.exact import REVISIONS, Policy, Table
from srpo_jax.theory.revision_task.markdown import Rows, signed, table
from srpo_jax.theory.revision_task.measure import SAMPLED, Way, gold_table
from srpo_jax.theory.revision_task.plan import (
    ALL_WAYS,
    OURS,
    RULE,
    Plan,
    by_first_answer,
    selected,
    shown,
    study,
)


def summary(store: Store, plan: Plan) -> str:
    """All tables that the plan's cells give."""
    parts = [heading(plan), selection(store, plan), main_table(store, plan)]
    if any(METHODS[method].online for method in plan.methods):
        parts.append(compute_table(plan))
    if plan.everything:
        parts.append(ways(store, plan))
    if OURS in plan.methods:
        parts += [at_equal_compute(store, plan), at_equal_kl(store, plan), anchor_table(plan)]
    if plan.compared():
        parts.append(two_behaviours(store, plan))
    if plan.study:
        parts.append(study_table(store, plan))
    return "\n\n".join(parts) + "\n"


def heading(plan: Plan) -> str:
    seeds, chosen = (" ".join(map(str, s)) for s in (plan.seeds, plan.validation_seeds))
    recipe = plan.recipe
    return (
        f"Test seeds {seeds}; validation seeds {chosen}; {plan.prompts} prompts in and as many out of "
        f"distribution, the same for all seeds. Network: {recipe.layers} layers, width {recipe.width}, "
        f"{recipe.pairs:,} pairs, {recipe.steps} steps of {recipe.batch}; anchor {plan.nll_weight:g}.\n\n"
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
    rows = _curves(
        "the start", gold_table(plan.desk).start(), plan, store.find(plan.starts("test"))
    )
    for method, beta, note in shown(store, plan):
        label = f"{METHODS[method].label}, beta {beta:g}{note}"
        closed = gold_table(plan.desk).solve(METHODS[method].closed_form, beta)
        rows += _curves(label, closed, plan, store.find(plan.tests(method, beta)))
    header = ["", "", *(str(n) for n in range(REVISIONS + 1)), f"{REVISIONS} less 0"]
    text = table("Win rate by number of revisions: exact | network", header, rows)
    return (
        f"{text}\n\nThe exact rows are the minimisers of the losses without anchor; all but SRPO "
        "revise with the start's improve policy. Perfect answers win "
        f"{100 * _perfect(gold_table(plan.desk)):.1f} %."
    )


def compute_table(plan: Plan) -> str:
    """What SRPO's training costs, and that of the online methods, which go on for as long as that lasts."""
    desk, recipe = plan.desk, plan.recipe
    of_srpo = compute.of_srpo(desk, recipe)
    rows: Rows = [["SRPO", f"{recipe.steps} steps of {recipe.batch} pairs", f"{of_srpo / 1e9:.1f}"]]
    rows[0] += ["-"] * 3
    for method in filter(lambda name: METHODS[name].online, plan.methods):
        objective = METHODS[method].objective
        rounds = compute.rounds(objective, desk, recipe)
        each = np.array(compute.of_round(objective, desk, recipe))
        samples = online.SETTINGS[objective].samples
        what = f"{rounds} rounds of {recipe.batch} prompts, {samples} answers each"
        shares = [f"{100 * share:.0f} %" for share in each / each.sum()]
        rows.append([METHODS[method].label, what, f"{rounds * each.sum() / 1e9:.1f}", *shares])
    header = ["", "", "GFLOP", "writing", "scoring", "learning"]
    return table("Equal training compute, operations counted", header, rows)


def _perfect(exact: Table) -> float:
    return float((exact.preference @ exact.gold)[np.argmax(exact.tallies[:, 0])])


def _curves(label: str, closed: Policy, plan: Plan, records: Sequence[Any]) -> Rows:
    exact = gold_table(plan.desk).curve(closed).win_rate
    rows = [[label, "exact", *(f"{w:.1f}" for w in exact), f"{exact[-1] - exact[0]:+.1f}"]]
    for where in WHERE:
        rows.append(["", f"network, {where}", *_network(records, where, SAMPLED)])
    return rows


def _network(records: Sequence[Any], where: str, way: Way) -> list[str]:
    wins = np.array([curve(record, where, way) for record in records])
    gain = mean_of(wins[:, -1] - wins[:, 0])
    return [*map(str, means_of(wins)), signed(gain)]


def ways(store: Store, plan: Plan) -> str:
    """Temperature 1 and greedy, free and fixed length."""
    rows: Rows = []
    for method, beta, note in [("start", 0.0, ""), *shown(store, plan)]:
        cells = plan.starts("test") if method == "start" else plan.tests(method, beta)
        records = store.find(cells)
        label = START.label if method == "start" else f"{METHODS[method].label} {beta:g}{note}"
        for way in ALL_WAYS:
            for where in WHERE:
                wrong = [record[where][way_name(way)]["wrong_length"][-1] for record in records]
                told = [*_network(records, where, way), f"{np.mean(wrong):.1f}"]
                rows.append([label, f"{_greedy(way)}, {way.length}, {where}", *told])
    header = [
        "",
        "",
        *(str(n) for n in range(REVISIONS + 1)),
        f"{REVISIONS} less 0",
        "wrong length",
    ]
    text = table("The same by way of decoding (wrong length: percent, of the last)", header, rows)
    return (
        f"{text}\n\nfree: the model ends its answer, {measure.ROOM} letters too late at most; fixed: the "
        "same, cut off behind the last place: what ends before that stays too short."
    )


def _greedy(way: Way) -> str:
    return "greedy" if way.temperature == 0 else f"temperature {way.temperature:g}"


def study_table(store: Store, plan: Plan) -> str:
    rows: Rows = []
    for label, cells in study(store, plan).items():
        records = store.find(cells)
        wins = [curve(record, "in") for record in records]
        wrong = [record["in"][way_name(SAMPLED)]["wrong_length"][-1] for record in records]
        numbers = [f"{w:.1f}" for w in np.mean(wins, axis=0)]
        rows.append([label, *numbers, f"{np.mean(wrong):.1f}"])
    header = ["", *(str(n) for n in range(REVISIONS + 1)), "wrong length, last"]
    beta = selected(store, plan, OURS)
    title = (
        f"What keeps the network below: SRPO, anchored, beta {beta:g}, validation seeds and prompts"
    )
    return table(title, header, rows)
