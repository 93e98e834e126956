"""Several judges as one: the mean of what they say, or what most of them say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from srpo_jax.judges.judge import (
    Estimate,
    Judge,
    Prompt,
    Verdicts,
    estimate,
    exact,
    fitted_to,
    total,
)


def _version(members: Sequence[Judge]) -> str:
    """Eight hexadecimal digits of what the members are, where an endpoint's verdicts are read apart, which
    is not known before it was asked."""
    facts = [{**getattr(member, "facts", {}), "verdict": ""} for member in members]
    said = [[member.description for member in members], facts]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:8]


class Ensemble:
    """P(a better than b | x) from its members' probabilities.

    combine: "mean" of them; or "majority", 1 where more members prefer a than b, 0 where fewer do, else
    1/2. A pair on which a member has no verdict has none, so that all verdicts are of the same members.
    What a member says in one order and in the other is in its own verdicts: the ensemble has no orders.
    """

    def __init__(self, name: str, members: Sequence[Judge], combine: str) -> None:
        self.name, self.members = name, tuple(members)
        self._combine = combine
        how = "the mean" if combine == "mean" else "the majority"
        names = ", ".join(member.name for member in members)
        self.description = (
            f"{how} of {names}; on a pair that one of them is silent on, it is too "
            f"(members as of {_version(members)})"
        )
        self.is_proxy = any(member.is_proxy for member in members)
        # What one member was fitted to is held out of none of their verdicts together.
        self.fitted_to = frozenset[str]().union(*map(fitted_to, members))

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each; every member is asked."""
        said = [member.judge(prompts, a, b) for member in self.members]
        margins = np.stack([verdicts.probabilities for verdicts in said]) - 0.5
        if self._combine == "majority":
            combined = np.sign(np.sign(margins).sum(0)) / 2
        else:
            # Sums of multiples of 2^-40 are exact, and so is the sign of all that is made of them.
            combined = exact(exact(margins).sum(0) / len(margins))
        missing: dict[int, str] = {}
        for member, verdicts in zip(self.members, said, strict=True):
            for i in np.flatnonzero(np.isnan(verdicts.probabilities)):
                reason = verdicts.missing.get(int(i), "no verdict")
                missing.setdefault(int(i), f"{member.name}: {reason}")
        return Verdicts(0.5 + combined, missing=missing)

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N]; NaN where there is no verdict."""
        return self.judge(prompts, a, b).probabilities

    def cost(self) -> dict[str, float]:
        """The sum of the members', who have each their own beside."""
        spent: dict[str, float] = {}
        for member in self.members:
            for what, amount in member.cost().items():
                spent[what] = spent.get(what, 0.0) + amount
        return spent

    def estimate(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Estimate:
        """What asking the members would cost; nothing is asked."""
        return total([estimate(member, prompts, a, b) for member in self.members])
