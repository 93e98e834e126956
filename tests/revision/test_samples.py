"""What is written stays: cut lines, other settings, and files of outputs."""

import json

import pytest

from srpo_jax.revision import samples
from srpo_jax.runtime.errors import UserError

HEADER = {"weights": "abc"}


def anything(records):
    return True


def test_a_cut_last_line_is_dropped_and_the_rest_goes_on(tmp_path):
    path = tmp_path / "a.jsonl"
    assert samples.resume(path, HEADER, anything) == []
    samples.append(path, [{"id": "1"}, {"id": "2"}])
    with path.open("a") as out:
        out.write('{"id": "3", "revi')  # kill -9
    assert samples.resume(path, HEADER, anything) == [{"id": "1"}, {"id": "2"}]
    samples.append(path, [{"id": "3"}])
    assert samples.read(path) == (HEADER, [{"id": "1"}, {"id": "2"}, {"id": "3"}])


def test_a_cut_header_is_begun_anew(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"wei')
    assert samples.resume(path, HEADER, anything) == []
    assert samples.read(path) == (HEADER, [])


def test_other_settings_are_set_aside_and_come_back(tmp_path):
    path = tmp_path / "a.jsonl"
    for weights in ("abc", "def", "ghi"):
        assert samples.resume(path, {"weights": weights}, anything) == []
        samples.append(path, [{"id": weights}])
    assert samples.resume(path, HEADER, anything) == [{"id": "abc"}]
    assert len(list(tmp_path.iterdir())) == 3
    assert samples.resume(path, HEADER, lambda records: not records) == []  # other documents
    assert samples.resume(path, {"weights": "def"}, anything) == [{"id": "def"}]


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_outputs_by_id(tmp_path, capsys):
    path = write(
        tmp_path / "a.jsonl",
        [{"id": 2, "output": "two"}, {"id": "1", "output": "one"}, {"id": "9", "output": "nine"}],
    )
    found = samples.outputs([path], "set", ["1", "2"], ["1", "2", "3"])
    assert found == [{"id": "1", "revisions": ["one"]}, {"id": "2", "revisions": ["two"]}]
    assert "1 outputs are for no document of set, '9'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"id": "1", "output": "a"}], "no output for 1 of 2 documents of set, '2'"),
        ([{"id": "3", "output": "a"}], "no output for 2 .*; it has 1 others, '3'"),
        ([{"id": "1"}], "a.jsonl:1: there is no 'output'"),
        ([{"output": "a"}], "a.jsonl:1: there is no 'id'"),
        ([{"id": "1", "output": "a"}] * 2, "a.jsonl:2: the document '1' is in .*:1 too"),
        ([{"id": "1", "output": "cut \ud83d"}], "a.jsonl:1: half of a character"),
        ([{"id": "1", "revisions": ["a", "b"]}, {"id": "2", "output": "a"}], ":2: 1 revisions, others"),
    ],
)  # fmt: skip
def test_outputs_that_do_not_fit_are_named(lines, said, tmp_path):
    with pytest.raises(UserError, match=said):
        samples.outputs([write(tmp_path / "a.jsonl", lines)], "set", ["1", "2"], ["1", "2"])


def test_what_is_missing_is_to_be_written_first(tmp_path):
    with pytest.raises(UserError, match="is missing: write it first, with --stage=write"):
        samples.written(tmp_path / "a.jsonl", "m", "d", ["1"])
    samples.resume(tmp_path / "a.jsonl", HEADER, anything)
    with pytest.raises(UserError, match="lacks 1 of 1 documents, '1': write it first"):
        samples.written(tmp_path / "a.jsonl", "m", "d", ["1"])


@pytest.mark.parametrize(
    "name", ["../../x", "..", ".", "/etc/passwd", "a/b", "a\\b", "~", "x\0y", "", ".hidden", "C:x"]
)
def test_no_name_leaves_its_folder(name, tmp_path):
    path = tmp_path / "samples" / f"{samples.slug(name)}-{samples.slug(name)}.jsonl"
    assert path.resolve().parent == tmp_path / "samples"
    folder = tmp_path / "verdicts" / samples.slug(name)
    assert folder.resolve().parent == tmp_path / "verdicts"


def test_who_only_reads_leaves_the_line_that_another_writes_just_now(tmp_path):
    """--stage=judge, or --dry_run, beside a program that is still writing."""
    path = tmp_path / "a.jsonl"
    samples.resume(path, HEADER, anything)
    samples.append(path, [{"id": "1", "revisions": ["x"]}])
    with path.open("a") as file:
        file.write('{"id": "2", "revi')
    there = path.read_bytes()
    assert samples.written(path, "m", "d", ["1"]).revisions == (("x",),)
    with pytest.raises(UserError, match="lacks 1 of 2 documents, '2'"):
        samples.written(path, "m", "d", ["1", "2"])
    assert path.read_bytes() == there
    assert [record["id"] for record in samples.resume(path, HEADER, anything)] == ["1"]
    assert path.read_bytes() == there[: there.rindex(b"\n") + 1]
