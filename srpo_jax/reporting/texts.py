"""Plain measures of a completion's text: words, and how much of it repeats."""

from collections.abc import Sequence

import numpy as np

NGRAM = 3  # words


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
    before, after = a.split(), b.split()
    longer = max(len(before), len(after), 1)
    if before == after or not before or not after:
        return 0.0 if before == after else 1.0
    # Hyyrö's (2003) form of Myers's algorithm: bit i of a number is row i of the table of costs, whose
    # columns are the words of b. Which rows cost one more (up) or one less (down) than the row above, as
    # much as their diagonal (level), one more (right) or one less (left) than in the column before.
    places: dict[str, int] = {}
    for i, word in enumerate(before):
        places[word] = places.get(word, 0) | 1 << i
    rows = (1 << len(before)) - 1
    last = 1 << (len(before) - 1)
    up, down, cost = rows, 0, len(before)
    for word in after:
        same = places.get(word, 0)
        level = (((same & up) + up) ^ up) | same | down
        right, left = down | ~(level | up), level & up
        cost += bool(right & last) - bool(left & last)
        right, left = right << 1 | 1, left << 1
        up, down = (left | ~(level | right)) & rows, right & level & rows
    return cost / longer


def edited(revisions: Sequence[str], k: int) -> float:
    """The edit distance of revision k from revision k - 1; 0 for k = 0."""
    return edit_distance(revisions[k - 1], revisions[k]) if k else 0.0


def mean(values: Sequence[float]) -> float:
    """The mean as a Python float."""
    return float(np.mean(values))
