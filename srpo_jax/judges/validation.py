"""Is a judge any good? How often it prefers the gold to texts that are surely worse."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from srpo_jax.data.documents import Document
from srpo_jax.judges.features import text_of
from srpo_jax.judges.judge import Judge
from srpo_jax.reporting.winrate import win_rate


@dataclass(frozen=True)
class Check:
    """How often (`rate`, with a 95 % interval) the gold was preferred to `damage`.

    Over `count` documents of the set named `documents`; a tie (probability 1/2) counts as half.
    """

    damage: str
    documents: str
    rate: float
    low: float
    high: float
    count: int


def other_gold(documents: Sequence[Document], index: int) -> str | None:
    """The gold of the next document that has another text and another gold."""
    document = documents[index]
    for step in range(1, len(documents)):
        other = documents[(index + step) % len(documents)]
        if other.gold != document.gold and text_of(other.prompt) != text_of(document.prompt):
            return other.gold
    return None


def shuffled(documents: Sequence[Document], index: int) -> str | None:
    """The words of the gold in another order, the same for the same document."""
    words = documents[index].gold.split()
    if len(set(words)) < 2:
        return None
    generator, mixed = random.Random(documents[index].id), list(words)
    while mixed == words:
        generator.shuffle(mixed)
    return " ".join(mixed)


def half(documents: Sequence[Document], index: int) -> str | None:
    """The first half of the gold's words."""
    words = documents[index].gold.split()
    return " ".join(words[: len(words) // 2]) if len(words) > 1 else None


def lead(documents: Sequence[Document], index: int) -> str | None:
    """The text's own beginning, as many words as the gold has."""
    document = documents[index]
    words = text_of(document.prompt).split()[: len(document.gold.split())]
    return " ".join(words) if words != document.gold.split() else None


DAMAGES: dict[str, Callable[[Sequence[Document], int], str | None]] = {
    "another document's gold": other_gold,
    "gold shuffled": shuffled,
    "gold cut in half": half,
    "verbatim lead": lead,
}


def validate(judge: Judge, documents: Sequence[Document]) -> list[Check]:
    """One `Check` for each set of documents (the part of `Document.id` before "/") and damage.

    A damage that leaves a document's gold as it is, is not counted for that document. Use documents
    that nothing of the judge was fitted to.
    """
    checks = []
    for name in dict.fromkeys(document.id.split("/")[0] for document in documents):
        members = [document for document in documents if document.id.split("/")[0] == name]
        for damage, apply in DAMAGES.items():
            damaged = [apply(members, index) for index in range(len(members))]
            pairs = [
                (d, text) for d, text in zip(members, damaged, strict=True) if text is not None
            ]
            if not pairs:
                continue
            probabilities = judge.probabilities(
                [document.prompt for document, _ in pairs],
                [document.gold for document, _ in pairs],
                [text for _, text in pairs],
            )
            preferred = (np.sign(probabilities - 0.5) + 1) / 2
            checks.append(Check(damage, name, *win_rate(preferred), len(pairs)))
    return checks
