"""Tables of probabilities, in double precision: what they must be, and how far apart two are."""

import numpy as np

from srpo_jax.runtime.errors import UserError


def preference_matrix(preference: np.ndarray) -> np.ndarray:
    """[K, K] float64, checked. Raises UserError where it is no matrix of preferences."""
    matrix = np.asarray(preference, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or len(matrix) < 2:
        raise UserError(f"preference must be a square matrix of 2 or more actions: {matrix.shape}")
    if not np.all((matrix >= 0) & (matrix <= 1)):
        raise UserError("preference must hold probabilities, in [0, 1]")
    wrong = np.argwhere(np.abs(matrix + matrix.T - 1) > 1e-9)
    if len(wrong):
        a, b = wrong[0]
        raise UserError(
            f"preference[a, b] + preference[b, a] must be 1 (1/2 on the diagonal), and for "
            f"a = {a}, b = {b} it is {matrix[a, b] + matrix[b, a]:.6g}"
        )
    return matrix


def distribution(
    name: str, probabilities: np.ndarray, size: int | None = None, dimensions: int = 1
) -> np.ndarray:
    """[K] probabilities, or with dimensions=2 [K, K] with a distribution in each row, float64.

    Raises UserError, in the name `name`, for another shape, a 0, or a sum that is not 1.
    """
    table = np.asarray(probabilities, dtype=np.float64)
    shape = (len(table) if size is None and table.ndim else size,) * dimensions
    if table.shape != shape:
        raise UserError(f"{name} must have the shape {shape}, and has {table.shape}")
    if not np.all(table > 0):
        where = tuple(int(i) for i in np.argwhere(~(table > 0))[0])
        raise UserError(
            f"{name} must give every action a probability above 0, and gives {table[where]} at "
            f"{where if dimensions == 2 else where[0]}"
        )
    if np.any(np.abs(table.sum(axis=-1) - 1) > 1e-9):
        raise UserError(f"{name} must sum to 1 (in every row), and sums to {table.sum(axis=-1)}")
    return table


def normalised(log_weights: np.ndarray) -> np.ndarray:
    """The distribution [K] whose logarithms are these [K] but for a constant."""
    probabilities: np.ndarray = np.exp(log_weights - np.logaddexp.reduce(log_weights))
    return probabilities


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the summed absolute difference; for tables of distributions, the largest of any row."""
    return float(0.5 * np.abs(np.asarray(p) - np.asarray(q)).sum(axis=-1).max())
