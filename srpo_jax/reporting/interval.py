"""The 95 % interval of a mean of numbers in [0, 1], and its spread over bootstrap resamples.

`score_interval` is one formula for every kind of verdict. It keeps each mean p that the score test
does not reject: n (m - p)^2 <= z^2 v(p), where m is the observed mean of n values and v(p) the
variance of the likeliest distribution on [0, 1] that has the mean p, given the values. That
distribution puts weights on the values seen and, if they alone cannot reach p, on the end 0 or 1.

- Verdicts 0 and 1: v(p) = p (1 - p), so this is Wilson's interval.
- Verdicts 0, 1/2, 1: it is the score interval of a mean of three classes (Tango's, 1998, for paired
  proportions, on another scale). Ties narrow it by as much as they lessen the variance, and 20 of
  20, or 20 ties of 20, still have a width.
- Soft verdicts: the same. No seed and no resamples: swapping the sides mirrors it exactly.

Coverage in % (`tests/reporting/test_interval.py` repeats it; 20,000, 10,000 and 2,000 samples each):
the least over p = .02, .05, .1, .3, .5, .7, .9, .95, .98, .99, and the mean width at p = .5 and .98.

    verdicts                                   n = 20             64                 1,024
    0, 1 (Wilson)                              92.5  .39 .19      94.1  .24 .08      94.0  .061 .017
    20 % ties                                  94.4  .36 .17      95.2  .21 .07      93.4  .055 .013
    50 % ties                                  94.5  .30 .17      95.0  .17 .07      94.4  .043 .013
    Beta(ps, (1-p)s), s = .5                   94.3  .33 .18      94.7  .19 .07      93.8  .050 .014
    the same, s = 2                            94.6  .24 .17      94.8  .14 .07      94.6  .035 .010
    the same, s = 10                           95.5  .16 .17      95.0  .07 .07      94.4  .018 .006
    half of them 0 or 1, the others s = 6      93.3  .31 .18      94.3  .18 .07      94.1  .046 .013
    all alike but one in 100 at the far end    98.2  .16 .17      97.0  .06 .07      95.1  .006 .012

Where it is below 93: the binomial is discrete, and an interval that is a function of the count alone
has coverage that jumps with p. Wilson's at n = 20 is .925 at p = .05 and .95 and dips to .899 at .973
(mean over p in [.02, .99]: .954); at n = 64 to .917 at .984; at 1,024 it is .940 or more. Only an
interval that covers more than 95 % on average (Clopper and Pearson's) has no such dips.

Bootstraps were measured beside it (n = 20, least over the same kinds of soft verdicts): bootstrap-t
.17, BCa .17, because a sample without the rare value has no width; with ties .31 each. BCa covers .39
at p = .99 for s = .5, where bootstrap-t covers .93 with an interval .90 wide (this one: .17). What the
score interval costs: for soft verdicts that lie close together it is wider than a bootstrap-t (n = 20,
s = 10, p = .5: .16 against .14), as it allows for values near 0 or 1 that n documents did not show.

Where documents share a text, n is how many independent ones they are worth (`groups.effective_size`), as
surveys do it. Least coverage in % over p = .1, .3, .5, .9 (4,000 samples) if verdicts within a text are
drawn apart, are correlated by .5 (of the normal variables behind them), and are the same; in brackets as if
all were independent:

    documents, texts         verdicts 0, 1                        soft, s = 2
    58 about 39 (1 to 3)     95.5 (95.1)  94.3 (92.2)  92.4 (85.6)    95.3 (94.5)  94.1 (89.8)  95.1 (85.8)
    120 about 40 (3 each)    95.3 (94.2)  94.1 (85.5)  93.7 (72.4)    95.5 (94.9)  94.5 (83.4)  94.9 (73.1)
    30 about 10 (3 each)     95.4 (93.3)  92.8 (83.3)  91.3 (65.2)    95.8 (94.6)  93.9 (83.1)  96.4 (71.4)
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from srpo_jax.reporting.groups import Floats, Groups, among, effective_size, sums
from srpo_jax.runtime.errors import UserError

Z = NormalDist().inv_cdf(0.975)
_HALVINGS = 50


def score_interval(values: Floats, groups: Groups | None = None) -> tuple[float, float]:
    """(low, high) of the mean of `values` [N], numbers in [0, 1]; (0, 1) if there are none.

    groups: of values that are not independent, [N]; see `groups.effective_size`.
    """
    if values.size == 0:
        return 0.0, 1.0
    low, high = score_intervals(values[None], effective_size(values, groups))
    return float(low[0]), float(high[0])


def score_intervals(values: Floats, size: float | None = None) -> tuple[Floats, Floats]:
    """`score_interval` of each row of `values` [R, N], N >= 1: the lows [R] and the highs [R].

    size: how many independent values a row is worth; None: N.
    """
    n = values.shape[1] if size is None else size
    return 1.0 - _upper_ends(1.0 - values, n), _upper_ends(values, n)


def _upper_ends(values: Floats, n: float) -> Floats:
    """The greatest mean p that the score test of n values does not reject, for each row of `values` [R, N].

    Given a mean p > m, the likeliest weights are w_i = 1 / (n (1 + k (x_i - p))) for a multiplier
    k < 0 (Owen's empirical likelihood). Their mean is p, from which follows k v(p) = m - p, and the
    test's equation n (m - p)^2 = z^2 v(p) becomes n k (m - p) = z^2. With w_i ~ 1 / (1 + t x_i) and
    a = mean(1 / (1 + t x)) it reads n (a (1 + t m) - 1) = z^2, whose left side grows as t falls from 0
    to -1: halving finds t. At t = -1 the end 1 begins to have a weight of its own; from there on
    k = -1 / (1 - p), and the equation is solved by p = (n m + z^2) / (n + z^2).
    """
    mean, rest = values.mean(axis=1), 1.0 - values
    # u = 1 + t in (0, 1]; 1 + t x = rest + u x is exact where x is close to 1.
    rejected, kept = np.zeros(len(values)), np.ones(len(values))
    for _ in range(_HALVINGS):
        u = (rejected + kept) / 2
        divisors = rest + u[:, None] * values
        statistic = n * ((1.0 / divisors).mean(axis=1) * divisors.mean(axis=1) - 1.0)
        outside = statistic > Z * Z
        rejected, kept = np.where(outside, u, rejected), np.where(outside, kept, u)
    weights = 1.0 / (rest + kept[:, None] * values)
    inside = (weights * values).sum(axis=1) / weights.sum(axis=1)
    at_end = (n * mean + Z * Z) / (n + Z * Z)
    ends: Floats = np.where(rejected == 0.0, at_end, np.maximum(mean, inside))
    return ends


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of the means of `resamples` bootstrap resamples.

    It is how the paper reports win rates. It is no interval: one standard deviation, itself known to
    a sixth of its size with 20 resamples. Of the values, `n` counted and `missing` were NaN.
    """

    mean: float
    spread: float
    resamples: int
    n: int
    missing: int


def resample_spread(
    values: npt.ArrayLike, resamples: int = 20, seed: int = 0, groups: Groups | None = None
) -> Spread:
    """The mean and spread of `values` [N] over resamples with replacement; NaN is left out.

    groups: [N], of values that are drawn together. The same arguments give the same numbers. Without a
    value both numbers are NaN.

    Raises:
        UserError: `resamples` is below 2.
    """
    if resamples < 2:
        raise UserError(f"resamples is {resamples}: a spread needs at least 2")
    row = np.asarray(values, dtype=np.float64)
    there = ~np.isnan(row)
    known, groups = row[there], among(groups, there)
    missing = len(row) - len(known)
    if not len(known):
        return Spread(float("nan"), float("nan"), resamples, 0, missing)
    generator = np.random.default_rng(seed)
    # One resample at a time: a million documents fit.
    parts, sizes = sums(known, groups), sums(np.ones(len(known)), groups)
    draws = (generator.integers(len(parts), size=len(parts)) for _ in range(resamples))
    means = [parts[drawn].sum() / sizes[drawn].sum() for drawn in draws]
    mean, spread = float(np.mean(means)), float(np.std(means, ddof=1))
    return Spread(mean, spread, resamples, len(known), missing)
