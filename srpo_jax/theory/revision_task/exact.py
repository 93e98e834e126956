"""The task's exact answers, all 4,096 answers to a prompt, and what N revisions make of them.

The writer, the editor and P treat all places alike, so answers of the same tally (see `desk`) have the
same probability and the same chance against any other tally: the closed forms of `bandit`, given the
tallies as actions, are those of the 4,096 answers (a test enumerates the answers and compares).

Methods that train no improve policy (DPO, IPO) revise with the reference's. DPO can be given its tilt
under the improve prompt too ("dpo, transferred"): what it would be if training carried over in full.

A policy is (pi [K], pi_improve [K, K], row = shown), K tallies, as in `bandit`.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np

from srpo_jax.runtime.errors import UserError
from srpo_jax.theory import bandit
from srpo_jax.theory.revision_task.desk import LETTERS, WRITERS, Desk

METHODS = ("srpo", "dpo", "ipo", "dpo, transferred")
REVISIONS = 5


class Policy(NamedTuple):
    direct: np.ndarray
    improve: np.ndarray


class Curve(NamedTuple):
    """By number of revisions 0 … N: the win rate in percent, and KL(y_N's distribution || reference)."""

    win_rate: np.ndarray
    kl: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """A desk with all its tallies. reference [K] and editor [K, K]: the start under both prompts."""

    desk: Desk
    tallies: np.ndarray
    preference: np.ndarray
    reference: np.ndarray
    editor: np.ndarray
    gold: np.ndarray

    @classmethod
    def of(cls, desk: Desk) -> "Table":
        every = itertools.product(range(desk.places + 1), repeat=LETTERS)
        tallies = np.array([tally for tally in every if sum(tally) == desk.places])
        preference = desk.preferred(tallies, tallies)
        shares = np.array(WRITERS["reference"])
        anew = desk.edit * shares + (1 - desk.edit) * np.eye(LETTERS)  # row: the kind in the draft
        # The places of a tally, one after the other; only how many there are of each kind matters.
        drafts = [np.repeat(np.arange(LETTERS), tally) for tally in tallies]
        return cls(
            desk,
            tallies,
            (preference + 1 - preference.T) / 2,  # the rounding of two halves of the table made one
            cls._written(np.tile(shares, (desk.places, 1)), tallies),
            np.array([cls._written(anew[draft], tallies) for draft in drafts]),
            cls._written(np.tile(WRITERS["gold"], (desk.places, 1)), tallies),
        )

    @staticmethod
    def _written(shares: np.ndarray, tallies: np.ndarray) -> np.ndarray:
        """[K]: how likely each tally is where place i is of each kind with probability shares[i]."""
        size = len(shares) + 1
        found = np.zeros((size,) * LETTERS)
        found[(0,) * LETTERS] = 1.0
        for place in shares:
            found = sum(share * np.roll(found, 1, axis=kind) for kind, share in enumerate(place))
        probabilities: np.ndarray = found[tuple(tallies.T)]
        normal: np.ndarray = probabilities / probabilities.sum()
        return normal

    def behaviour(self, writer: str) -> np.ndarray:
        return self._written(np.tile(WRITERS[writer], (self.desk.places, 1)), self.tallies)

    def start(self) -> Policy:
        return Policy(self.reference, self.editor)

    def solve(self, method: str, beta: float, writer: str = "A") -> Policy:
        """The population minimiser, where pairs are independent answers of `writer`.

        Of SRPO whoever writes; of IPO by its closed form; of DPO by Newton's method (`bandit.fit`).
        """
        if method == "srpo":
            return Policy(*bandit.solve(self.preference, self.reference, self.editor, beta))
        if method == "ipo":
            mu = self.behaviour(writer)
            pi = bandit.solve_ipo(self.preference, mu, self.reference, beta)
            return Policy(pi, self.editor)
        if method not in METHODS:
            raise UserError(f"no exact answer is known of {method!r}: choose {', '.join(METHODS)}")
        # DPO fits a score to P, which beta only scales: log pi = log ref + score / beta.
        tilt = _dpo_score(self.desk, writer) / beta
        pi = _normalised(np.log(self.reference) + tilt)
        if method == "dpo":
            return Policy(pi, self.editor)
        return Policy(pi, _normalised(np.log(self.editor) + tilt))

    def curve(self, policy: Policy, revisions: int = REVISIONS) -> Curve:
        distributions = [policy.direct]
        for _ in range(revisions):
            distributions.append(distributions[-1] @ policy.improve)
        wins = [100 * float(p @ self.preference @ self.gold) for p in distributions]
        return Curve(np.array(wins), np.array([kl(p, self.reference) for p in distributions]))

    def costs(self, policy: Policy, revisions: int = REVISIONS) -> np.ndarray:
        """[1 + revisions], nats: KL(pi || reference), then that of each revision from the editor, given its
        draft."""
        rows = zip(policy.improve, self.editor, strict=True)
        of_draft = np.array([kl(mine, its) for mine, its in rows])
        found, drafts = [kl(policy.direct, self.reference)], policy.direct
        for _ in range(revisions):
            found.append(float(drafts @ of_draft))
            drafts = drafts @ policy.improve
        return np.array(found)

    def kinds(self, policy: np.ndarray) -> np.ndarray:
        """[LETTERS]: how often a letter of an answer by `policy` [K] is of each kind."""
        shares: np.ndarray = policy @ self.tallies / self.desk.places
        return shares

    def at_kl(self, method: str, target: float, writer: str = "A") -> tuple[float, Policy]:
        """The beta at which KL(pi || reference) is `target` nats, by bisection, and its policy."""
        low, high = np.log(1e-3), np.log(1e3)
        for _ in range(50):
            middle = (low + high) / 2
            policy = self.solve(method, float(np.exp(middle)), writer)
            if kl(policy.direct, self.reference) > target:
                low = middle
            else:
                high = middle
        return float(np.exp(middle)), policy

    def best_of(self, policy: np.ndarray, count: int) -> float:
        """Win rate in percent of that of `count` answers by `policy` [K] which is likeliest under it."""
        each = policy / self._arrangements()  # of one answer of the tally
        # Equally likely answers are as good as one action; which of them is taken is left to chance.
        _, level = np.unique(np.round(np.log(each), 9), return_inverse=True)
        mass = np.bincount(level, policy)
        below = np.concatenate([[0.0], np.cumsum(mass)])
        chosen = below[1:] ** count - below[:-1] ** count
        wins = self.preference @ self.gold
        return 100 * float(np.sum(chosen[level] * (policy / mass[level]) * wins))

    def _arrangements(self) -> np.ndarray:
        """[K]: how many answers have each tally."""
        factorial = np.cumprod(np.concatenate([[1.0], np.arange(1.0, self.desk.places + 1)]))
        count: np.ndarray = factorial[-1] / factorial[self.tallies].prod(axis=1)
        return count


@functools.cache
def _dpo_score(desk: Desk, writer: str) -> np.ndarray:
    table = Table.of(desk)
    mu, flat = table.behaviour(writer), np.full_like(table.reference, 1 / len(table.reference))
    improve = np.tile(flat, (len(flat), 1))
    pi, _ = bandit.fit("dpo", table.preference, mu, flat, improve, beta=1.0)
    score: np.ndarray = np.log(pi)
    return score


def _normalised(log_weights: np.ndarray) -> np.ndarray:
    weights = np.exp(log_weights - log_weights.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = weights / weights.sum(axis=-1, keepdims=True)
    return probabilities


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p || q) in nats of distributions [K]."""
    some = p > 0
    return float(np.sum(p[some] * np.log(p[some] / q[some])))
