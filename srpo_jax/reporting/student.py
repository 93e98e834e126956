"""Means of independent runs, as seeds are, with Student's interval."""

from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class Mean(NamedTuple):
    """mean, and half the width of its 95 % interval; nan for a single number."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if np.isnan(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"

    @property
    def low(self) -> float:
        return self.mean - self.half

    @property
    def high(self) -> float:
        return self.mean + self.half


def mean_of(values: np.ndarray | list[float]) -> Mean:
    """Of independent numbers [n], with Student's t of n - 1 degrees."""
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return Mean(float(numbers.mean()), float("nan"))
    error = numbers.std(ddof=1) / np.sqrt(len(numbers))
    return Mean(float(numbers.mean()), float(stdtrit(len(numbers) - 1, 0.975) * error))


def means_of(rows: np.ndarray) -> list[Mean]:
    """Of each column of [n, columns]."""
    return [mean_of(column) for column in np.asarray(rows).T]
