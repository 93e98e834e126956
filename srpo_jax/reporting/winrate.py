"""Win rates with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srpo_jax.runtime.errors import UserError

_LEVELS = (2.5, 97.5)
_CHUNK = 1 << 22  # numbers drawn at once: 32 MB


def win_rate(
    probabilities: np.ndarray | Sequence[float], resamples: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean of `probabilities` [N] and its 95 % bootstrap percentile interval (low, high).

    A probability is that of beating the opponent as judged (1/2 for a tie), one a prompt. The
    interval is over the choice of prompts. The same arguments give the same numbers.

    Raises:
        UserError: `probabilities` is empty, not one-dimensional, or has NaN or a value outside
            [0, 1]; or `resamples` is below 1.
    """
    values = _checked(probabilities, "probabilities")
    return _bootstrap(values, resamples, seed)


def difference(
    a: np.ndarray | Sequence[float],
    b: np.ndarray | Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Mean of a - b and its 95 % bootstrap interval; `a`, `b` [N] belong to the same prompts.

    Prompts are resampled with both their values: what makes a prompt easy for both cancels.

    Raises:
        UserError: as `win_rate`, or the lengths differ.
    """
    first, second = _checked(a, "a"), _checked(b, "b")
    if first.shape != second.shape:
        raise UserError(
            f"a paired difference needs as many values in a ({len(first)}) as in b ({len(second)})"
        )
    return _bootstrap(first - second, resamples, seed)


def _checked(probabilities: np.ndarray | Sequence[float], name: str) -> np.ndarray:
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"{name} must be one non-empty row of numbers, got shape {values.shape}")
    # Written so that NaN counts as bad.
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if bad.size:
        raise UserError(f"{name}[{bad[0]}] is {values[bad[0]]}, not a probability in [0, 1]")
    return values


def _bootstrap(values: np.ndarray, resamples: int, seed: int) -> tuple[float, float, float]:
    if resamples < 1:
        raise UserError(f"resamples is {resamples}: at least 1 is needed")
    generator = np.random.default_rng(seed)
    count = len(values)
    rows = max(1, _CHUNK // count)
    means = [
        values[generator.integers(count, size=(min(rows, resamples - start), count))].mean(axis=1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.percentile(np.concatenate(means), _LEVELS)
    return float(values.mean()), float(low), float(high)
