"""What the embedding judge reads off a text and a summary of it, similarity of meaning apart.

Every feature is bounded: past a point, more of it neither helps nor harms.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence, Set
from itertools import pairwise

import numpy as np

from srpo_jax.data.documents import Summarized

NAMES = (
    "fluency",
    "weakest link",
    "ending",
    "order",
    "function words",
    "telegram",
    "lead",
    "copied run",
    "grounded",
    "name",
    "foreign names",
    "numbers",
    "negation",
    "repetition",
    "chatter",
    "words",
    "too short",
    "too long",
)

# A line for each change of what is measured (here, by MiniLM or by the folds) since the weights were
# fitted: it makes another version of the judge, whose verdicts are not mixed with those of the earlier one.
CHANGES: tuple[str, ...] = ()

_FOCUS = re.compile(r"\n\nFocus: .*\Z")
_WORD = re.compile(r"\w+(?:['’.\-–]\w+)*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“(])")
_SUFFIXES = (
    *("ation", "ment", "ness", "ists", "ians", "able", "ical", "ious"),
    *("ing", "ion", "ist", "ian", "ity", "ish", "ese", "ous", "ive", "ful", "est", "ers"),
    *("ed", "ly", "er", "al", "ic", "an", "es", "or", "s"),
)
_KNOWN_WORDS = 4000
# Words that speak of the text or of the answer, in place of what the text is about.
_CHATTER = frozenset(
    (
        *("text", "document", "article", "passage", "subject", "topic", "question"),
        *("summary", "summarize", "summarizes", "overview", "description", "describes"),
        *("phrase", "sentence", "following", "discusses", "answer", "response"),
    )
)
FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "those", "its", "their", "his", "her", "our"),
        *("of", "in", "on", "at", "to", "for", "from", "by", "with", "as", "into", "over", "than"),
        *("between", "through", "during", "about", "under", "after", "before", "within"),
        *("and", "or", "but", "nor", "if", "while", "because", "so", "both", "also", "such"),
        *("is", "are", "was", "were", "be", "been", "being", "has", "have", "had", "do", "does"),
        *("can", "could", "may", "might", "will", "would", "should", "not", "no", "without"),
        *("it", "they", "we", "he", "she", "them", "which", "who", "whose", "when", "where", "how"),
    )
)
_NAME_END = re.compile(r"[,;:(]|\b(?:is|are|was|were|refers|has|have|can)\b")
_NEGATIONS = frozenset(("not", "no", "never", "without", "nor", "neither", "none", "cannot"))
_NUMBER, _PART = re.compile(r"\d+"), re.compile(r"\w+")
_START, _END = "<start>", "<end>"


def text_of(prompt: str) -> str:
    """The text to be summarised: `prompt` without a final line that names the aspect."""
    return _FOCUS.sub("", prompt)


def words_of(text: str) -> list[str]:
    """The words of `text`, in lower case, without punctuation."""
    return [word.lower() for word in _WORD.findall(text)]


def sentences_of(text: str) -> list[str]:
    return _SENTENCE.split(text)


def name_of(text: str) -> str:
    """The words that `text` opens with, up to its first verb or comma, six at most, less an article.

    In an encyclopedia they name what the text is about.
    """
    words = _NAME_END.split(text, maxsplit=1)[0].split()[:6]
    return " ".join(words[1:] if words[:1] in (["A"], ["An"], ["The"], ["In"]) else words)


class Language:
    """A trigram model of words, of the kind of rare words where a word is rare.

    Smoothed after Witten and Bell: a context seen with many different successors trusts the
    shorter context more. It is not there to know facts, only to tell text from a heap of words.
    """

    def __init__(self, sentences: Iterable[list[str]]) -> None:
        texts = list(sentences)
        counts = Counter(word for text in texts for word in text)
        self._known = {word for word, _ in counts.most_common(_KNOWN_WORDS)}
        self._counts: Counter[tuple[str, ...]] = Counter()
        for text in texts:
            tokens = self._tokens(text)
            self._counts.update(zip(tokens[2:], strict=True))
            self._counts.update(pairwise(tokens[1:]))
            self._counts.update(zip(tokens, tokens[1:], tokens[2:], strict=False))
        self._totals: dict[tuple[str, ...], int] = defaultdict(int)
        self._kinds: dict[tuple[str, ...], int] = defaultdict(int)
        for entry, count in self._counts.items():
            self._totals[entry[:-1]] += count
            self._kinds[entry[:-1]] += 1

    def gains(self, words: Sequence[str]) -> list[float]:
        """log p(word | two before) - log p(word), in nats, of each word and then of the end."""
        tokens = self._tokens(words)
        return [
            float(np.log(self._probability(tokens[i - 2 : i], tokens[i])))
            - float(np.log(self._probability((), tokens[i])))
            for i in range(2, len(tokens))
        ]

    def _tokens(self, words: Sequence[str]) -> tuple[str, ...]:
        return (_START, _START, *(self._token(word) for word in words), _END)

    def _token(self, word: str) -> str:
        return word if word in self._known else _kind(word)

    def _probability(self, context: tuple[str, ...], token: str) -> float:
        shorter = self._probability(context[1:], token) if context else 1e-4
        total = self._totals.get(context, 0)
        if not total:
            return shorter
        kinds = self._kinds[context]
        return (self._counts[(*context, token)] + kinds * shorter) / (total + kinds)


def _kind(word: str) -> str:
    """A name for all rare words of one kind: years, numbers, or one ending."""
    if any(letter.isdigit() for letter in word):
        return "<year>" if re.fullmatch(r"1\d\d\d|20\d\d", word) else "<number>"
    return f"<-{next((ending for ending in _SUFFIXES if word.endswith(ending)), '')}>"


def learn_language(documents: Iterable[Summarized]) -> Language:
    """The language of the golds and of the sentences of `documents`."""
    texts: dict[str, None] = {}  # a dict and not a set: the order must not change
    for document in documents:
        texts[document.gold] = None
        texts.update(dict.fromkeys(sentences_of(text_of(document.prompt))))
    return Language(words_of(text) for text in texts)


def measure(language: Language, prompt: str, summary: str) -> np.ndarray:
    """The features [len(NAMES)] float64 of `summary` as a summary of `prompt`.

    fluency, weakest link: mean and lowest `Language.gains` of its words; ending: that of its end.
    order: fluency less that of the same words in two other orders.
    function words: their share, up to a half. telegram: length of the longest stretch without one, 0 up
    to 4 words, 1 from 10.
    lead: share of it that is the text's own beginning. copied run: length of the longest passage
    in both, 0 up to 3 words, 1 from 12.
    grounded: share of its longer words that the text has, by their first five letters, up to a half: a
    heap of the text's own words has no more of it than a summary.
    name: share of its longer words that are in the text's name (see `name_of`). foreign names: number of
    its capitalised words, but the first, that the text has not, 1 from 2. numbers: the same of its numbers.
    negation: number of its negations of which the text knows nothing, 1 from 2: none of the longer words
    that come next follows a negation there.
    repetition: share of its bigrams and longer words that it said before.
    chatter: number of words that speak of the text itself and are not in it, 1 from 3.
    words, too short, too long: logarithm of the number of words up to 30, what 4 exceeds it by,
    what it exceeds 30 by (at most a factor e).
    """
    text = text_of(prompt)
    source, words = words_of(text), words_of(summary)
    count = len(words)
    gains = language.gains(words)
    inner = gains[:-1] or [-3.0]
    return np.array(
        [
            np.clip(np.mean(inner), -3, 3),
            np.clip(min(inner), -4, 0),
            np.clip(gains[-1], -3, 3),
            _gain_by_order(language, words, float(np.mean(inner))),
            min(sum(word in FUNCTION_WORDS for word in words) / max(count, 1), 0.5),
            np.clip((_longest_bare(words) - 4) / 6, 0, 1),
            _shared_start(source, words) / max(count, 1),
            np.clip((_longest_run(source, words) - 3) / 9, 0, 1),
            min(_share(_stems(words), set(_stems(source))), 0.5),
            _share(_stems(words), set(_stems(words_of(name_of(text))))),
            min(_foreign_names(source, summary), 2) / 2,
            min(len(set(_NUMBER.findall(summary)) - set(_NUMBER.findall(text))), 2) / 2,
            min(_unmade_negations(source, words), 2) / 2,
            _repeated(words),
            min(len(_CHATTER.intersection(words) - set(source)), 3) / 3,
            np.log(np.clip(count, 1, 30)),
            np.log(4 / np.clip(count, 0.5, 4)),
            np.log(np.clip(count / 30, 1, np.e)),
        ]
    )


def _gain_by_order(language: Language, words: Sequence[str], fluency: float) -> float:
    """fluency less its mean over `words` backwards and every other word first, in [-2, 2]."""
    if len(words) < 2:
        return 0.0
    others = (words[::-1], [*words[::2], *words[1::2]])
    by_chance = np.mean([np.mean(language.gains(other)[:-1]) for other in others])
    return float(np.clip(fluency - by_chance, -2, 2))


def _longest_bare(words: Sequence[str]) -> int:
    """Length of the longest run of words that are no function words."""
    stretches = itertools.groupby(words, FUNCTION_WORDS.__contains__)
    return max((len(list(run)) for is_function, run in stretches if not is_function), default=0)


def _foreign_names(source: Sequence[str], summary: str) -> int:
    """Capitalised words of `summary`, but its first, that `source` lacks, by their first four letters."""
    known = {part[:4] for word in source for part in _PART.findall(word)}
    words = _PART.findall(summary)[1:]
    return sum(w[0].isupper() and len(w) > 2 and w[:4].lower() not in known for w in words)


def _unmade_negations(source: Sequence[str], words: Sequence[str]) -> int:
    """Negations in `words` whose next stems do not follow a negation in `source`."""
    made = {stem for denied in _denied(source) for stem in denied}
    return sum(made.isdisjoint(denied) for denied in _denied(words))


def _denied(words: Sequence[str]) -> list[list[str]]:
    """The stems of the four words behind each negation."""
    negations = [i for i, w in enumerate(words) if w in _NEGATIONS or w.endswith(("n't", "n’t"))]
    return [_stems(words[i + 1 : i + 5]) for i in negations]


def _stems(words: Sequence[str]) -> list[str]:
    return [word[:5] for word in words if len(word) > 3]


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def _share(items: Sequence[object], of: Set[object]) -> float:
    return sum(item in of for item in items) / len(items) if items else 0.0


def _shared_start(source: Sequence[str], words: Sequence[str]) -> int:
    pairs = zip(source, words, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(source), len(words)))


def _longest_run(source: Sequence[str], words: Sequence[str]) -> int:
    """Length of the longest run of words that both have."""
    longest, before = 0, [0] * (len(source) + 1)
    for word in words:
        now = [0] * (len(source) + 1)
        for i, other in enumerate(source):
            if word == other:
                now[i + 1] = before[i] + 1
        longest, before = max(longest, max(now)), now
    return longest


def _repeated(words: Sequence[str]) -> float:
    items: list[object] = [*_ngrams(words, 2), *_stems(words)]
    return 1 - len(set(items)) / len(items) if items else 0.0
