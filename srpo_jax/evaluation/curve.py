"""A small curve by revision: win rates, and what revising does to the texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from srpo_jax.data.documents import Document
from srpo_jax.judges import Judge
from srpo_jax.judges.judge import knows_gold
from srpo_jax.reporting import texts


@dataclass(frozen=True)
class Revised:
    """What was written on some documents: revisions[i][k] is y_k of document i, tokens[i][k] its length.

    cut[i][k]: whether it ended at the token limit.
    """

    revisions: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    cut: tuple[tuple[bool, ...], ...]


def curve(judge: Judge, documents: Sequence[Document], revised: Revised) -> dict[str, float]:
    """The numbers of every y_k, named with k; one is left out where nothing was there to judge.

    For each k: win_rate (against the gold, on documents that have one; not by a judge that compares with
    it), overlap (F1 of the words shared with the gold), tokens, cut (share). For k > 0 also
    win_rate_own (against y_0), better (y_k against y_k-1), better_changed (where these differ), unchanged
    (share where they do not), edit_distance (between them: words, over those of the longer).
    """
    found: dict[str, float] = {}
    golds = [i for i, document in enumerate(documents) if document.gold is not None]
    everyone = list(range(len(documents)))

    def add(name: str, which: Sequence[int], a: Sequence[str], b: Sequence[str]) -> None:
        rate = _rate(judge, [documents[i] for i in which], a, b)
        if not np.isnan(rate):
            found[name] = rate

    for k in range(len(revised.revisions[0])):
        ys = [row[k] for row in revised.revisions]
        shown, theirs = [ys[i] for i in golds], [documents[i].gold or "" for i in golds]
        if not knows_gold(judge):
            add(f"win_rate_{k}", golds, shown, theirs)
        if golds:
            found[f"overlap_{k}"] = texts.mean(list(map(texts.overlap, shown, theirs)))
        found[f"tokens_{k}"] = texts.mean([row[k] for row in revised.tokens])
        found[f"cut_{k}"] = texts.mean([row[k] for row in revised.cut])
        if k == 0:
            continue
        before = [row[k - 1] for row in revised.revisions]
        changed = [i for i in everyone if not texts.unchanged(revised.revisions[i], k)]
        add(f"win_rate_own_{k}", everyone, ys, [row[0] for row in revised.revisions])
        add(f"better_{k}", everyone, ys, before)
        add(f"better_changed_{k}", changed, [ys[i] for i in changed], [before[i] for i in changed])
        found[f"unchanged_{k}"] = 1 - len(changed) / len(everyone)
        found[f"edit_distance_{k}"] = texts.mean(
            [texts.edit_distance(a, b) for a, b in zip(before, ys, strict=True)]
        )
    return found


def _rate(judge: Judge, documents: Sequence[Document], a: Sequence[str], b: Sequence[str]) -> float:
    """The mean of the verdicts there are; NaN where there is none."""
    if not documents:
        return float("nan")
    said = judge.judge([document.prompt for document in documents], a, b).probabilities
    known = said[~np.isnan(said)]
    return float(known.mean()) if len(known) else float("nan")
