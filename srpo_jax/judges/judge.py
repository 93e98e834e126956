"""What a judge is, and what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np

from srpo_jax.data.records import Message
from srpo_jax.runtime.errors import UserError

K = TypeVar("K")
V = TypeVar("V")
Prompt = str | tuple[Message, ...]  # x: a text, or a conversation that waits for the assistant
GRID = 2.0**40
REMEMBERED = 1 << 18  # completions; those of online learning would fill the memory


@dataclasses.dataclass(frozen=True)
class Verdicts:
    """What a judge says of N pairs (a, b).

    probabilities: float64 [N], P(a better than b); NaN where there is no verdict.
    orders: float64 [2, N], P(a better than b) as said with a shown first, then with b shown first, NaN
    where nothing was said; None for a judge to which the order means nothing.
    missing: index -> why there is no verdict.
    """

    probabilities: np.ndarray
    orders: np.ndarray | None = None
    missing: Mapping[int, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What judging would cost, said before anything is asked; nothing for a judge that is free.

    requests: of questions that are not answered yet; cached: answered ones. Tokens are of the requests;
    at_most: completion tokens if every answer were as long as it may be. price, price_at_most: None
    without prices. how: how the tokens were guessed.
    """

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    at_most: int = 0
    price: float | None = None
    price_at_most: float | None = None
    how: str = ""

    def __str__(self) -> str:
        if not self.requests:
            return f"no requests, {self.cached} answers stored"
        price = ""
        if self.price is not None and self.price_at_most is not None:
            price = f", price about {self.price:.2f}, at most {self.price_at_most:.2f}"
        return (
            f"{self.requests} requests ({self.cached} answers stored), about {self.prompt_tokens} prompt "
            f"and {self.completion_tokens} completion tokens (at most {self.at_most}){price}; {self.how}"
        )


class Judge(Protocol):
    """P(a > b) + P(b > a) = 1 exactly where both are there, and P(a > a) = 1/2 without asking."""

    @property
    def name(self) -> str:
        """Short, for tables."""

    @property
    def description(self) -> str:
        """One sentence for reports, on what the judge is and is not."""

    @property
    def is_proxy(self) -> bool:
        """Whether nobody has checked it against people."""

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each."""

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N]; NaN where there is no verdict."""

    def cost(self) -> Mapping[str, float]:
        """Requests, prompt_tokens, completion_tokens, price … so far; {} where nothing is paid."""


@runtime_checkable
class Paid(Protocol):
    """A judge whose verdicts cost something."""

    def estimate(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Estimate:
        """What judging these would cost."""


def estimate(
    judge: Judge, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
) -> Estimate:
    """What judging these would cost; nothing is asked."""
    return judge.estimate(prompts, a, b) if isinstance(judge, Paid) else Estimate()


def is_paid(judge: Judge) -> bool:
    """Whether verdicts cost something: of an ensemble, whether a member's do."""
    return any(isinstance(one, Paid) for one in getattr(judge, "members", (judge,)))


def knows_gold(judge: Judge) -> bool:
    """Whether it compares with the gold, or a member of an ensemble does."""
    return any(getattr(one, "knows_gold", False) for one in getattr(judge, "members", (judge,)))


def fitted_to(judge: Judge) -> frozenset[str]:
    """The damages (see `validation`) that a judge was fitted to: its attribute of this name, else none."""
    found: frozenset[str] = getattr(judge, "fitted_to", frozenset())
    return found


def total(estimates: Sequence[Estimate]) -> Estimate:
    """Several parts of one job; a question that is in two of them is counted twice."""
    if not estimates:
        return Estimate()
    whole: Estimate = estimates[0]
    for part in estimates[1:]:
        whole = Estimate(
            requests=whole.requests + part.requests,
            cached=whole.cached + part.cached,
            prompt_tokens=whole.prompt_tokens + part.prompt_tokens,
            completion_tokens=whole.completion_tokens + part.completion_tokens,
            at_most=whole.at_most + part.at_most,
            price=_sum(whole.price, part.price),
            price_at_most=_sum(whole.price_at_most, part.price_at_most),
            how=whole.how or part.how,
        )
    return whole


def _sum(a: float | None, b: float | None) -> float | None:
    return b if a is None else a if b is None else a + b


def exact(probabilities: np.ndarray) -> np.ndarray:
    """Rounded to multiples of 2^-40: 1 - p, and means of two, are then exact in float64."""
    rounded: np.ndarray = np.round(np.asarray(probabilities, np.float64) * GRID) / GRID
    return rounded


def preference(margin: np.ndarray) -> np.ndarray:
    """sigmoid(margin), float64 [N], such that that of -margin is 1 - p exactly."""
    larger = exact(1 / (1 + np.exp(-np.abs(margin))))
    return np.where(margin >= 0, larger, 1 - larger)


def recalled(known: dict[K, V], wanted: Iterable[K]) -> dict[K, V]:
    """What a judge remembers: all, or where that is more than REMEMBERED, what is wanted now."""
    if len(known) <= REMEMBERED:
        return known
    return {one: known[one] for one in dict.fromkeys(wanted) if one in known}


def require_equal(prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> None:
    """UserError unless there are as many of each."""
    if not len(prompts) == len(a) == len(b):
        raise UserError(
            f"a judge needs as many prompts ({len(prompts)}) as completions a ({len(a)}) "
            f"and completions b ({len(b)})"
        )


def readable(prompt: Prompt) -> str:
    """x as a text: of a conversation, each turn below a line that says who speaks."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"[{turn.role.upper()}]\n{turn.content.strip()}" for turn in prompt)
