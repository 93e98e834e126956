"""Means over seeds with Student's interval."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mean(NamedTuple):
    """mean, and half the width of its 95 % interval; nan for a single number."""

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if np.isnan(self.half) else f"{self.mean:.1f} ± {self.half:.1f}"

    @property
    def low(self) -> float:
        return self.mean - self.half


def mean_of(values: np.ndarray | list[float]) -> Mean:
    """Of independent numbers [n], with Student's t of n - 1 degrees."""
    numbers = np.asarray(values, np.float64)
    if len(numbers) < 2:
        return Mean(float(numbers.mean()), float("nan"))
    error = numbers.std(ddof=1) / np.sqrt(len(numbers))
    return Mean(float(numbers.mean()), float(student(len(numbers) - 1) * error))


def means_of(rows: np.ndarray) -> list[Mean]:
    """Of each column of [n, columns]."""
    return [mean_of(column) for column in np.asarray(rows).T]


@functools.cache
def student(degrees: int) -> float:
    """The 0.975 quantile of Student's distribution, by bisection of its distribution function."""
    low, high = 0.0, 20.0  # 12.7 with one degree
    with jax.enable_x64(True):
        for _ in range(60):
            middle = (low + high) / 2
            x = jnp.float64(degrees / (degrees + middle**2))
            beyond = 0.5 * float(jax.scipy.special.betainc(degrees / 2, 0.5, x))
            low, high = (middle, high) if beyond > 0.025 else (low, middle)
    return middle
