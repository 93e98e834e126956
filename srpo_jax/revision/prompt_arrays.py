"""Prompts as arrays, out of which those of a group are put together in one pass, however many they are.

Shapes: N prompts, R of them in a group, W columns.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32, Int64

from srpo_jax.prompts import Prompt

Chosen = Int[np.ndarray, " R"]  # numbers of prompts


class Ragged(NamedTuple):
    """Rows of tokens, one after the other, and a token behind the last. begin: where each row does."""

    tokens: Int32[np.ndarray, " total"]
    begin: Int64[np.ndarray, " N1"]

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> "Ragged":
        begin = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        tokens = itertools.chain(itertools.chain.from_iterable(rows), (0,))
        return cls(np.fromiter(tokens, np.int32, begin[-1] + 1), begin)

    def lengths(self, chosen: Chosen) -> Int32[np.ndarray, "R 1"]:
        found: np.ndarray = self.begin[chosen + 1] - self.begin[chosen]
        return found.astype(np.int32)[:, None]

    def at(self, chosen: Chosen, columns: Int[np.ndarray, "_ W"]) -> Int32[np.ndarray, "R W"]:
        """Tokens at these columns of the rows, or of each; any token at a column that a row has not."""
        found: np.ndarray = self.tokens.take(self.begin[chosen][:, None] + columns, mode="clip")
        return found


@dataclasses.dataclass(frozen=True)
class PromptArrays:
    """before: of the improve prompts, behind what they share with the direct ones: `shared` tokens."""

    direct: Ragged
    before: Ragged
    after: Ragged
    shared: Int32[np.ndarray, " N"]

    @classmethod
    def of(cls, prompts: Sequence[Prompt]) -> "PromptArrays":
        return cls(
            Ragged.of([p.direct for p in prompts]),
            Ragged.of([p.before[p.shared :] for p in prompts]),
            Ragged.of([p.after for p in prompts]),
            np.array([p.shared for p in prompts], np.int32),
        )

    def directly(self, chosen: Chosen, width: int) -> tuple[np.ndarray, np.ndarray]:
        """Direct prompts, int32 [R, width], padded on the right, and their lengths, int32 [R]."""
        columns, lengths = np.arange(width)[None], self.direct.lengths(chosen)
        tokens = np.where(columns < lengths, self.direct.at(chosen, columns), 0)
        return tokens, lengths[:, 0]

    def improving(
        self, chosen: Chosen, shown: "Shown", width: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same of improve prompts that show these completions, behind what is shared."""
        in_shown = np.arange(width) - self.before.lengths(chosen)
        in_after = in_shown - shown.lengths[:, None]
        columns = np.clip(in_shown, 0, shown.tokens.shape[1] - 1)
        tokens = np.select(
            [in_shown < 0, in_after < 0, in_after < self.after.lengths(chosen)],
            [
                self.before.at(chosen, np.arange(width)[None]),
                np.take_along_axis(shown.tokens, columns, axis=1),
                self.after.at(chosen, in_after),
            ],
            np.int32(0),
        )
        lengths = self.before.lengths(chosen) + self.after.lengths(chosen)
        return tokens, lengths[:, 0] + shown.lengths


class Shown(NamedTuple):
    """Completions without what ends them, which is padding."""

    tokens: Int32[np.ndarray, "R G"]
    lengths: Int32[np.ndarray, " R"]

    def of(self, rows: np.ndarray) -> "Shown":
        return Shown(self.tokens[rows], self.lengths[rows])

    def as_lists(self) -> list[list[int]]:
        return [
            row[:length]
            for row, length in zip(self.tokens.tolist(), self.lengths.tolist(), strict=True)
        ]
