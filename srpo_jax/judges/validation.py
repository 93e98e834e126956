"""Is a judge any good? How often it prefers the gold to texts that are surely worse."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from srpo_jax.data.documents import Summarized, subject
from srpo_jax.judges.features import text_of
from srpo_jax.judges.judge import (
    Estimate,
    Judge,
    Prompt,
    estimate,
    fitted_to,
    is_paid,
    total,
)
from srpo_jax.judges.tricks import TRICKS, Damage
from srpo_jax.reporting.groups import numbered
from srpo_jax.reporting.winrate import win_rate

BEST_TRICK = "the best of the tricks"


@dataclass(frozen=True)
class Check:
    """How often (`rate`, with a 95 % interval) the gold was preferred to `damage`.

    Over `count` documents of the set named `documents`; a tie (probability 1/2) counts as half.
    held_out: nothing of the judge was fitted to this kind of damage.
    """

    damage: str
    documents: str
    rate: float
    low: float
    high: float
    count: int
    held_out: bool = True


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


DAMAGES: dict[str, Damage] = {
    "another document's gold": other_gold,
    "gold shuffled": shuffled,
    "gold cut in half": half,
    "verbatim lead": lead,
}


@dataclass(frozen=True)
class Damaged:
    """Golds of the set `documents`, and the same golds damaged; `ids` are those of their documents."""

    damage: str
    documents: str
    ids: tuple[str, ...]
    prompts: tuple[Prompt, ...]
    golds: tuple[str, ...]
    texts: tuple[str, ...]


def damaged(documents: Sequence[Summarized], damages: Mapping[str, Damage]) -> Iterator[Damaged]:
    """Of each set of documents (the part of `Document.id` before "/") and damage, what is compared.

    A damage that leaves a document's gold as it is, is not counted for that document.
    """
    for name in dict.fromkeys(document.id.split("/")[0] for document in documents):
        members = [document for document in documents if document.id.split("/")[0] == name]
        for damage, apply in damages.items():
            texts = [apply(members, index) for index in range(len(members))]
            pairs = [
                (d, text)
                for d, text in zip(members, texts, strict=True)
                if text is not None and text != d.gold
            ]
            if pairs:
                kept, worse = zip(*pairs, strict=True)
                ids, prompts = tuple(d.id for d in kept), tuple(d.prompt for d in kept)
                yield Damaged(damage, name, ids, prompts, tuple(d.gold for d in kept), worse)


def validate(
    judge: Judge, documents: Sequence[Summarized], damages: Mapping[str, Damage] | None = None
) -> list[Check]:
    """One `Check` for each set of documents and damage, of the documents that have a verdict.

    With tricks, also how often the gold was preferred to all tricks of its document (BEST_TRICK).
    damages: None for those of `checked_by`. Use documents that nothing of the judge was fitted to.
    """
    checks = []
    hardest: dict[str, dict[str, float]] = {}  # of each set and document, over its tricks
    for part in damaged(documents, damages or checked_by(judge)):
        probabilities = judge.probabilities(part.prompts, part.golds, part.texts)
        preferred = {
            identifier: (float(np.sign(p - 0.5)) + 1) / 2
            for identifier, p in zip(part.ids, probabilities, strict=True)
            if not np.isnan(p)
        }
        held_out = part.damage not in fitted_to(judge)
        if preferred:
            checks.append(_check(part.damage, part.documents, preferred, held_out))
        if part.damage in TRICKS:
            least = hardest.setdefault(part.documents, {})
            least.update({i: min(p, least.get(i, 1.0)) for i, p in preferred.items()})
    held_out = not TRICKS.keys() & fitted_to(judge)
    return checks + [
        _check(BEST_TRICK, name, least, held_out) for name, least in hardest.items() if least
    ]


def checked_by(judge: Judge) -> dict[str, Damage]:
    """What a judge is checked with: all there is, but only DAMAGES where every verdict is paid for."""
    return DAMAGES if is_paid(judge) else {**DAMAGES, **TRICKS}


def cost(judge: Judge, documents: Sequence[Summarized]) -> Estimate:
    """What `validate` would cost; nothing is asked."""
    parts = damaged(documents, checked_by(judge))
    return total([estimate(judge, part.prompts, part.golds, part.texts) for part in parts])


def _check(damage: str, documents: str, preferred: Mapping[str, float], held_out: bool) -> Check:
    groups = numbered([subject(identifier) for identifier in preferred])
    interval = win_rate(np.array(list(preferred.values())), groups)
    return Check(damage, documents, *interval, len(preferred), held_out)
