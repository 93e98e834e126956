"""Win rates and their paired differences, with 95 % intervals over the choice of documents.

A probability is that of beating the opponent as judged: 1/2 for a tie, NaN for a verdict that is
missing. Above 1/2 it counts as a win, below as a loss, and only 1/2 itself as a tie. The intervals are
`interval.score_interval`'s: Wilson's where all verdicts are 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srpo_jax.reporting.groups import Floats, Groups, among, sums
from srpo_jax.reporting.interval import score_interval
from srpo_jax.runtime.errors import UserError


@dataclass(frozen=True)
class Rate:
    """A win rate: fractions and counts. n = wins + ties + losses; `missing` verdicts are left out.

    With n = 0 the mean is NaN and the interval [0, 1].
    """

    mean: float
    low: float
    high: float
    n: int
    wins: int
    ties: int
    losses: int
    missing: int


def win_rate(
    probabilities: npt.ArrayLike, groups: Groups | None = None
) -> tuple[float, float, float]:
    """The mean of `probabilities` [N], one a prompt, and its 95 % interval (low, high).

    groups: [N], numbers of what prompts are about, where several are about one text.

    Raises:
        UserError: `probabilities` is empty, not one-dimensional, or has NaN or a value outside
            [0, 1].
    """
    values = checked(probabilities, "probabilities")
    return (float(values.mean()), *score_interval(values, groups))


def rate(probabilities: npt.ArrayLike, groups: Groups | None = None) -> Rate:
    """The win rate of `probabilities` [N], one a document, NaN where the verdict is missing.

    groups: as for `win_rate`.

    Raises:
        UserError: `probabilities` is empty, not one-dimensional, or has a value outside [0, 1].
    """
    values = checked(probabilities, "probabilities", missing=True)
    there = ~np.isnan(values)
    known = values[there]
    low, high = score_interval(known, among(groups, there))
    wins, ties, losses = counts(known - 0.5)
    return Rate(
        mean=float(known.mean()) if len(known) else float("nan"),
        low=low,
        high=high,
        n=len(known),
        wins=wins,
        ties=ties,
        losses=losses,
        missing=len(values) - len(known),
    )


def difference(
    a: npt.ArrayLike, b: npt.ArrayLike, groups: Groups | None = None
) -> tuple[float, float, float]:
    """Mean of a - b and its 95 % interval; `a`, `b` [N] belong to the same prompts.

    groups: as for `win_rate`. The interval is of the differences, one a prompt: what makes a prompt easy
    for both cancels. They lie in [-1, 1], and the score interval is that of (a - b + 1) / 2, on their
    scale.

    Raises:
        UserError: as `win_rate`, or the lengths differ.
    """
    first, second = checked(a, "a"), checked(b, "b")
    require_pairs(first, second)
    low, high = score_interval((first - second + 1.0) / 2.0, groups)
    return float((first - second).mean()), 2.0 * low - 1.0, 2.0 * high - 1.0


def counts(margins: Floats, groups: Groups | None = None) -> tuple[int, int, int]:
    """How many of `margins` [N], or their sums by group, are above, at and below 0: wins, ties, losses."""
    margins = sums(margins, groups)
    return int((margins > 0).sum()), int((margins == 0).sum()), int((margins < 0).sum())


def checked(probabilities: npt.ArrayLike, name: str, missing: bool = False) -> Floats:
    """`probabilities` as a row [N] of float64; NaN passes if `missing`.

    Raises:
        UserError: empty, not one-dimensional, or a value is not in [0, 1].
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"{name} must be one non-empty row of numbers, got shape {values.shape}")
    # Written so that NaN counts as bad.
    fine = (values >= 0) & (values <= 1)
    bad = np.flatnonzero(~(fine | np.isnan(values) if missing else fine))
    if bad.size:
        raise UserError(f"{name}[{bad[0]}] is {values[bad[0]]}, not a probability in [0, 1]")
    return values


def require_pairs(a: Floats, b: Floats) -> None:
    """Raises UserError unless `a` and `b` have as many values."""
    if a.shape != b.shape:
        raise UserError(
            f"a paired difference needs as many values in a ({len(a)}) as in b ({len(b)})"
        )
