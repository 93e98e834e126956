"""What a judge has said of one model's revisions against one opponent: the verdict table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

GOLD = "gold"  # the human-written completion
OWN = "own y_0"  # the same model's completion before any revision
NO_GOLD = "no gold"  # why nobody was asked: the document has no opponent's completion


@dataclass(frozen=True)
class Key:
    """What a table is about. `opponent` is GOLD, OWN or another model's name.

    Revision k meets the gold, the model's own y_0, or the other model's revision k (its last one
    where it has fewer).
    """

    documents: str
    model: str
    judge: str
    opponent: str


@dataclass(frozen=True)
class Missing:
    """Why there is no verdict on one revision of one document (indices)."""

    document: int
    revision: int
    reason: str


@dataclass(frozen=True, eq=False)
class VerdictTable:
    """P(revision k of document i better than the opponent's completion).

    probabilities: float64 [D, K + 1], NaN where there is none.
    orders: float64 [2, D, K + 1], the same as said with the model's completion shown first, then
        with the opponent's; None for a judge that knows no order.
    missing: one entry for every NaN of `probabilities`.

    Raises ValueError where these do not fit together.
    """

    key: Key
    probabilities: np.ndarray
    orders: np.ndarray | None = None
    missing: tuple[Missing, ...] = ()

    def __post_init__(self) -> None:
        shape = self.probabilities.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"{self.key} needs verdicts [documents, revisions], got shape {shape}")
        if self.orders is not None and self.orders.shape != (2, *shape):
            raise ValueError(f"{self.key} needs orders of shape {(2, *shape)}")
        for values in (self.probabilities, self.orders):
            if values is not None and not np.all(
                np.isnan(values) | ((values >= 0) & (values <= 1))
            ):
                raise ValueError(f"{self.key} has a probability outside [0, 1]")
        named = {(entry.document, entry.revision) for entry in self.missing}
        if named != {(int(i), int(k)) for i, k in np.argwhere(np.isnan(self.probabilities))}:
            raise ValueError(
                f"{self.key}: `missing` must name each verdict that is NaN, and no other"
            )

    @property
    def count(self) -> int:
        """K + 1: verdicts of a document."""
        return int(self.probabilities.shape[1])

    def filled(self, ties: bool) -> np.ndarray:
        """The probabilities [D, K + 1] with missing ones as ties, or left NaN; NO_GOLD is never a tie."""
        if not ties:
            return self.probabilities
        filled = self.probabilities.copy()
        for entry in self.missing:
            if entry.reason != NO_GOLD:
                filled[entry.document, entry.revision] = 0.5
        return filled


def nulls(values: np.ndarray, digits: int | None = None) -> list[Any]:
    """Nested lists of `values`, rounded, with None for NaN: what JSON can hold."""
    rounded = values if digits is None else np.round(values, digits)
    boxed = rounded.astype(object)
    boxed[np.isnan(values)] = None
    found: list[Any] = boxed.tolist()
    return found


class Said(Protocol):
    """What a judge returns for N pairs (judges.judge.Verdicts): [N], [2, N] or None, index -> reason."""

    @property
    def probabilities(self) -> np.ndarray: ...
    @property
    def orders(self) -> np.ndarray | None: ...
    @property
    def missing(self) -> Mapping[int, str]: ...


def table(key: Key, columns: Sequence[Said]) -> VerdictTable:
    """The table of one comparison from what the judge said of revision 0, 1, … of all documents."""
    probabilities = np.stack([column.probabilities for column in columns], axis=1)
    orders = [column.orders for column in columns]
    missing = tuple(
        Missing(int(i), k, column.missing.get(int(i), "no verdict"))
        for k, column in enumerate(columns)
        for i in np.flatnonzero(np.isnan(column.probabilities))
    )
    with_orders = [values for values in orders if values is not None]
    return VerdictTable(
        key,
        probabilities,
        np.stack(with_orders, axis=2) if len(with_orders) == len(orders) else None,
        missing,
    )
