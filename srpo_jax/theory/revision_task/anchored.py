"""What the anchor alone does to the exact answer: the task with two places, 16 answers enumerated.

With the anchor the minimiser depends on more than tallies (a winner does not copy the loser's places), so
`exact` does not have it; `bandit.fit` finds it where the answers are few.
"""

import itertools
from typing import NamedTuple

import numpy as np

from srpo_jax.theory import bandit
from srpo_jax.theory.revision_task.cells import METHODS
from srpo_jax.theory.revision_task.desk import LETTERS, WRITERS, Desk
from srpo_jax.theory.revision_task.exact import REVISIONS
from srpo_jax.theory.revision_task.markdown import Rows, table
from srpo_jax.theory.revision_task.plan import Plan

PLACES = 2
WEIGHTS = (0.0, 0.003, 0.01, 0.03, 0.1, 0.3)


class Enumerated(NamedTuple):
    """All answers of a small desk as the actions of `bandit`: kinds int [K, places]; preference, editor
    (row = shown) [K, K]; reference, gold, behaviour [K]."""

    kinds: np.ndarray
    preference: np.ndarray
    reference: np.ndarray
    editor: np.ndarray
    gold: np.ndarray
    behaviour: np.ndarray

    @classmethod
    def of(cls, desk: Desk, writer: str = "A") -> "Enumerated":
        kinds = np.array(list(itertools.product(range(LETTERS), repeat=desk.places)))
        tallies = (kinds[..., None] == np.arange(LETTERS)).sum(axis=1)
        preference = desk.preferred(tallies, tallies)
        shares = np.array(WRITERS["reference"])
        anew = desk.edit * shares + (1 - desk.edit) * np.eye(LETTERS)
        editor = anew[kinds[:, None], kinds[None]].prod(axis=2)

        def written(name: str) -> np.ndarray:
            probabilities = np.array(WRITERS[name])[kinds].prod(axis=1)
            normal: np.ndarray = probabilities / probabilities.sum()
            return normal

        return cls(
            kinds,
            (preference + 1 - preference.T) / 2,
            written("reference"),
            editor / editor.sum(axis=1, keepdims=True),
            written("gold"),
            written(writer),
        )

    def curve(self, direct: np.ndarray, improve: np.ndarray) -> np.ndarray:
        """Win rates in percent by number of revisions."""
        rates, written = [], direct
        for _ in range(1 + REVISIONS):
            rates.append(100 * float(written @ self.preference @ self.gold))
            written = written @ improve
        return np.array(rates)

    def anchored(self, beta: float, weight: float, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """The minimiser of SRPO's loss with the anchor, whose mean over tokens counts the end too."""
        if weight == 0:
            return bandit.solve(self.preference, self.reference, self.editor, beta)
        tokens = self.kinds.shape[1] + 1
        pi, improve = bandit.fit(
            "srpo",
            self.preference,
            self.behaviour,
            self.reference,
            self.editor,
            beta=beta,
            alpha=alpha,
            nll_weight=weight / tokens,  # the bandit's completions are one token each
        )
        assert improve is not None
        return pi, improve


def anchor_table(plan: Plan) -> str:
    """By beta and weight, the exact win rates: the anchor's price at N = 0, and what is left at the end."""
    task = Enumerated.of(Desk(places=PLACES))
    rows: Rows = [["the start", "", *_numbers(task.curve(task.reference, task.editor))]]
    for beta in METHODS["srpo_anchored"].betas[: plan.grid]:
        for weight in WEIGHTS:
            rates = task.curve(*task.anchored(beta, weight, plan.alpha))
            rows.append([f"beta {beta:g}", f"{weight:g}", *_numbers(rates)])
    header = ["", "nll_weight", *map(str, range(1 + REVISIONS))]
    best = 100 * float((task.preference @ task.gold)[0])
    text = table(
        f"What the anchor does to the exact answer ({PLACES} places, {len(task.kinds)} answers)",
        header,
        rows,
    )
    return f"{text}\n\nA perfect answer of {PLACES} places wins {best:.1f} %."


def _numbers(rates: np.ndarray) -> list[str]:
    return [f"{rate:.1f}" for rate in rates]
