"""What a judge is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Judge(Protocol):
    """`name` is short; `description` one sentence for reports on what the judge is and is not."""

    name: str
    description: str

    def probabilities(
        self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N], for N prompts and N completions each.

        For every judge P(a > b) + P(b > a) = 1 to 1e-6, and P(a > a) = 1/2.
        """
        ...
