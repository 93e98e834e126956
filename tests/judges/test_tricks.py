import pytest

from srpo_jax.data.documents import Document
from srpo_jax.judges.tricks import HELD_OUT, TRICKS

TEXTS = [
    "The violet copper is a small butterfly of 1817. Its caterpillars feed on bistort, not on grass.",
    "The zebra is an animal of Africa. In 1901 it was no horse.",
    "An organ is an instrument of churches. It has pipes.",
]
GOLDS = ["Butterfly of the meadows, found in 1758", "Animal of Africa", "Musical instrument"]
DOCUMENTS = [
    Document(f"s/{i}", text, gold, "validation")
    for i, (text, gold) in enumerate(zip(TEXTS, GOLDS, strict=True))
]


def test_half_of_the_kinds_are_held_out():
    assert set(TRICKS) > HELD_OUT
    assert 2 * len(HELD_OUT) == len(TRICKS)


@pytest.mark.parametrize("name", TRICKS)
def test_is_not_the_gold_and_the_same_each_time(name):
    texts = [TRICKS[name](DOCUMENTS, i) for i in range(3)]
    assert texts[0] is not None
    assert all(text != gold for text, gold in zip(texts, GOLDS, strict=True))
    assert texts == [TRICKS[name](DOCUMENTS, i) for i in range(3)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gold without function words", "Butterfly meadows, found 1758"),
        ('"Not" and the gold', "Not butterfly of the meadows, found in 1758"),
        ("gold with another number of the text", "Butterfly of the meadows, found in 1817"),
        ('"Species of" and the name', "Species of violet copper"),
        ("first sentence without function words", "violet copper small butterfly 1817."),
        ('the name, "is a" and keywords', "violet copper is a small butterfly"),
        ("keywords in a phrase", "A violet of copper and small in butterfly"),
        ("ten keywords", "violet copper small butterfly 1817 caterpillars feed bistort grass"),
    ],
)
def test_text(name, expected):
    assert TRICKS[name](DOCUMENTS, 0) == expected


def test_digits_change_into_as_many_others():
    changed = TRICKS["gold with other digits"](DOCUMENTS, 0)
    prefix, number = changed[:-4], changed[-4:]
    assert prefix == GOLDS[0][:-4]
    assert number.isdigit()
    assert number != "1758"


def test_not_stands_inside_the_gold():
    words = TRICKS['gold with "not" inside'](DOCUMENTS, 0).split()
    assert 0 < words.index("not") < len(words) - 1
    assert [word for word in words if word != "not"] == GOLDS[0].split()


def test_keywords_are_those_that_other_texts_lack():
    documents = [Document("s/0", "Common rare common.", "g", "")]
    documents += [Document(f"s/{i}", "Common word.", "g", "") for i in range(1, 4)]
    assert TRICKS["ten keywords"](documents, 0) == "rare common"


@pytest.mark.parametrize("name", ["gold with other digits", "gold without function words"])
def test_none_where_there_is_nothing_to_change(name):
    assert TRICKS[name](DOCUMENTS, 2) is None
