"""Two methods on the same documents: difference, sign test, and Holm's correction over a table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from srpo_jax.reporting.groups import Groups, among
from srpo_jax.reporting.winrate import checked, counts, difference, require_pairs

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Comparison:
    """Win rate of a less that of b on the same documents, as fractions in [-1, 1].

    A win is a document on which a has the higher probability; of documents about one text, their mean
    counts, once. `p_value` is the two-sided exact sign test's, which asks of wins and losses only; ties are
    dropped there. `p_holm` is the p-value
    corrected for all comparisons of its table (`holm`); of one alone it is `p_value`. On `missing`
    documents one of the verdicts is missing; they are left out, of `n` as of every number. With
    n = 0 the difference is NaN, the interval [-1, 1] and the p-values 1.
    """

    difference: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int
    p_value: float
    p_holm: float
    n: int
    missing: int


def compare(a: npt.ArrayLike, b: npt.ArrayLike, groups: Groups | None = None) -> Comparison:
    """Compares `a` with `b`, probabilities [N] on the same documents in the same order.

    groups: as for `winrate.win_rate`. NaN is a missing verdict. The interval is `winrate.difference`'s,
    the score interval of paired differences. It covers (`tests/reporting/test_comparison.py`), also where
    most differences are 0 because a revision left the text as it was.

    Raises:
        UserError: empty, not one-dimensional, a value outside [0, 1], or lengths that differ.
    """
    first, second = checked(a, "a", missing=True), checked(b, "b", missing=True)
    require_pairs(first, second)
    known = ~(np.isnan(first) | np.isnan(second))
    first, second, groups = first[known], second[known], among(groups, known)
    wins, ties, losses = counts(first - second, groups)
    none = float("nan"), -1.0, 1.0
    mean, low, high = difference(first, second, groups) if len(first) else none
    p_value = sign_test(wins, losses)
    missing = len(known) - len(first)
    return Comparison(mean, low, high, wins, ties, losses, p_value, p_value, len(first), missing)


def sign_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of `wins` against `losses` if each were a fair coin.

    It is twice the binomial's smaller tail, at most 1, and 1 if there is neither.
    """
    n, fewer = wins + losses, min(wins, losses)
    # Logarithms: 2^-n is no float for n > 1,074.
    logs = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(fewer + 1)
    ]
    return min(1.0, 2.0 * math.fsum(map(math.exp, logs)))


def holm(comparisons: Mapping[Key, Comparison]) -> dict[Key, Comparison]:
    """The same comparisons, in their order, with `p_holm` set for the whole of the table.

    All that a reader may pick from belongs into one table: the correction holds for the chance that
    any of its true null hypotheses is rejected.
    """
    adjusted = holm_p_values([comparison.p_value for comparison in comparisons.values()])
    return {
        key: dataclasses.replace(comparison, p_holm=p)
        for (key, comparison), p in zip(comparisons.items(), adjusted, strict=True)
    }


def holm_p_values(p_values: Sequence[float]) -> tuple[float, ...]:
    """Holm-Bonferroni: the i-th smallest of m times (m - i + 1), made monotone, at most 1."""
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return tuple(adjusted)
