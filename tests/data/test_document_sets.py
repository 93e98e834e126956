"""Documents from anywhere: the recipes' public schemas on small local copies, and what is refused."""

import dataclasses
import json

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import RECIPES, DocumentSet
from srpo_jax.data.records import Message
from srpo_jax.runtime.errors import UserError

POST = "SUBREDDIT: AskReddit\nTITLE: A cat\nPOST: It sat."
INFO = {"id": "1", "subreddit": "AskReddit", "title": "A cat", "post": "It sat."}
# recipe -> (a record as the hub has it, the document's id, prompt and gold)
SCHEMAS = {
    "tldr": (
        {
            "id": "t3_1",
            "subreddit": "AskReddit",
            "title": "A cat",
            "post": "It sat.",
            "summary": "Sat",
        },
        ("t3_1", POST, "Sat"),
    ),
    "xsum": (
        {"document": "News came.", "summary": "News", "id": "35232142"},
        ("35232142", "News came.", "News"),
    ),
    "ultrafeedback": (
        {
            "prompt": "Why?",
            "prompt_id": "f0e3",
            "chosen": [
                {"content": "Why?", "role": "user"},
                {"content": "So.", "role": "assistant"},
            ],
            "rejected": [],
            "messages": [],
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
        ("f0e3", "Why?", None),
    ),
    "alpaca_eval": (
        {"dataset": "helpful_base", "instruction": "Sing", "output": "La", "generator": "davinci"},
        (None, "Sing", "La"),
    ),
    "arena_hard": (
        {"question_id": "328c", "category": "a", "cluster": "b", "turns": [{"content": "Code it"}]},
        ("328c", "Code it", None),
    ),
}


def write(path, records):
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(source, **said):
    (one,) = document_sets.resolve([DocumentSet(str(source), **said)], "test")
    return document_sets.read(one)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_recipes_read_the_public_schemas(name, suffix, tmp_path):
    record, (identifier, prompt, gold) = SCHEMAS[name]
    path = write(tmp_path / f"a.{suffix}", [record])
    (document,) = document_sets.read(dataclasses.replace(RECIPES[name], source=path))
    assert (document.prompt, document.gold) == (prompt, gold)
    assert document.id == identifier or (identifier is None and len(document.id) == 16)


@pytest.mark.parametrize(
    "record",
    [
        {"info": INFO, "summary": {"text": "Sat"}},
        {"prompt": f"{POST}\nTL;DR:", "completion": " Sat"},
        {"prompt": f"{POST}\nTL;DR:", "label": "Sat"},
    ],
)  # fmt: skip
def test_tldr_in_its_other_copies(record, tmp_path):
    (document,) = read(write(tmp_path / "a.jsonl", [record]), format="tldr")
    assert (document.prompt, (document.gold or "").strip()) == (POST, "Sat")


def test_conversations_and_the_formats_of_training(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    (document,) = read(write(tmp_path / "a.jsonl", [{"messages": turns}]))
    assert (document.prompt, document.gold) == ((Message("user", "Hi"),), "Ho")
    assert document.text == "Hi"
    pair = {"prompt": "Is it?", "chosen": "Yes", "rejected": "No"}
    (document,) = read(write(tmp_path / "b.jsonl", [pair]), format="pairs")
    assert (document.prompt, document.gold) == ("Is it?", "Yes")
    spoken = {name: f"\n\nHuman: A\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    (document,) = read(write(tmp_path / "c.jsonl", [spoken]), format="dialogue")
    assert (document.prompt, document.gold) == ((Message("user", "A"),), "chosen")


def test_a_prompt_of_several_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"article": "One.", "aspect": "who", "id": 3}])
    (document,) = read(path, text="{article}\n\nFocus: {aspect}")
    assert (document.id, document.prompt, document.gold) == ("3", "One.\n\nFocus: who", None)
    with pytest.raises(UserError, match=r"a\.jsonl:1: the text '\{title\}' cannot be made of it"):
        read(path, text="{title}")


def test_a_directory_of_datasets_has_splits(tmp_path):
    rows = datasets.Dataset.from_list([{"prompt": "p", "gold": "g"}])
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "d"))
    assert read(tmp_path / "d")[0].gold == "g"
    with pytest.raises(UserError, match=r"no split 'dev' \(config.evaluate.split\): it has test"):
        read(tmp_path / "d", split="dev")


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([{"prompt": 3}], "a.jsonl:1: 'prompt' is missing or not a text"),
        ([{"prompt": "a"}, {"gold": "b"}], "a.jsonl:2: 'prompt' is missing"),
        ([{"prompt": "a", "gold": 1}], "a.jsonl:1: 'gold' is not a text"),
        ([{"prompt": "a", "id": 1.5}], "'id' is neither a text nor a whole number"),
        ([{"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"}], "a.jsonl:2: the id '1' is that of .*:1"),
        ([{"prompt": [{"role": "assistant", "content": "b"}]}], "does not wait for the assistant"),
        ([{"prompt": "\ud800"}], "half of a character"),
        ([["prompt"]], "a document is a JSON object, not list"),
        ([{"prompt": " "}], "holds no documents"),
    ],
)  # fmt: skip
def test_refusals_name_file_and_record(records, said, tmp_path):
    with pytest.raises(UserError, match=said):
        read(write(tmp_path / "a.jsonl", records))


def test_what_says_the_same_twice_is_read_once_and_named(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}])
    assert [d.prompt for d in read(path)] == ["a", "b"]
    assert f"1 left out, {path}:3: the same as {path}:1" in capsys.readouterr().err


def test_a_missing_source_and_a_missing_field_are_named(tmp_path):
    with pytest.raises(
        UserError, match=r"no documents at nowhere: set config\.evaluate\.documents"
    ):
        read("nowhere")
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(UserError, match=r"there is no 'body' \(fields\): it has text"):
        read(path, fields=("prompt=body",))


def test_entries_become_sets_with_names_roles_and_splits():
    entries = ["tldr", "data/news.jsonl.gz", DocumentSet("xsum", role="in", template="plain")]
    tldr, news, xsum = document_sets.resolve(entries, "validation")
    assert (tldr.name, tldr.role, tldr.split, tldr.format) == ("tldr", "in", "validation", "tldr")
    assert (news.name, news.role, news.source) == ("news", "out", "data/news.jsonl.gz")
    assert (xsum.role, xsum.template, xsum.fields) == ("in", "plain", RECIPES["xsum"].fields)
    assert document_sets.resolve(["arena_hard"], "test")[0].split == "train"
    with pytest.raises(UserError, match="two sets of documents are called 'tldr'"):
        document_sets.resolve(["tldr", "a/tldr.jsonl"], "test")


def test_documents_come_back_from_json():
    for document in (
        document_sets.Document("1", "p", None),
        document_sets.Document("2", (Message("user", "p"),), "g"),
        document_sets.Document("3", "p", "g", about="a paper"),
    ):
        assert (
            document_sets.from_json(json.loads(json.dumps(document_sets.to_json(document))))
            == document
        )


def test_a_record_says_what_it_is_about(tmp_path):
    path = write(tmp_path / "papers.jsonl", [{"abstract": "We sum.", "aspect": "outcome", "n": 7}])

    def read(*fields):
        text = "{abstract} Focus: {aspect}"
        return document_sets.read(DocumentSet(str(path), text=text, fields=fields))[0]

    assert [read(*fields).about for fields in ((), ("about=abstract",), ("about=n",))] == [
        *("", "We sum.", "7")
    ]
    assert read("about=abstract").prompt == "We sum. Focus: outcome"
    with pytest.raises(UserError, match=r"papers\.jsonl:1: there is no 'paper'"):
        read("about=paper")


@pytest.mark.parametrize(
    "source",
    [
        "hub:owner/news:small@refs/convert/parquet",
        "hub:owner/news",
        "tfds:news/3.0.0",
        "a/news.jsonl.gz",
    ],
)
def test_a_set_is_named_by_its_source(source):
    (one,) = document_sets.resolve([source], "test")
    assert one.name == "news"
