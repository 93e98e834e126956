import json
from collections import Counter

import pytest

from srpo_jax.data import assets, documents
from srpo_jax.runtime.errors import UserError

TEXT = "The violet copper is a small butterfly of the wet meadows of Europe and it is now rare " * 2
TEXT = TEXT.strip() + "."
PINNED = {
    "key 0": "train",
    "key 1": "train",
    "key 4": "validation",
    "key 5": "validation",
    "key 16": "test",
    "key 26": "test",
}


def test_split_is_fixed_and_in_proportion():
    # Pinned: another value would move documents that someone has trained on into the test split.
    assert [documents.split_of(key) for key in PINNED] == list(PINNED.values())
    counts = Counter(documents.split_of(str(i)) for i in range(5000))
    assert abs(counts["train"] / 5000 - 0.8) < 0.02
    assert abs(counts["test"] / 5000 - 0.1) < 0.015


@pytest.mark.parametrize(
    ("text", "gold", "reason"),
    [
        (TEXT, "Rare insect", None),
        (TEXT, "Insect", "gold empty or one word"),
        (TEXT, "", "gold empty or one word"),
        (TEXT, "Small  Butterfly", "gold copied from the text"),
        ("Too short.", "Some words", "text too short"),
        (TEXT * 20, "Some words", "text too long"),
        (TEXT.replace(" of ", " of  ", 1), "Some words", "text with holes"),
        (TEXT.replace(" wet", " , wet"), "Some words", "text with holes"),
        (TEXT.replace(" wet", " (, wet)"), "Some words", "text with holes"),
        (TEXT[:-1] + " denoted by", "Some words", "text with holes"),
        (TEXT, "Some\u2060 words", "unprintable characters"),
    ],
)
def test_fault(text, gold, reason):
    assert documents.fault(text, gold) == reason


def test_wikipedia_years_are_kept_only_where_the_text_has_them(tmp_path, monkeypatch):
    rows = {
        str(i): {"title": f"T{i}", "extract": extract, "description": "Danish poet (1885–1962)"}
        for i, extract in enumerate([TEXT, TEXT[:-1] + " since 1885 until 1962."])
    }
    (tmp_path / "w.json").write_text(json.dumps(rows))
    monkeypatch.setattr(assets, "fetch", lambda _: tmp_path / "w.json")
    found, dropped = documents.load_report("wikipedia")
    golds = {document.id: document.gold for document in found}
    assert golds == {"wikipedia/T0": "Danish poet", "wikipedia/T1": "Danish poet (1885–1962)"}
    assert not dropped


def test_aclsum_aspects_share_a_split_and_are_named_in_the_prompt(tmp_path, monkeypatch):
    sentence = "We show ( in 30 % of cases ) that `` parsing '' does n't need the parser 's help ."
    papers = [
        {
            "id": f"P{i}",
            "summary": {"challenge": "It was hard.", "approach": "They try. ", "outcome": "x"},
            "sentences": {"abstract": [sentence, sentence + " 1"]},
        }
        for i in range(30)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, papers)))
    monkeypatch.setattr(assets, "fetch", lambda _: tmp_path)
    found, dropped = documents.load_report("aclsum")
    assert dropped == {"gold empty or one word": 30}
    splits: dict[str, set[str]] = {}
    for document in found:
        splits.setdefault(document.id.split("/")[1], set()).add(document.split)
    assert len(splits) == 30
    assert all(len(names) == 1 for names in splits.values())
    prompt = next(document.prompt for document in found if document.id == "aclsum/P7/approach")
    plain = "We show (in 30% of cases) that \"parsing\" doesn't need the parser's help."
    assert prompt == f"{plain} {plain}\n\nFocus: approach"


@pytest.mark.parametrize(("name", "split"), [("tldr", "train"), ("aclsum", "dev")])
def test_unknown_names_are_refused(name, split):
    with pytest.raises(UserError, match=r"known are"):
        documents.load(name, split)


@pytest.mark.assets
@pytest.mark.parametrize(("name", "least"), [("wikipedia", 7500), ("aclsum", 700)])
def test_real_documents(name, least):
    splits = {split: documents.load(name, split) for split in documents.SPLITS}
    together = [document for split in splits.values() for document in split]
    assert len({document.id for document in together}) == len(together) >= least
    assert 0.07 * len(together) < len(splits["test"]) < 0.13 * len(together)


def test_what_documents_are_about():
    """Aspects of one paper, a prompt with two golds, and what a record names; else each its own."""
    assert documents.subject("aclsum/N10-1/outcome", "A.") == "aclsum/N10-1"
    assert (
        documents.subject("1", "A.") == documents.subject("2", "A.") != documents.subject("1", "B.")
    )
    assert documents.subject("1", "A.", "a") == documents.subject("2", "B.", "a")
    assert documents.subject("debian/a") != documents.subject("debian/b")
