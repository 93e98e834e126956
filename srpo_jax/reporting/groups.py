"""Documents about one text: they stand or fall together, and are not so many independent ones.

A group is what the documents about one text are: the aspects of a paper, or golds of one prompt. Groups are
given by their numbers [N], None where every document has a text of its own; then nothing here changes
anything, to the last bit.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Groups = npt.NDArray[np.intp]

_ROUNDING = 1e-12


def numbered(keys: Sequence[Hashable]) -> Groups | None:
    """The number of each key [N], in the order of first appearance; None where no two are the same."""
    places = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return None if len(places) == len(keys) else np.array([places[key] for key in keys], np.intp)


def among(groups: Groups | None, known: npt.NDArray[np.bool_]) -> Groups | None:
    """The groups of the documents that are `known` [N], numbered anew."""
    return None if groups is None else numbered(groups[known].tolist())


def sums(values: Floats, groups: Groups | None) -> Floats:
    """The sum of `values` [N] in each group [G]; rounding leaves no sign on a sum of 0."""
    if groups is None:
        return values
    summed = np.bincount(groups, values)
    return np.where(np.abs(summed) < _ROUNDING, 0.0, summed)


def effective_size(values: Floats, groups: Groups | None) -> float:
    """How many independent values the mean of `values` [N] is worth: N over the design effect.

    That effect is the variance of the mean with whole groups drawn, over that with values drawn, at least
    1 (alike within a group by chance, values would seem to be more than they are). Where the values cannot
    show it, being all the same or of one group, a group counts as one value: N / sum of its squared sizes.
    """
    n = len(values)
    if groups is None:
        return float(n)
    _, groups = np.unique(groups, return_inverse=True)  # numbers as given may leave some out
    sizes, margins = np.bincount(groups), values - values.mean()
    count, spread = len(sizes), float(margins @ margins) * n / (n - 1)
    effect = float(sizes @ sizes) / n
    if count > 1 and spread > _ROUNDING:
        summed = np.bincount(groups, margins)
        effect = float(summed @ summed) * count / (count - 1) / spread
    return n / max(1.0, effect)
