"""Which of a document's samples meet, who is better, and what is learned from it.

First the candidates of each document meet as config.pairs.choose says; the judge is asked once for all of
them. Then the comparisons that teach little, or nothing, are left out, and counted.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from srpo_jax.config.programs import PairSettings
from srpo_jax.data import documents
from srpo_jax.data.documents import Document
from srpo_jax.data.records import Pair
from srpo_jax.judges.judge import Judge
from srpo_jax.reporting.texts import edit_distance

KEEP_PARTS = 1000  # resolution of config.pairs.keep


class Comparison(NamedTuple):
    """Completions a and b of a document, and the judge's P(a better than b); NaN for no verdict."""

    document: Document
    a: str
    b: str
    p: float = math.nan


@dataclasses.dataclass
class Counts:
    """Documents without two different candidates, comparisons left out by reason, and of those that are
    learned from the edits that the judge finds worse than their drafts, and the copies."""

    alike: int = 0
    no_verdict: int = 0
    too_far: int = 0
    too_close: int = 0
    ties: int = 0
    worse: int = 0
    kept: int = 0

    def __str__(self) -> str:
        said = (
            (self.alike, "documents left out (completions equal or empty, or no gold)"),
            (self.no_verdict, "comparisons without a verdict"),
            (self.too_far, "beyond config.pairs.max_distance"),
            (self.too_close, "within config.pairs.margin"),
            (self.ties, "ties, of which neither is better"),
            (self.worse, "edits worse than their drafts by the judge (config.pairs.edits='any')"),
            (self.kept, "drafts kept as they are"),
        )
        return "".join(f"; {number} {what}" for number, what in said if number)


def needs_judge(own: PairSettings) -> bool:
    """Whether anybody has to be asked who is better."""
    asked = own.goal == "preferences" or own.edits == "better" or own.choose == "extremes"
    return own.goal != "gold" and asked


def make(
    own: PairSettings,
    found: Sequence[tuple[Document, Sequence[str]]],
    judge: Judge | None,
) -> tuple[list[Pair], Counts]:
    """The pairs of documents and their samples, in the order of the documents.

    judge: None where `needs_judge` says so. Of goal improve, `rejected` is the draft and `chosen` its edit.
    """
    counts = Counts()
    meetings: list[Comparison] = []
    for document, texts in found:
        here = meet(own, document, texts)
        counts.alike += not here
        meetings += here
    if judge is not None and meetings:
        meetings = _judged(judge, meetings)
        counts.no_verdict = sum(math.isnan(one.p) for one in meetings)
        meetings = [one for one in meetings if not math.isnan(one.p)]
        if own.choose == "extremes":
            meetings = best_against_worst(meetings)
    near = [one for one in meetings if edit_distance(one.a, one.b) <= own.max_distance]
    counts.too_far = len(meetings) - len(near)
    clear = [one for one in near if not abs(one.p - 0.5) < own.margin]
    counts.too_close = len(near) - len(clear)
    one_is_better = own.labels == "hard" if own.goal == "preferences" else own.edits == "better"
    if one_is_better:
        decided = [one for one in clear if one.p != 0.5]
        counts.ties, clear = len(clear) - len(decided), decided
    if own.goal == "preferences":
        return [_preference(one, own.labels) for one in clear], counts
    return [_edit(one, own, counts) for one in clear], counts


def meet(own: PairSettings, document: Document, texts: Sequence[str]) -> list[Comparison]:
    """Who meets whom among a document's samples, equal and empty ones left out."""
    different = [text for text in dict.fromkeys(texts) if text]
    if own.choose == "gold":
        if document.gold is None:
            return []
        pairs = [(document.gold, text) for text in different if text != document.gold]
        if own.goal == "improve":  # the second is the edit
            pairs = [(text, gold) for gold, text in pairs]
    elif own.choose == "first":
        pairs = [(texts[0], text) for text in different if text != texts[0]] if texts[0] else []
    else:
        pairs = list(itertools.combinations(different, 2))
        if own.choose == "nearest" and pairs:
            pairs = [min(pairs, key=lambda pair: edit_distance(*pair))]
    return [Comparison(document, a, b) for a, b in pairs]


def best_against_worst(judged: Sequence[Comparison]) -> list[Comparison]:
    """Of each document the sample with the largest mean P of beating another, against the one with the
    smallest; of equals the one drawn first. Their P is the judge's; where it was silent on these two, those
    meet whose means lie farthest apart of the others."""
    chosen = []
    for _, group in itertools.groupby(judged, key=lambda one: one.document.id):
        here = list(group)
        won: dict[str, list[float]] = {}
        for one in here:
            won.setdefault(one.a, []).append(one.p)
            won.setdefault(one.b, []).append(1 - one.p)
        mean = {text: float(np.mean(ps)) for text, ps in won.items()}
        chosen.append(max(here, key=lambda one: abs(mean[one.a] - mean[one.b])))
    return chosen


def _judged(judge: Judge, meetings: Sequence[Comparison]) -> list[Comparison]:
    prompts = [one.document.prompt for one in meetings]
    said = judge.probabilities(prompts, [one.a for one in meetings], [one.b for one in meetings])
    return [one._replace(p=float(p)) for one, p in zip(meetings, said, strict=True)]


def _preference(one: Comparison, labels: str) -> Pair:
    w, l = (one.a, one.b) if one.p >= 0.5 else (one.b, one.a)
    return Pair(one.document.prompt, w, l, 1.0 if labels == "hard" else max(one.p, 1 - one.p))


def _edit(one: Comparison, own: PairSettings, counts: Counts) -> Pair:
    draft, edit = one.a, one.b
    if own.edits == "better" and one.p > 0.5:
        draft, edit = edit, draft
    # By a hash of the draft: the same ones on every machine, whatever else is left out.
    if documents.part(f"{one.document.id}\n{draft}", KEEP_PARTS) < own.keep * KEEP_PARTS:
        counts.kept += 1
        edit = draft
    elif own.edits == "any" and one.p > 0.5:  # not where nobody was asked
        counts.worse += 1
    return Pair(one.document.prompt, edit, draft)
