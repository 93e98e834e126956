"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475).

What would the win rate be if the completions were as long as the opponent's? The judge's preference
for method m over the opponent on document x is modelled by

    q(m, x) = sigma( theta_m + phi_m tanh(d_mx / std(d_m)) + psi_m gamma_x )

with sigma the logistic function and d_mx the length of m's completion less that of the opponent's. The
opponent's own theta and psi are 0. The result leaves the length term out:

    LC(m) = mean over x of sigma( theta_m + psi_m gamma_x ).

gamma_x is the document's difficulty, which all methods share. As in the paper it comes from a first
regression over several methods with psi fixed at 1, and is then held fixed. Two things differ. Here it
is the *other* methods' (the paper has over 120 methods, and each one's own verdict hardly counts; of
three it would be a third, and psi would fit the verdicts with themselves), with a normal prior of
variance 1. And the second regression has a ridge in place of the paper's penalty and its two gamed
opponents, which need texts that are not here: weak, so that it matters only where the verdicts could
be separated and the weights would be infinite. With one method gamma is 0.

There is no constant, so the model is antisymmetric: swapping the sides turns every sign but phi's, and
gives 1 - LC. Soft verdicts are targets of the same likelihood.

What not to conclude: where one side is always the longer, length and quality cannot be told apart, and
theta and phi share the effect; the interval is wide then. Length that comes with quality is taken out
with the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from srpo_jax.reporting.groups import Floats, Groups, among, effective_size, sums
from srpo_jax.reporting.interval import Z
from srpo_jax.reporting.winrate import checked
from srpo_jax.runtime.errors import UserError

_RIDGE = (
    0.01  # of theta, phi and psi: a hundredth of a document's information at even odds is .0025
)
_DIFFICULTY_RIDGE = 1.0
_STEPS = 200
_CONVERGED = 1e-13


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate with its 95 % interval, fractions.

    `length_weight` is phi: how much the judge's log-odds gain from a much longer completion.
    `difficulty_weight` is psi, 0 where there is one method. The interval is for the difficulties as
    estimated. `missing` documents without a verdict are left out; with n = 0 the rate is NaN.
    """

    rate: float
    low: float
    high: float
    length_weight: float
    difficulty_weight: float
    n: int
    missing: int


@dataclass(frozen=True)
class _Method:
    """One method's verdicts [D] (0 where unknown), tanh of its length differences [D], mask [D]."""

    verdicts: Floats
    lengths: Floats
    known: npt.NDArray[np.bool_]


def length_controlled(
    probabilities: Mapping[str, npt.ArrayLike],
    length_differences: Mapping[str, npt.ArrayLike],
    groups: Groups | None = None,
) -> dict[str, LengthControlled]:
    """The length-controlled win rate of each method against one common opponent.

    `probabilities[method]` [D] are those of beating the opponent, NaN where the verdict is missing;
    `length_differences[method]` [D] the completion's length less the opponent's, in any one unit. All
    methods have the same D documents in the same order; groups [D]: as for `winrate.win_rate`.

    Raises:
        UserError: a method without lengths, a value outside [0, 1], numbers of documents that
            differ, or a length that is not finite beside a verdict.
    """
    methods = {
        name: _method(name, verdicts, length_differences)
        for name, verdicts in probabilities.items()
    }
    sizes = {name: len(method.known) for name, method in methods.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the methods must share their documents, got {sizes}")
    return {
        name: _controlled(
            method,
            _difficulty([other for key, other in methods.items() if key != name]),
            groups,
        )
        for name, method in methods.items()
    }


def _method(
    name: str, probabilities: npt.ArrayLike, length_differences: Mapping[str, npt.ArrayLike]
) -> _Method:
    verdicts = checked(probabilities, name, missing=True)
    if name not in length_differences:
        raise UserError(f"length control needs the length differences of {name!r}")
    lengths = np.asarray(length_differences[name], dtype=np.float64)
    if lengths.shape != verdicts.shape:
        raise UserError(
            f"{name} needs one length difference a verdict, got {lengths.shape} for {verdicts.shape}"
        )
    known = ~np.isnan(verdicts)
    bad = np.flatnonzero(known & ~np.isfinite(lengths))
    if bad.size:
        raise UserError(f"the length difference {name}[{bad[0]}] is {lengths[bad[0]]}")
    lengths = np.where(known, lengths, 0.0)
    scale = float(lengths[known].std(ddof=1)) if known.sum() > 1 else 0.0
    # Differences that are all alike say nothing of length: the term is then 0.
    terms = np.tanh(lengths / scale) * known if scale > 0 else np.zeros_like(lengths)
    return _Method(np.where(known, verdicts, 0.0), terms, known)


def _difficulty(methods: list[_Method]) -> Floats | float:
    """gamma [D] by one regression over `methods`, each with a theta and a phi; 0 without any."""
    if not methods:
        return 0.0
    known = np.stack([method.known for method in methods])
    which, documents = np.nonzero(known)
    features = np.zeros((len(which), 2 * len(methods)))
    features[np.arange(len(which)), 2 * which] = 1.0
    features[np.arange(len(which)), 2 * which + 1] = np.stack([m.lengths for m in methods])[known]
    targets = np.stack([method.verdicts for method in methods])[known]
    _, difficulty = _fit(features, targets, documents, known.shape[1])
    return difficulty


def _controlled(
    method: _Method, difficulty: Floats | float, groups: Groups | None
) -> LengthControlled:
    known = method.known
    n, missing = int(known.sum()), int((~known).sum())
    if not n:
        return LengthControlled(float("nan"), 0.0, 1.0, 0.0, 0.0, 0, missing)
    shared = np.broadcast_to(difficulty, known.shape)[known]
    features = np.stack([np.ones(n), method.lengths[known], shared], axis=1)
    targets = method.verdicts[known]
    weights, _ = _fit(features, targets)
    equal = features * np.array([1.0, 0.0, 1.0])  # at equal length
    rate = float(_logistic(equal @ weights).mean())
    texts = among(groups, known)
    variance = _variance(features, equal, targets, weights, texts)
    low, high = _interval(rate, variance, effective_size(np.full(n, rate), texts))
    return LengthControlled(rate, low, high, float(weights[1]), float(weights[2]), n, missing)


def _variance(
    features: Floats, equal: Floats, targets: Floats, weights: Floats, groups: Groups | None
) -> float:
    """The variance of the estimate, in first order and without a model of the verdicts' noise.

    A document enters LC twice: as one over which the mean is taken, and through the weights (the
    regression's sandwich), so it holds for soft verdicts and where the model is not true. The ridge
    counts as a prior, whose variance remains where the verdicts say nothing: without that, length
    and quality that cannot be told apart would look well known. Documents of one group enter as one.
    """
    n = len(targets)
    fitted, controlled = _logistic(features @ weights), _logistic(equal @ weights)
    curvature = (features.T * (fitted * (1 - fitted))) @ features + _RIDGE * np.eye(len(weights))
    gradient = equal.T @ (controlled * (1 - controlled)) / n
    pull = np.linalg.solve(curvature, gradient)
    influence = (controlled - controlled.mean()) / n + (features @ pull) * (targets - fitted)
    entering = sums(influence, groups)
    count = len(entering)
    return float((entering**2).sum() * count / max(1, count - 3) + _RIDGE * (pull**2).sum())


def _interval(rate: float, variance: float, n: float) -> tuple[float, float]:
    """(low, high): normal in log-odds, never narrower than the score interval of equal values.

    That floor is what n documents leave open whatever they show (20 wins of 20 included).
    """
    center, half = np.log(rate) - np.log1p(-rate), Z * np.sqrt(variance) / (rate * (1 - rate))
    low, high = (float(_logistic(np.array(center + sign * half))) for sign in (-1, 1))
    return min(low, n * rate / (n + Z * Z)), max(high, (n * rate + Z * Z) / (n + Z * Z))


def _fit(
    features: Floats,
    targets: Floats,
    documents: npt.NDArray[np.intp] | None = None,
    count: int = 0,
) -> tuple[Floats, Floats]:
    """Ridge logistic regression by Newton's method: the weights [K] and the document terms [count].

    Log-odds are features [R, K] @ weights + terms[documents [R]]. The terms' part of the Hessian is
    diagonal, so they are eliminated and a step solves a K x K system. The objective is strictly
    concave; a step that lowers it is halved.
    """
    where = np.zeros(len(targets), dtype=np.intp) if documents is None else documents
    weights, terms = np.zeros(features.shape[1]), np.zeros(max(1, count))
    free = float(documents is not None)  # without documents the one term stays 0

    def value(weights: Floats, terms: Floats) -> float:
        odds = features @ weights + terms[where]
        penalty = _RIDGE * weights @ weights + _DIFFICULTY_RIDGE * terms @ terms
        return float((targets * odds - np.logaddexp(0.0, odds)).sum() - penalty / 2)

    reached = value(weights, terms)
    for _ in range(_STEPS):
        fitted = _logistic(features @ weights + terms[where])
        weighted = features * (fitted * (1 - fitted))[:, None]
        gradient = features.T @ (targets - fitted) - _RIDGE * weights
        hessian = features.T @ weighted + _RIDGE * np.eye(len(weights))
        size = len(terms)
        term_gradient = free * (
            np.bincount(where, targets - fitted, size) - _DIFFICULTY_RIDGE * terms
        )
        diagonal = np.bincount(where, fitted * (1 - fitted), size) + _DIFFICULTY_RIDGE
        cross = free * np.stack([np.bincount(where, column, size) for column in weighted.T])
        reduced = hessian - (cross / diagonal) @ cross.T
        step = np.linalg.solve(reduced, gradient - cross @ (term_gradient / diagonal))
        term_step = (term_gradient - cross.T @ step) / diagonal
        scale, rounding = 1.0, 1e-10 * (1.0 + abs(reached))
        while (
            new := value(weights + scale * step, terms + scale * term_step)
        ) < reached - rounding:
            scale /= 2
        weights, terms = weights + scale * step, terms + scale * term_step
        reached = new
        if max(np.abs(step).max(), np.abs(term_step).max()) < _CONVERGED:
            break
    return weights, terms


def _logistic(odds: Floats) -> Floats:
    return np.exp(-np.logaddexp(0.0, -odds))
