import numpy as np
import pytest

from srpo_jax.data.documents import Document
from srpo_jax.judges import features

TEXT = "The violet copper is a small butterfly. It lives in wet meadows of Europe and is now rare."
SENTENCES = [
    "species of beetle in the family of leaf beetles",
    "genus of plants in the family of grasses",
    "species of bird of the wet forests of brazil",
] * 3


@pytest.fixture(scope="module")
def language() -> features.Language:
    return features.Language(sentence.split() for sentence in SENTENCES)


def value(language: features.Language, name: str, summary: str, prompt: str = TEXT) -> float:
    measured = features.measure(language, prompt, summary)
    assert measured.shape == (len(features.NAMES),)
    return float(measured[features.NAMES.index(name)])


def test_text_without_the_aspect():
    assert features.text_of("A text.\n\nFocus: outcome") == "A text."
    assert features.text_of("Focus: a text.\n\nAnd more.") == "Focus: a text.\n\nAnd more."


def test_words_and_sentences():
    assert features.words_of("Well-known «U.S.» don’t, 3.5!") == [
        "well-known",
        "u.s",
        "don’t",
        "3.5",
    ]
    assert features.sentences_of("One of 3.5 m. Two? (Three.)") == [
        "One of 3.5 m.",
        "Two?",
        "(Three.)",
    ]


def test_language_prefers_words_in_order(language):
    straight = value(language, "fluency", "species of plants in the family of grasses")
    assert straight > value(language, "fluency", "in family of plants grasses the species of") + 0.3


def test_language_knows_an_end(language):
    assert value(language, "ending", "genus of plants in the family of grasses") > 0
    assert value(language, "ending", "genus of plants in the") < 0


def test_probabilities_of_the_language_sum_to_one():
    language = features.Language(sentence.split() for sentence in SENTENCES * 30)
    vocabulary = {entry[-1] for entry in language._counts}
    for context in ((), ("of",), ("family", "of"), ("of", "unseen")):
        total = sum(language._probability(context, token) for token in vocabulary)
        assert total == pytest.approx(1, abs=0.01)  # what is left is for words never seen


def test_documents_of_the_language_give_golds_and_sentences():
    document = Document("d", TEXT + "\n\nFocus: outcome", "Rare European butterfly", "train")
    learned = features.learn_language([document])
    assert learned._counts[("rare", "european", "butterfly")] == 1
    assert learned._counts[("<start>", "<start>", "it")] == 1
    assert ("focus",) not in learned._counts


@pytest.mark.parametrize(
    ("name", "summary", "expected"),
    [
        ("lead", "The violet copper was a butterfly", 0.5),
        ("lead", "A small butterfly", 0.0),
        ("copied run", "small butterfly. It", 0.0),
        ("copied run", "in wet meadows of Europe and", 1 / 3),
        ("copied run", TEXT, 1.0),
        ("copied share", "It lives in wet places", 2 / 3),
        ("grounded", "Butterflies living in towns", 1 / 3),
        ("repetition", "rare rare rare rare", 5 / 7),
        ("repetition", "rare small butterfly", 0.0),
        ("chatter", "The subject of this text is rare", 2 / 3),
        ("chatter", "Rare butterfly", 0.0),
        ("words", "Rare small butterfly", np.log(3)),
        ("words", "word " * 500, np.log(30)),
        ("too short", "Butterfly", np.log(4)),
        ("too short", "Rare European butterfly species", 0.0),
        ("too long", "word " * 500, 1.0),
        ("too long", "word " * 30, 0.0),
    ],
)
def test_value(language, name, summary, expected):
    assert value(language, name, summary) == pytest.approx(expected)


@pytest.mark.parametrize("summary", ["", "?!", "a", "word " * 300, "\n\n\n", "日本の蝶"])
def test_whatever_a_model_writes_has_finite_features(language, summary):
    assert np.isfinite(features.measure(language, TEXT, summary)).all()
