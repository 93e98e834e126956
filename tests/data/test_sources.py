"""One data set in every kind of file, and the recipes' schemas, on small local copies."""

import gzip
import importlib
import json
import sys

import pyarrow
import pytest
from array_record.python import array_record_module
from pyarrow import parquet

from srpo_jax.data import document_sets, records, sources
from srpo_jax.data.records import Message, Pair
from srpo_jax.runtime.errors import UserError

ROWS = [
    {"prompt": "Is water wet?", "chosen": "Yes.", "rejected": "Ω 漢字?"},
    {"prompt": "And fire?", "chosen": "No.", "rejected": "Ask it."},
]
PAIRS = [Pair(**row) for row in ROWS]


def lines(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def zipped(path):
    with gzip.open(path, "wt") as out:
        out.write("".join(json.dumps(row) + "\n" for row in ROWS))


def table(path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def array_record(path):
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for row in ROWS:
        writer.write(json.dumps(row).encode())
    writer.close()


KINDS = {"a.jsonl": lines, "a.jsonl.gz": zipped, "a.parquet": table, "a.array_record": array_record}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_holds_the_same_pairs(name, tmp_path):
    KINDS[name](tmp_path / name)
    assert records.read_pairs(tmp_path / name) == PAIRS
    assert [pair.line for pair in records.read_pairs(tmp_path / name)] == [1, 2]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("a.jsonl", "a.jsonl:3"),
        ("a.jsonl.gz", "a.jsonl.gz:3"),
        ("a.json", "a.json, record 3"),
        ("a.parquet", "a.parquet, record 3"),
        ("a.array_record", "a.array_record, record 3"),
    ],
)
def test_a_number_says_whether_it_counts_lines_or_records(name, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(globals(), "ROWS", [*ROWS, ROWS[0] | {"chosen": str([{"role": "a"}])}])
    KINDS.get(name, lambda path: path.write_text(json.dumps(ROWS, indent=1)))(tmp_path / name)
    with pytest.raises(UserError, match=rf"^{place}: 'chosen' is a text that holds mess"):
        records.read_pairs(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.parquet", "is cut off or no Parquet file"),
        ("a.array_record", "is no array_record file"),
        ("a.jsonl", "not JSON"),
    ],
)
def test_what_is_no_such_file_is_named(name, message, tmp_path):
    (tmp_path / name).write_text("nothing of the kind" * 8000)
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        records.read_pairs(tmp_path / name)


def test_tfds_reads_texts_and_lists_of_dicts(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    messages = {"role": [b"user", b"assistant"], "content": [b"Hello", b"Good morning"]}
    monkeypatch.setattr(tfds, "data_source", lambda name, split: [{"messages": messages}])
    (pair,) = records.read_pairs("tfds:made_up", rejected=False)
    assert pair == Pair((Message("user", "Hello"),), "Good morning", every_turn=True)


def test_tfds_that_is_not_there_is_one_sentence():
    with pytest.raises(UserError, match=r"tfds:no_such_data_set\[train\] cannot be read"):
        records.read_pairs("tfds:no_such_data_set")


def test_datasets_on_disk_and_hub_need_their_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for source in (tmp_path, "hub:owner/name"):
        with pytest.raises(UserError, match="needs the package datasets: pip install datasets"):
            records.read_pairs(source)


def test_datasets_on_disk(tmp_path):
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("datasets is an extra: install srpo_jax[data]")
    import datasets

    both = datasets.DatasetDict({"train_prefs": datasets.Dataset.from_list(ROWS)})
    both.save_to_disk(str(tmp_path / "saved"))
    assert records.read_pairs(tmp_path / "saved", split="train_prefs") == PAIRS
    with pytest.raises(UserError, match=r"no split 'train' .*: it has train_prefs"):
        records.read_pairs(tmp_path / "saved")


def test_several_files_are_read_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        lines(tmp_path / f"part-0000{i}-of-00002.jsonl")
    table(tmp_path / "b.parquet")
    for source in ("*.jsonl", "part-00000-of-00002.jsonl, part-00001-of-00002.jsonl"):
        pairs = records.read_pairs(source)
        assert pairs == PAIRS * 2
        assert [pair.line for pair in pairs] == [1, 2, 1, 2]
        assert {pair.at for pair in pairs} == {f"part-0000{i}-of-00002.jsonl:" for i in range(2)}
    assert records.read_pairs(tmp_path) == PAIRS * 3
    (tmp_path / "part-00001-of-00002.jsonl").unlink()
    with pytest.raises(UserError, match=r"\*\.jsonl: 1 of 2 shards of part are there"):
        records.read_pairs("*.jsonl")
    with pytest.raises(UserError, match=r"no file at c\.jsonl, one of the list"):
        records.read_pairs("b.parquet,c.jsonl")
    with pytest.raises(UserError, match=r"no pairs at none-\*"):
        records.read_pairs("none-*")
    with pytest.raises(UserError, match=r"b\.parquet is named twice by \*\.parquet,b\.parquet"):
        records.read_pairs("*.parquet,b.parquet")
    with pytest.raises(UserError, match=r"/b\.parquet is named twice by b\.parquet,/"):
        records.read_pairs(f"b.parquet,{tmp_path}/b.parquet")
    (tmp_path / "others.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(UserError, match=r"others.* all files of a run are read alike"):
        records.read_pairs("b.parquet,others.jsonl")


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("train_prefs-00000-of-00001.jsonl", "test_prefs-00000-of-00001.jsonl"),
        ("Train-1.jsonl", "dev.jsonl"),
    ],
)
def test_a_folder_of_several_splits_is_not_read_as_one(names, tmp_path):
    """A data set as the hub keeps it: its test pairs would be trained on."""
    for name in names:
        lines(tmp_path / name)
    begin = names[0].split(".")[0].split("-")[0]
    with pytest.raises(
        UserError, match=rf"of several splits \(.*train.*e\.g\. .*/{begin}\*$"
    ) as error:
        records.read_pairs(tmp_path)
    assert records.read_pairs(str(error.value).split()[-1]) == PAIRS


def test_a_folder_of_parts_is_one_split(tmp_path):
    for name in ("train-1.jsonl", "train_b.jsonl", "testimony.jsonl", "more.jsonl"):
        lines(tmp_path / name)
    assert records.read_pairs(tmp_path) == PAIRS * 4


class Hub:
    """Stands for `datasets`: knows one data set, whose newest revision is a program."""

    DatasetDict = dict

    @staticmethod
    def load_dataset(path, config, revision):
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found name.py")
        assert (path, config, revision) == ("owner/name", "some", "refs/convert/parquet")
        return {"train": ROWS}


def test_a_revision_of_the_hub(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", Hub)
    with pytest.raises(UserError, match=r"hub:owner/name:some cannot be loaded: .*: hub:") as error:
        records.read_pairs("hub:owner/name:some")
    (instead,) = [word for word in str(error.value).split() if "@" in word]
    assert records.read_pairs(instead) == PAIRS


@pytest.mark.parametrize(
    ("name", "begin"),
    [("a.json", b"\xef\xbb\xbf["), ("a.json", b"\n\n["), ("a.jsonl", b"[\n")],
)
def test_a_list_behind_what_editors_put_before_it(name, begin, tmp_path):
    content = b",\n".join(json.dumps(row).encode() for row in ROWS)
    (tmp_path / name).write_bytes(begin + content + b"]")
    (tmp_path / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07")
    assert records.read_pairs(tmp_path) == PAIRS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{\n "data": []\n}', "is one JSON object over several lines: make it a list"),
        (b"\x1f\x8b\x08", r"is a gzip file: give it a name that ends in \.gz"),
    ],
)
def test_a_file_of_another_form_is_told_what_it_is(content, said, tmp_path):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json {said}"):
        records.read_pairs(tmp_path / "a.json")


def test_a_file_that_is_cut_short(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    zipped(path)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(
        UserError, match=r"a\.jsonl\.gz is cut short or no gzip file, behind line \d"
    ):
        records.read_pairs(path)
    path.write_bytes(b"{}")
    with pytest.raises(UserError, match=r"a\.jsonl\.gz is cut short or no gzip file"):
        records.read_pairs(path)


def test_json_that_is_nested_without_end(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1: JSON that is nested too deeply"):
        records.read_pairs(tmp_path / "a.jsonl")


def test_a_file_of_one_list_and_one_from_windows(tmp_path):
    for indent in (None, 1):
        (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=indent))
        pairs = records.read_pairs(tmp_path / "a.json")
        assert pairs == PAIRS
        assert [pair.line for pair in pairs] == [1, 2]
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1)[:-9])
    with pytest.raises(UserError, match=r"a\.json: not JSON \(.* at line 1\d, column"):
        records.read_pairs(tmp_path / "a.json")
    lines(tmp_path / "b.jsonl")
    text = (tmp_path / "b.jsonl").read_text().replace("\n", "\r\n")
    (tmp_path / "b.jsonl").write_text(text, encoding="utf-8-sig", newline="")
    assert records.read_pairs(tmp_path / "b.jsonl") == PAIRS


def test_what_cannot_be_read_is_refused_for_its_reason(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"n": ' + "9" * 5000 + "}\n")
    with pytest.raises(UserError, match=r"a\.jsonl:1: JSON that cannot be read"):
        records.read_pairs(tmp_path / "a.jsonl")
    for name in ("a.csv", "a.jsonl.zst"):
        (tmp_path / name).write_text("prompt,chosen")
        with pytest.raises(UserError, match=rf"{name} is of a kind that is not read: .*\.parquet"):
            records.read_pairs(tmp_path / name)


def test_a_path_that_is_missing():
    with pytest.raises(UserError, match=r"no pairs at nowhere.jsonl: set config.data.pairs"):
        list(sources.read("nowhere.jsonl"))


# --- recipes ------------------------------------------------------------------------------------

POST = {"subreddit": "r/AskDocs", "title": "My knee", "post": "It hurts.", "id": "t3_1"}
SCHEMAS = {
    "tldr_sft": (
        {**POST, "summary": "A knee."},
        Pair("SUBREDDIT: r/AskDocs\nTITLE: My knee\nPOST: It hurts.", "A knee."),
    ),
    "tldr": (
        {
            "info": POST,
            "summaries": [
                {"text": " A knee.", "policy": "sup1"},
                {"text": " It hurts.", "policy": "ref"},
            ],
            "choice": 1,
            "worker": "x",
        },
        Pair("SUBREDDIT: r/AskDocs\nTITLE: My knee\nPOST: It hurts.", " It hurts.", " A knee."),
    ),
    "xsum": (
        {"document": "A long article.", "summary": "An article.", "id": "1"},
        Pair("A long article.", "An article."),
    ),
    "ultrafeedback": (
        {
            "prompt": "Hi",
            "prompt_id": "1",
            "chosen": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}],
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ],
            "score_chosen": 9.0,
            "score_rejected": 2.0,
        },
        Pair((Message("user", "Hi"),), "Hello", "No"),
    ),
    "hh_rlhf": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: Because.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: No.",
        },
        Pair(
            (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")),
            "Because.",
            "No.",
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_recipe_reads_its_data_set(name, tmp_path):
    record, pair = SCHEMAS[name]
    config = importlib.import_module(f"configs.{name}").get_config()
    path = tmp_path / "copy.jsonl"
    path.write_text(json.dumps(record) + "\n")
    read = records.read_pairs(
        path,
        format=config.data.format,
        split=config.data.split,
        fields=config.data.fields,
        rejected=config.objective.name != "sft",
    )
    assert read == [pair]


def test_posts_are_put_alike_for_sft_preferences_and_evaluation():
    """What SFT has taught under one prompt says little of another."""
    sft, srpo = (
        importlib.import_module(f"configs.{name}").get_config() for name in ("tldr_sft", "tldr")
    )
    assert SCHEMAS["tldr_sft"][1].prompt == SCHEMAS["tldr"][1].prompt
    assert sft.data.template == srpo.data.template
    assert sft.data.pairs == document_sets.RECIPES["tldr"].source


def test_dialogues_that_part_early_are_left_out_and_counted(tmp_path, capsys):
    good = SCHEMAS["hh_rlhf"][0]
    early = {**good, "rejected": good["rejected"].replace("Yes?", "Hm.")}
    path = tmp_path / "copy.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (early, good, early)))
    assert len(records.read_pairs(path, format="dialogue")) == 1
    assert "2 records left out; the first, " in (said := capsys.readouterr().err)
    assert "copy.jsonl:1: chosen and rejected differ before" in said


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"messages": [{"role": "user", "content": "Hi"}]},
            "does not end with what the assistant says",
        ),
        (
            {"messages": [{"role": "robot", "content": "Hi"}]},
            "a message has a 'content' and a 'role'",
        ),
        (
            {"prompt": [{"role": "assistant", "content": "a"}], "chosen": "b", "rejected": "c"},
            "wait",
        ),
        ({"prompt": "a", "chosen": [{"role": "user", "content": "b"}]}, "'chosen' does not end"),
    ],
)
def test_conversations_that_make_no_sense_are_named(record, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(UserError, match=rf"a\.jsonl:1: .*{message}"):
        records.read_pairs(path)


def test_fields_that_are_not_there_are_named(tmp_path):
    lines(tmp_path / "a.jsonl")
    with pytest.raises(
        UserError, match=r"no 'document' \(config.data.fields\): it has chosen, prompt"
    ):
        records.read_pairs(tmp_path / "a.jsonl", fields=("prompt=document",))
    with pytest.raises(UserError, match="'prompt' is not 'ours=theirs'"):
        records.read_pairs(tmp_path / "a.jsonl", fields=("prompt",))
    with pytest.raises(
        UserError, match=r"format='csv' is none of pairs, summarize, tldr, dialogue"
    ):
        records.read_pairs(tmp_path / "a.jsonl", format="csv")


@pytest.mark.parametrize("name", ["pairs.pkl", "pairs.pt", "gs://bucket/pairs.pickle"])
def test_a_pickle_is_refused_by_name(name):
    with pytest.raises(UserError, match=r"\.pairs=.* is a pickle, which may run any code"):
        list(sources.read(name))
