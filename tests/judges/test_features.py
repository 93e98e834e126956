import numpy as np
import pytest

from srpo_jax.data.documents import Document, Summarized
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


def test_order_is_what_words_in_a_heap_lack(language):
    straight = value(language, "order", "species of plants in the family of grasses")
    assert straight > 0.3 > value(language, "order", "grasses of family the in plants of species")
    assert value(language, "order", "species") == 0


def test_negations_and_numbers_of_the_text_are_allowed(language):
    text = "It does not live in towns. In 1758 it was common."
    assert value(language, "negation", "Not in towns", text) == 0
    assert value(language, "negation", "Not common", text) == 0.5
    assert value(language, "numbers", "Common in 1758", text) == 0
    assert value(language, "numbers", "Common in 1759", text) == 0.5


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("The violet copper is small.", "violet copper"),
        ("In mathematics, a fractal is a shape.", "mathematics"),
        ("We ask one two three four five six questions.", "We ask one two three four"),
    ],
)
def test_name_that_a_text_opens_with(text, name):
    assert features.name_of(text) == name


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
        ("grounded", "Butterflies living in towns", 1 / 3),
        ("grounded", "wet meadows", 0.5),
        ("function words", "Species of beetle", 1 / 3),
        ("function words", "It is not of them", 0.5),
        ("telegram", "one two three four of five six", 0.0),
        ("telegram", "the one two three four five six seven", 0.5),
        ("name", "Copper of the north", 0.5),
        ("name", "Small butterfly", 0.0),
        ("foreign names", "Copper of Europe", 0.0),
        ("foreign names", "Copper of European Brazil", 0.5),
        ("numbers", "Found in 1758 and 1800", 1.0),
        ("numbers", "Rare butterfly", 0.0),
        ("negation", "Not rare butterfly", 0.5),
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


MEASURED = {  # as FEATURES names them, by features.CHANGES as they are
    "The violet copper is a small butterfly, not of 1758": [
        *(2.2404, -1.3863, 0.0, 2.0, 0.5, 0.0, 0.7, 0.4444, 0.5, 0.4, 0.0, 0.5, 0.5, 0.0, 0.0),
        *(2.3026, 0.0, 0.0),
    ],
    "Not a text about Brazil and Brazil Peru: small butterfly wet meadows Europe rare 12 copper violet "
    "small butterfly" + " of grasses" * 12: [
        *(0.091, -1.6219, 2.4802, 0.4757, 0.3721, 1.0, 0.0, 0.0, 0.3462, 0.0769, 1.0, 0.5, 0.5),
        *(0.5294, 0.3333, 3.4012, 0.0, 0.36),
    ],
    "Rare": [
        *(
            -1.6219,
            -1.6219,
            2.1157,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.5,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
            0.0,
        ),
        *(1.3863, 0.0),
    ],
}


def test_what_is_measured_stays_or_is_named_in_changes():
    """The judge's version is made of CHANGES, its verdicts of the code: where these numbers become others,
    a line goes into features.CHANGES, and they become the new ones here."""
    assert features.CHANGES == ()
    documents = [Summarized(str(i), TEXT, gold) for i, gold in enumerate(SENTENCES)]
    language = features.learn_language(documents)
    for summary, expected in MEASURED.items():
        found = features.measure(language, f"{TEXT}\n\nFocus: outcome", summary)
        np.testing.assert_allclose(found, expected, atol=1e-4)
