"""Is a judge any good? How often it prefers the gold to texts that are surely worse."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from srpo_jax.data.documents import Summarized
from srpo_jax.judges.features import text_of
from srpo_jax.judges.judge import Estimate, Judge, Prompt, estimate, total
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


def other_gold(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold of the next document that has another text and another gold."""
    document = documents[index]
    for step in range(1, len(documents)):
        other = documents[(index + step) % len(documents)]
        if other.gold != document.gold and text_of(other.prompt) != text_of(document.prompt):
            return other.gold
    return None


def shuffled(documents: Sequence[Summarized], index: int) -> str | None:
    """The words of the gold in another order, the same for the same document."""
    words = documents[index].gold.split()
    if len(set(words)) < 2:
        return None
    generator, mixed = random.Random(documents[index].id), list(words)
    while mixed == words:
        generator.shuffle(mixed)
    return " ".join(mixed)


def half(documents: Sequence[Summarized], index: int) -> str | None:
    """The first half of the gold's words."""
    words = documents[index].gold.split()
    return " ".join(words[: len(words) // 2]) if len(words) > 1 else None


def lead(documents: Sequence[Summarized], index: int) -> str | None:
    """The text's own beginning, as many words as the gold has."""
    document = documents[index]
    words = text_of(document.prompt).split()[: len(document.gold.split())]
    return " ".join(words) if words != document.gold.split() else None


DAMAGES: dict[str, Callable[[Sequence[Summarized], int], str | None]] = {
    "another document's gold": other_gold,
    "gold shuffled": shuffled,
    "gold cut in half": half,
    "verbatim lead": lead,
}


@dataclass(frozen=True)
class Damaged:
    """Golds of the set `documents`, and the same golds damaged."""

    damage: str
    documents: str
    prompts: tuple[Prompt, ...]
    golds: tuple[str, ...]
    texts: tuple[str, ...]


def damaged(documents: Sequence[Summarized]) -> Iterator[Damaged]:
    """Of each set of documents (the part of `Document.id` before "/") and damage, what is compared.

    A damage that leaves a document's gold as it is, is not counted for that document.
    """
    for name in dict.fromkeys(document.id.split("/")[0] for document in documents):
        members = [document for document in documents if document.id.split("/")[0] == name]
        for damage, apply in DAMAGES.items():
            texts = [apply(members, index) for index in range(len(members))]
            pairs = [(d, text) for d, text in zip(members, texts, strict=True) if text is not None]
            if pairs:
                kept, worse = zip(*pairs, strict=True)
                prompts, golds = tuple(d.prompt for d in kept), tuple(d.gold for d in kept)
                yield Damaged(damage, name, prompts, golds, worse)


def validate(judge: Judge, documents: Sequence[Summarized]) -> list[Check]:
    """One `Check` for each set of documents and damage, of the documents that have a verdict.

    Use documents that nothing of the judge was fitted to.
    """
    checks = []
    for part in damaged(documents):
        probabilities = judge.probabilities(part.prompts, part.golds, part.texts)
        said = probabilities[~np.isnan(probabilities)]
        if said.size:
            preferred = (np.sign(said - 0.5) + 1) / 2
            checks.append(Check(part.damage, part.documents, *win_rate(preferred), said.size))
    return checks


def cost(judge: Judge, documents: Sequence[Summarized]) -> Estimate:
    """What `validate` would cost; nothing is asked."""
    return total(
        [estimate(judge, part.prompts, part.golds, part.texts) for part in damaged(documents)]
    )
