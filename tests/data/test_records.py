"""Reading and writing pairs: every mistake in a file is one sentence with file and line."""

import json

import pytest

from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.runtime.errors import UserError

GOOD = b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n'


def with_label(value: str) -> bytes:
    return GOOD.replace(b"}", f', "label_prob": {value}}}'.encode())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "x", "chosen"\n', "not JSON"),
        (b"[1, 2]\n", "a pair is a JSON object, not list"),
        (b'{"prompt": "x", "chosen": "a"}\n', "'rejected' is missing or not a text"),
        (GOOD.replace(b'"a"', b"3"), "'chosen' is missing or not a text"),
        (GOOD.replace(b'"a"', b'""'), "'chosen' is empty"),
        (GOOD.replace(b'"b"', b'" \\n"'), "'rejected' is empty"),
        (GOOD.replace(b'"x"', b'"\\ud83d"'), "'prompt' holds half of a character"),
        (with_label("1.01"), "'label_prob' is 1.01, which is not between 0 and 1"),
        (with_label("-0.5"), "'label_prob' is -0.5, which is not between 0 and 1"),
        (with_label("NaN"), "'label_prob' is nan, which is not between 0 and 1"),
        (with_label('"high"'), "'label_prob' is not a number"),
        (with_label("true"), "'label_prob' is not a number"),
        (with_label("null"), "'label_prob' is not a number"),
        (GOOD.replace(b'"x"', b'"caf\xe9"'), "not UTF-8 text"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, said):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD + b"\n" + line + GOOD)
    with pytest.raises(UserError) as error:
        records.read_pairs(path)
    assert str(error.value).startswith(f"{path}:3: {said}")
    assert "\n" not in str(error.value)


def test_an_empty_file_and_none_at_all_are_named(tmp_path):
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(UserError, match=r"no pairs at .*pairs\.jsonl: set config\.data\.pairs"):
        records.read_pairs(path)
    path.write_text("\n \n")
    with pytest.raises(UserError, match=r"pairs\.jsonl holds no pairs"):
        records.read_pairs(path)


def test_lines_are_remembered_and_other_keys_ignored(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD + b"\n" + with_label("0.25").replace(b"{", b'{"id": 7, '))
    pairs = records.read_pairs(path)
    assert pairs == [Pair("x", "a", "b"), Pair("x", "a", "b", 0.25)]
    assert [pair.line for pair in pairs] == [1, 3]


def test_round_trip(tmp_path):
    pairs = [
        Pair("two\nlines\u2028and more", " kept as it is ", 'with "quotes" \\ and \t', 0.5),
        Pair("Ωμέγα 漢字 👍🏽", "a\r\nb", "\x00", 0.0),
    ]
    path = tmp_path / "new folder" / "pairs.jsonl"
    records.write_pairs(path, pairs)
    assert records.read_pairs(path) == pairs
    assert len(path.read_text(encoding="utf-8").split("\n")) == 3
    assert set(json.loads(path.read_text("utf-8").split("\n")[0])) == {
        "prompt",
        "chosen",
        "rejected",
        "label_prob",
    }


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "pairs.jsonl"
    records.write_pairs(path, [Pair("x", "a", "b")])

    def interrupted():
        yield Pair("y", "c", "d")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_pairs(path, interrupted())
    assert records.read_pairs(path) == [Pair("x", "a", "b")]
