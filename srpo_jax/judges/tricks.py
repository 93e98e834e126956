"""Texts that are no summaries and that a judge can be fooled by: each kind a damage (see `validation`).

They are made from the document and its gold by rules, without a model, and are the same for the same
documents. Those of HELD_OUT nothing is ever fitted to: how a judge does on them says what it does with
tricks that nobody thought of.
"""

from __future__ import annotations

import functools
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from srpo_jax.data.documents import Summarized
from srpo_jax.judges.features import FUNCTION_WORDS, name_of, sentences_of, text_of, words_of

_DIGITS = re.compile(r"\d+")
_KEYWORDS = 10

# (documents, index of one) -> the gold of that one damaged, or another text that is worse; None for none
Damage = Callable[[Sequence[Summarized], int], str | None]


def keywords(documents: Sequence[Summarized], index: int) -> str | None:
    """The ten words that tell this text from the other documents' (tf-idf), the strongest first."""
    return " ".join(_ranked(documents, index)[:_KEYWORDS]) or None


def keywords_in_order(documents: Sequence[Summarized], index: int) -> str | None:
    """The six strongest of them as they come in the text, with commas."""
    strongest = _ranked(documents, index)[:6]
    words = words_of(text_of(documents[index].prompt))
    return ", ".join(sorted(strongest, key=words.index)).capitalize() or None


def telegram(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold without its function words; None where it has none."""
    return _without_function_words(documents[index].gold)


def telegram_of_text(documents: Sequence[Summarized], index: int) -> str | None:
    """The first sentence without its function words, at most twelve words."""
    short = _without_function_words(sentences_of(text_of(documents[index].prompt))[0])
    return None if short is None else " ".join(short.split()[:12])


def negated(documents: Sequence[Summarized], index: int) -> str | None:
    """ "Not", then the gold."""
    gold = documents[index].gold
    return f"Not {gold[0].lower()}{gold[1:]}"


def negated_inside(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold with a "not" before one of its later words."""
    words = documents[index].gold.split()
    if len(words) < 2:
        return None
    place = random.Random(documents[index].id).randrange(1, len(words))
    return " ".join([*words[:place], "not", *words[place:]])


def other_digits(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold with every number changed to another as long; None where it has none."""
    generator = random.Random(documents[index].id)

    def changed(number: re.Match[str]) -> str:
        old, new = number.group(), number.group()
        while new == old:
            new = "".join(generator.choice("123456789") for _ in old)
        return new

    gold = documents[index].gold
    return _DIGITS.sub(changed, gold) if _DIGITS.search(gold) else None


def number_of_text(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold with a number changed to another number of the text; None where there is none."""
    document = documents[index]
    numbers = _DIGITS.findall(document.gold)
    others = [n for n in _DIGITS.findall(text_of(document.prompt)) if n not in numbers]
    if not numbers or not others:
        return None
    return document.gold.replace(numbers[0], random.Random(document.id).choice(others), 1)


def species_of_name(documents: Sequence[Summarized], index: int) -> str | None:
    """ "Species of" with the words that the text opens with, its name."""
    return f"Species of {name_of(text_of(documents[index].prompt))}"


def name_is(documents: Sequence[Summarized], index: int) -> str | None:
    """The text's name "is a", with its two strongest words."""
    name = name_of(text_of(documents[index].prompt))
    words = [word for word in _ranked(documents, index) if word not in words_of(name)]
    return f"{name} is a {' '.join(words[:2])}"


def phrase_of_keywords(documents: Sequence[Summarized], index: int) -> str | None:
    """ "A … of … and … in …", filled with the strongest words."""
    words = _ranked(documents, index)[:4]
    return "A {} of {} and {} in {}".format(*words) if len(words) == 4 else None


def another_phrase_of_keywords(documents: Sequence[Summarized], index: int) -> str | None:
    """ "The … … for … with …", filled with words that are among the ten strongest."""
    words = _ranked(documents, index)[:_KEYWORDS]
    if len(words) < 4:
        return None
    return "The {} {} for {} with {}".format(*random.Random(documents[index].id).sample(words, 4))


TRICKS: dict[str, Damage] = {
    "ten keywords": keywords,
    "gold without function words": telegram,
    '"Not" and the gold': negated,
    "gold with other digits": other_digits,
    '"Species of" and the name': species_of_name,
    "keywords in a phrase": phrase_of_keywords,
    "keywords in the text's order": keywords_in_order,
    "first sentence without function words": telegram_of_text,
    'gold with "not" inside': negated_inside,
    "gold with another number of the text": number_of_text,
    'the name, "is a" and keywords': name_is,
    "keywords in another phrase": another_phrase_of_keywords,
}

HELD_OUT = frozenset(
    (
        "keywords in the text's order",
        "first sentence without function words",
        'gold with "not" inside',
        "gold with another number of the text",
        'the name, "is a" and keywords',
        "keywords in another phrase",
    )
)


def _without_function_words(text: str) -> str | None:
    words = text.split()
    kept = [word for word in words if not FUNCTION_WORDS.issuperset(words_of(word))]
    return " ".join(kept) if kept and kept != words else None


def _ranked(documents: Sequence[Summarized], index: int) -> list[str]:
    """All words of a document but function words, by tf-idf among `documents`."""
    spread = _spread(tuple(document.prompt for document in documents))
    words = words_of(text_of(documents[index].prompt))
    counts = Counter(w for w in words if len(w) > 2 and w not in FUNCTION_WORDS)
    strength = {w: n * float(np.log(len(documents) / spread[w])) for w, n in counts.items()}
    return sorted(counts, key=lambda word: -strength[word])  # equals stay in the text's order


@functools.lru_cache(maxsize=4)
def _spread(prompts: tuple[str, ...]) -> Counter[str]:
    """In how many of the texts each word is."""
    return Counter(word for prompt in prompts for word in set(words_of(text_of(prompt))))
