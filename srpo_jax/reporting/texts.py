"""Plain measures of a completion's text: words, how much of it repeats, and what it shares with another."""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import Levenshtein

NGRAM = 3  # words
_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> int:
    """The number of words, parted by white space."""
    return len(text.split())


def repetition(text: str, n: int = NGRAM) -> float:
    """The share of the text's n-grams of words that it has had before; 0 where it is shorter."""
    split = text.lower().split()
    grams = [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def unchanged(revisions: Sequence[str], k: int) -> bool:
    """Whether revision k is revision k - 1 word for word; never for k = 0."""
    return k > 0 and revisions[k] == revisions[k - 1]


def edit_distance(a: str, b: str) -> float:
    """Words to insert, delete or replace between a and b, over the words of the longer; 0 for equals."""
    return Levenshtein.normalized_distance(a.split(), b.split())


def edited(revisions: Sequence[str], k: int) -> float:
    """The edit distance of revision k from revision k - 1; 0 for k = 0."""
    return edit_distance(revisions[k - 1], revisions[k]) if k else 0.0


def bare(text: str) -> list[str]:
    """The runs of letters and digits, in lower case: words as overlap counts them."""
    return _WORD.findall(text.lower())


def overlap(a: str, b: str) -> float:
    """How many words two texts share: ROUGE-1's F1, in [0, 1]; 0 where one has none."""
    ours, theirs = bare(a), bare(b)
    shared = (Counter(ours) & Counter(theirs)).total()
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean as a Python float."""
    return float(np.mean(values))
