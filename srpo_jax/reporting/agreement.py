"""Do judges agree: with each other (Cohen's kappa), and with themselves when the order is swapped.

Verdicts between judges are compared as win, tie and loss: a probability above 1/2 is a win, below a
loss, 1/2 itself a tie, as everywhere in `winrate`. A soft judge thus has next to no ties, and its kappa
with one that has many is low for that reason alone.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from srpo_jax.reporting.groups import Floats, Groups, among
from srpo_jax.reporting.interval import score_interval
from srpo_jax.reporting.winrate import checked
from srpo_jax.reporting.wording import percent
from srpo_jax.runtime.errors import UserError

OrderVerdict = Literal["first", "second", "tie", "none"]


@dataclass(frozen=True)
class Agreement:
    """Two judges on the same documents: `share` is that of equal verdicts, with its 95 % interval.

    `chance` is the share that two judges with these rates of win, tie and loss would have if they
    knew nothing of each other, and kappa = (share - chance) / (1 - chance): 1 is agreement, 0 chance.
    It is NaN where chance is 1 (both always say the same) or n is 0. On `missing` documents one of
    the verdicts is missing; `n` others count.
    """

    kappa: float
    share: float
    low: float
    high: float
    chance: float
    n: int
    missing: int


def agreement(a: npt.ArrayLike, b: npt.ArrayLike, groups: Groups | None = None) -> Agreement:
    """Cohen's kappa of `a` and `b`, probabilities [N] of the same documents; NaN is missing.

    groups: [N], numbers of what the documents are about, where several are about one text.

    Raises:
        UserError: empty, not one-dimensional, a value outside [0, 1], or lengths that differ.
    """
    first, second = checked(a, "a", missing=True), checked(b, "b", missing=True)
    if first.shape != second.shape:
        raise UserError(
            f"agreement needs as many verdicts in a ({len(first)}) as in b ({len(second)})"
        )
    known = ~(np.isnan(first) | np.isnan(second))
    first, second = np.sign(first[known] - 0.5), np.sign(second[known] - 0.5)
    n, missing = int(known.sum()), int((~known).sum())
    share, low, high = _share(first == second, among(groups, known))
    nan = float("nan")
    if not n:
        return Agreement(nan, share, low, high, nan, n, missing)
    chance = sum(float((first == o).mean() * (second == o).mean()) for o in (-1, 0, 1))
    # Shares are multiples of 1/n, so chance is 1 or clearly below.
    kappa = (share - chance) / (1 - chance) if chance < 1 - 1e-12 else nan
    return Agreement(kappa, share, low, high, chance, n, missing)


def agreements(judges: Mapping[str, npt.ArrayLike]) -> dict[tuple[str, str], Agreement]:
    """`agreement` of every two judges, keys in the order of `judges`: (first, second), …

    `judges[name]` [N] are its probabilities; all belong to the same documents in the same order.
    Kappa is symmetric, so each two appear once.
    """
    return {
        (one, other): agreement(judges[one], judges[other])
        for one, other in itertools.combinations(judges, 2)
    }


@dataclass(frozen=True)
class PositionAgreement:
    """A judge's answers on the same pairs in both orders; shares with 95 % intervals.

    `share`: pairs on which both orders prefer the same completion, or both say tie, among the `n`
    pairs with two readable answers; `missing` pairs have one or none. `chance`: the share if the
    judge looked at nothing but the position. `first_rate`: how often it picks the first, among the
    `picks` answers that are no tie, of either order. `missing_answers` of all answers are "none".
    """

    share: float
    low: float
    high: float
    chance: float
    first_rate: float
    first_low: float
    first_high: float
    picks: int
    n: int
    missing: int
    missing_answers: int

    @property
    def judges(self) -> bool:
        """Whether agreement is above chance: the interval's lower end is."""
        return self.n > 0 and self.low > self.chance

    @property
    def warning(self) -> str:
        """One sentence when the judge is not shown to judge, else ""."""
        if self.judges:
            return ""
        if not self.n:
            return (
                "the judge does not judge: of no pair could both answers be read "
                f"({self.missing_answers} of {2 * self.missing} missing)"
            )
        if not self.picks:
            return f"the judge does not judge: it calls all of {self.n} pairs ties"
        return (
            f"the judge does not judge: its two orders agree on {percent(self.share)} % of {self.n} "
            f"pairs ({percent(self.low)} to {percent(self.high)}) where position alone gives "
            f"{percent(self.chance)} %, and it picks the first completion in "
            f"{percent(self.first_rate)} % of its picks"
        )


def position_agreement(
    order_1: Sequence[OrderVerdict],
    order_2: Sequence[OrderVerdict],
    groups: Groups | None = None,
) -> PositionAgreement:
    """How far a judge's verdicts survive swapping the order.

    `order_1[i]` is the answer on pair i as (a, b), `order_2[i]` the one on (b, a): "first" and
    "second" name positions, so "first" then "second" both prefer a. Chance is 2 f s + t^2 with the
    rates f, s and t of "first", "second" and "tie" over both orders: what answers drawn blindly at
    these rates would give. A judge that prefers a every time has f = s, however often a wins.
    groups: as for `agreement`, [N] of the pairs.

    Raises:
        UserError: the lengths differ or an answer is none of the four.
    """
    if len(order_1) != len(order_2):
        raise UserError(
            f"position agreement needs both orders, got {len(order_1)} and {len(order_2)} answers"
        )
    for answer in itertools.chain(order_1, order_2):
        if answer not in get_args(OrderVerdict):
            raise UserError(f"a verdict must be one of {get_args(OrderVerdict)}, got {answer!r}")
    given = list(zip(order_1, order_2, strict=True))
    read = np.array(["none" not in pair for pair in given], dtype=bool)
    pairs = [pair for pair, known in zip(given, read, strict=True) if known]
    same = {("first", "second"), ("second", "first"), ("tie", "tie")}
    hits = np.array([pair in same for pair in pairs], dtype=bool)
    share, low, high = _share(hits, among(groups, read))
    rates = Counter(itertools.chain.from_iterable(pairs))
    total = max(1, 2 * len(pairs))
    answers = Counter(itertools.chain(order_1, order_2))
    picks = answers["first"] + answers["second"]
    firsts, owners = _picks(given, groups)
    first_rate, first_low, first_high = _share(firsts, owners)
    return PositionAgreement(
        share=share,
        low=low,
        high=high,
        chance=(2 * rates["first"] * rates["second"] + rates["tie"] ** 2) / total**2,
        first_rate=first_rate,
        first_low=first_low,
        first_high=first_high,
        picks=picks,
        n=len(pairs),
        missing=len(order_1) - len(pairs),
        missing_answers=answers["none"],
    )


def _picks(
    given: Sequence[tuple[OrderVerdict, OrderVerdict]], groups: Groups | None
) -> tuple[npt.NDArray[np.bool_], Groups | None]:
    """Which of the answers, of both orders, that are no tie pick the first; and their pairs' groups."""
    answers = np.array(given, dtype=object).reshape(-1, 2).T.ravel()
    picked = np.isin(answers, ("first", "second"))
    firsts = answers[picked] == "first"
    if groups is None:  # sorted: not even rounding depends on which order is the first
        return np.arange(len(firsts)) < firsts.sum(), None
    return firsts, among(np.tile(groups, 2), picked)


def _share(hits: npt.NDArray[np.bool_], groups: Groups | None = None) -> tuple[float, float, float]:
    """Share of True in `hits` [N] with Wilson's interval; NaN and (0, 1) without any."""
    values: Floats = hits.astype(np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    return (mean, *score_interval(values, groups))
