"""Reading and writing pairs: every mistake in a file is one sentence with file and line."""

import json
import re

import pytest

from srpo_jax.data import records
from srpo_jax.data.records import Message, Pair
from srpo_jax.runtime.errors import UserError

GOOD = b'{"prompt": "x", "chosen": "a", "rejected": "b"}\n'


def with_label(value: str) -> bytes:
    return GOOD.replace(b"}", f', "label_prob": {value}}}'.encode())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"prompt": "x", "chosen"\n', "not JSON"),
        (b'{"prompt": "x", "chosen": "y\n', "not JSON (Unterminated string starting at column 27)"),
        (b"[1, 2]\n", "a pair is a JSON object, not list"),
        (b'{"prompt": "x", "chosen": "a"}\n', "'rejected' is missing or not a text"),
        (GOOD.replace(b'"a"', b"3"), "'chosen' is missing or not a text"),
        (GOOD.replace(b'"x"', b'"\\ud83d"'), "'prompt' holds half of a character"),
        (with_label("1.01"), "'label_prob' is 1.01, which is not between 0 and 1"),
        (with_label("-0.5"), "'label_prob' is -0.5, which is not between 0 and 1"),
        (with_label("NaN"), "'label_prob' is nan, which is not between 0 and 1"),
        (with_label('"high"'), "'label_prob' is not a number but 'high'"),
        (with_label("true"), "'label_prob' is not a number but True"),
        (with_label("null"), "'label_prob' is not a number but None"),
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


HI = {"role": "user", "content": "Hi"}
BE = {"role": "system", "content": "Be brief."}
YES, NO = ({"role": "assistant", "content": text} for text in ("Yes.", "No."))
ASKED = (Message("system", "Be brief."), Message("user", "Hi"))


def read(tmp_path, *rows, **more):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return records.read_pairs(path, **more)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": [BE, HI], "chosen": [HI, YES], "rejected": [HI, NO]}, ASKED),
        ({"prompt": [BE], "chosen": [HI, YES], "rejected": [HI, NO]}, ASKED),
        ({"prompt": [BE, HI], "chosen": [YES], "rejected": [NO]}, ASKED),
        ({"prompt": [BE, HI], "chosen": [BE, HI, YES], "rejected": [BE, HI, NO]}, ASKED),
        ({"prompt": "Hi", "chosen": [BE, HI, YES], "rejected": [BE, HI, NO]}, ASKED),
        ({"prompt": "Hi", "chosen": [BE, YES], "rejected": [BE, NO]}, ASKED),
        ({"prompt": [HI], "chosen": [BE, HI, YES], "rejected": [BE, HI, NO]}, ASKED),
        ({"prompt": "Be brief.\nHi", "chosen": [BE, HI, YES], "rejected": [BE, HI, NO]}, ASKED),
        ({"system": "Be brief.", "prompt": "Hi", "chosen": "Yes.", "rejected": "No."}, ASKED),
        ({"system": "Be brief.", "chosen": [HI, YES], "rejected": [HI, NO]}, ASKED),
        (
            {"system_prompt": "Be brief.", "prompt": [BE, HI], "chosen": "Yes.", "rejected": "No."},
            ASKED,
        ),
        ({"system": None, "prompt": "Hi", "chosen": "Yes.", "rejected": "No."}, "Hi"),
        ({"system": " ", "prompt": "Hi", "chosen": "Yes.", "rejected": "No."}, "Hi"),
        (
            {"system_message": "Be brief.", "prompt": "Hi", "chosen": "Yes.", "rejected": "No."},
            ASKED,
        ),
        ({"messages": [BE, HI], "chosen": "Yes.", "rejected": "No."}, ASKED),
        ({"prompt": "Hi", "messages": [BE, HI], "chosen": "Yes.", "rejected": "No."}, ASKED),
        ({"messages": [BE, HI, YES], "chosen": [HI, YES], "rejected": [HI, NO]}, ASKED),
        (
            {"prompt": [HI], "chosen": [YES, HI, YES], "rejected": [YES, HI, NO]},
            (ASKED[1], Message("assistant", "Yes."), ASKED[1]),
        ),
        ({"context": "Hi", "chosen": [HI, YES], "rejected": [HI, NO]}, ASKED[1:]),
        (
            {
                "prompt": "<|system|>Be brief.\n\nHuman: Hi\n\nAssistant:",
                "chosen": [BE, HI, YES],
                "rejected": [BE, HI, NO],
            },
            ASKED,
        ),
        (
            {
                "prompt": [
                    {"role": "user", "content": [{"type": "text", "text": "H"}, {"text": "i"}]}
                ],
                "chosen": "Yes.",
                "rejected": "No.",
            },
            ASKED[1:],
        ),
    ],
)
def test_a_prompt_that_is_told_twice_is_joined(record, prompt, tmp_path):
    assert read(tmp_path, record) == [Pair(prompt, "Yes.", "No.")]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (
            {"prompt": "Why?", "chosen": [HI, YES], "rejected": [HI, NO]},
            "'prompt' is not what 'chosen' answers",
        ),
        (
            {"prompt": [YES, HI], "chosen": [BE, HI, YES], "rejected": [BE, HI, NO]},
            "is not what 'chosen'",
        ),
        (
            {"system": "Talk.", "prompt": [BE, HI], "chosen": "a", "rejected": "b"},
            "'system' is not the conv",
        ),
        ({"system": 3, "prompt": "a", "chosen": "a", "rejected": "b"}, "'system' is not a text"),
        (
            {"prompt": [HI | {"tool_calls": [1]}], "chosen": "a", "rejected": "b"},
            "'tool_calls', which is not",
        ),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a"},
            "its content is text",
        ),
        *(
            (row | {"label": label}, f"'label' is {label!r}: the completion is a bad one")
            for row, label in (
                ({"prompt": "a", "completion": "b"}, False),
                ({"prompt": "a", "completion": "b"}, 0.0),
                ({"prompt": "a", "completion": "b"}, -1),
                ({"prompt": "a", "completion": "b"}, "false"),
                ({"prompt": [HI], "completion": [YES]}, False),
                ({"messages": [HI, YES]}, False),
                ({"prompt": "a", "completion": "b", "rejected": ""}, "-1"),
            )
        ),
        ({"prompt": "a", "completion": "b", "desirable": False}, "'desirable' is False: the comp"),
        (
            {"messages": [HI, YES], "chosen": "No.", "rejected": "a"},
            "'messages' ends otherwise than 'chosen'",
        ),
        (
            {
                "prompt": "\n\nHuman: a\n\nAssistant:",
                "chosen": "\n\nHuman: a\n\nAssistant: b",
                "rejected": "c",
            },
            "'chosen' is a whole dialogue, not an answer: config.data.format=dialogue",
        ),
        (
            {"prompt": "Be rude. Hi", "chosen": [HI, YES], "rejected": [HI, NO]},
            "'prompt' is not what 'chosen' answers",
        ),
        *(
            (
                {"prompt": "Hi", "chosen": write([HI, YES]), "rejected": write([HI, NO])},
                "'chosen' is a text that holds messages: write the list of them itself",
            )
            for write in (json.dumps, str)
        ),
        ({"prompt": 5, "chosen": [HI, YES], "rejected": [HI, NO]}, "'prompt' is missing or not a"),
        ({"prompt": "Why?", "messages": [HI, YES]}, "'prompt' is not what 'messages' answers"),
        (
            {"messages": [HI, YES | {"weight": 0}, HI, YES]},
            "a message with weight=0, which would be learned",
        ),
        (
            {"prompt": "Translate.", "input": "Hi", "completion": "b"},
            "'input' is not read: put its text into 'prompt'",
        ),
        *(
            ({"prompt": "a", "completion": "b", name: value}, f"'{name}' is not {said}")
            for name, value, said in (
                ("functions", '[{"name": "f"}]', "given to the chat template"),
                ("images", ["a.png"], "shown to the model"),
                ("context", "Be brief.", "read: put its text into 'prompt'"),
                ("documents", [{"text": "c"}], "given to the chat template"),
                ("history", [["a", "b"]], "read: make 'prompt' a list of messages"),
                ("chat_template_kwargs", {"thinking": False}, "read: take the column out"),
            )
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "tools": [{"name": "search"}]},
            "'tools' is not given to the chat template",
        ),
    ],
)
def test_what_would_be_lost_without_a_word_is_refused(record, said, tmp_path):
    with pytest.raises(UserError, match=rf"a\.jsonl:1: .*{said}"):
        read(tmp_path, record, rejected="chosen" in record)


@pytest.mark.parametrize(
    "more",
    [
        {"label": True},
        {"label": 1},
        {"label": "desirable"},
        {"tools": "null", "images": [], "history": None, "input": "", "chat_template_kwargs": {}},
        {"input": "a"},
    ],
)
def test_columns_that_take_nothing_away_are_passed_over(more, tmp_path):
    row = {"prompt": "a", "completion": "b"} | more
    assert read(tmp_path, row, rejected=False) == [Pair("a", "b")]


def test_a_column_that_is_read_by_another_name_is_not_missed(tmp_path):
    row = {"input": "Hi", "prompt": "a title", "best": "b", "worst": "c"}
    fields = ("prompt=input", "chosen=best", "rejected=worst")
    assert read(tmp_path, row, fields=fields) == [Pair("Hi", "b", "c")]


def test_equal_completions_are_left_out_and_counted(tmp_path, capsys):
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [good, good | {"rejected": " b\n"}, good | {"rejected": "b"}]
    assert len(read(tmp_path, *rows)) == 1
    said = capsys.readouterr().err
    assert "a.jsonl: 2 records left out; the first, " in said
    assert "a.jsonl:2: chosen and rejected are the same" in said
    assert len(read(tmp_path, *rows, distinct=False)) == 3
    assert len(read(tmp_path, *rows, rejected=False)) == 3
    with pytest.raises(
        UserError, match=r"no pairs: all 2 records are left out \(chosen and rejected"
    ):
        read(tmp_path, *rows[1:])


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt", " "), ("prompt", []), ("chosen", ""), ("rejected", ""), ("rejected", " \n")],
)
def test_a_pair_that_lacks_words_is_left_out_and_counted(name, value, tmp_path, capsys):
    """One answer of a million is empty: that is no reason to end a run."""
    good = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [good, good | {name: value}, good | {name: value, "system": "Be brief."}]
    kept = read(tmp_path, *rows)
    assert kept[0] == Pair("a", "b", "c")
    said = capsys.readouterr().err
    assert re.search(rf"left out.* .*a\.jsonl:2: '{name}' is empty", said)
    if name == "rejected":
        assert len(read(tmp_path, *rows, rejected=False)) == 3
    else:
        with pytest.raises(UserError, match=rf"left out \('{name}' is empty\)"):
            read(tmp_path, rows[1])


def test_conversations_with_an_empty_answer_are_left_out_and_counted(tmp_path, capsys):
    good = {"messages": [HI, YES]}
    empty = {"messages": [HI, NO | {"content": " "}, HI, YES]}
    assert len(read(tmp_path, empty, good, rejected=False)) == 1
    assert "a.jsonl:1: an answer of the assistant is empty" in capsys.readouterr().err


POST = {"subreddit": "r/a", "title": "b", "post": "c", "id": "d"}
COMPARED = {"info": POST, "summaries": [{"text": "e"}, {"text": "f"}], "choice": 1.0}


def test_a_choice_that_a_table_has_made_a_number_with_a_point(tmp_path):
    (pair,) = read(tmp_path, COMPARED, format="summarize")
    assert (pair.chosen, pair.rejected) == ("f", "e")


def test_comparisons_without_a_post_or_a_summary_s_words_are_left_out(tmp_path, capsys):
    no_post = COMPARED | {"info": POST | {"post": None}}
    no_words = COMPARED | {"summaries": [{"text": ""}, {"text": "f"}]}
    assert len(read(tmp_path, no_post, COMPARED, no_words, format="summarize")) == 1
    said = capsys.readouterr().err
    assert "a.jsonl:1: there is neither a post nor an article" in said
    assert "a.jsonl:3: 'rejected' is empty" in said
    nothing = COMPARED | {"summaries": [{"text": None}, {"text": "f"}]}
    with pytest.raises(UserError, match=r"a\.jsonl:1: a summary's 'text' is missing"):
        read(tmp_path, nothing, format="summarize")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "POST: a\n\nTL;DR:", "completion": " b"},
        {"prompt": "POST: a\nTL;DR: ", "label": " b"},
        {"info": {"title": "", "post": "a"}, "summary": {"text": " b"}},
    ],
)
def test_posts_with_their_summary(row, tmp_path):
    (pair,) = read(tmp_path, row, format="tldr", rejected=False)
    assert (pair.prompt.removeprefix("POST: "), pair.chosen) == ("a", " b")
    for wrong in ({**row, "completion": None, "label": None, "summary": None}, {"title": "a"}):
        with pytest.raises(UserError, match=r"a\.jsonl:1: (title|subreddit|'summary')"):
            read(tmp_path, wrong, format="tldr", rejected=False)


DIALOGUE = {name: f"\n\nHuman: Hi\n\nAssistant: {name}" for name in ("chosen", "rejected")}


@pytest.mark.parametrize(("record", "format"), [(DIALOGUE, "dialogue"), (COMPARED, "summarize")])
def test_every_format_reads_the_label_and_what_the_model_would_miss(record, format, tmp_path):
    (pair,) = read(tmp_path, record | {"label_prob": 0.7}, format=format)
    assert pair.label_prob == 0.7
    with pytest.raises(UserError, match="'label_prob' is 70, which is not between 0 and 1"):
        read(tmp_path, record | {"label_prob": 70}, format=format)
    with pytest.raises(UserError, match="'images' is not shown to the model"):
        read(tmp_path, record | {"images": ["a.png"]}, format=format)


def test_a_dialogue_with_any_characters(tmp_path):
    begin = "\n\nHuman: \x00 and \x01\n\nAssistant: "
    row = {name: begin + name for name in ("chosen", "rejected")}
    (pair,) = read(tmp_path, row, format="dialogue")
    assert pair == Pair((Message("user", "\x00 and \x01"),), "chosen", "rejected")


@pytest.mark.parametrize("begin", ["", "\n\n", " \n"])
def test_the_first_turn_of_a_stripped_dialogue(begin, tmp_path):
    row = {name: f"{begin}Human: Hi\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    pairs = read(tmp_path, row, format="dialogue")
    assert pairs == [Pair((Message("user", "Hi"),), "chosen", "rejected")]


def test_a_dialogue_from_windows_with_a_system_column(tmp_path):
    begin = "\r\n\r\nHuman: Hi\r\n\r\nAssistant: "
    row = {name: begin + name for name in ("chosen", "rejected")}
    row |= {"system": "Be brief.", "prompt": "\n\nHuman: Hi\n\nAssistant:"}
    assert read(tmp_path, row, format="dialogue") == [Pair(ASKED, "chosen", "rejected")]
    with pytest.raises(UserError, match=r"a\.jsonl:1: 'prompt' is not what 'chosen' answers"):
        read(tmp_path, row | {"prompt": "Why?"}, format="dialogue")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Human: Hi\n\nAssistant: a", "Human: Hi\n\nAssistant:", "the last answer is empty"),
        (
            "Human: Hi\n\nAssistant: a\n\nHuman: So?",
            "Human: Hi\n\nAssistant: b",
            "does not end with an answer behind",
        ),
        ("Human:\n\nAssistant: a", "Human:\n\nAssistant: b", "nothing is said before the last"),
        (
            "Human: Hi\nAssistant: a",
            "Human: Hi\nAssistant: b",
            "does not end with an answer behind",
        ),
    ],
)
def test_dialogues_that_say_nothing_are_left_out_for_their_reason(
    chosen, rejected, reason, tmp_path, capsys
):
    good = {"chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"}
    bad = {"chosen": chosen, "rejected": rejected}
    assert len(read(tmp_path, bad, good, format="dialogue")) == 1
    assert f"a.jsonl:1: {reason}" in capsys.readouterr().err.replace("the dialogue ", "")


def test_text_before_the_first_turn_is_not_lost_without_a_count(tmp_path, capsys):
    row = {name: f"Be kind.\n\nHuman: Hi\n\nAssistant: {name}" for name in ("chosen", "rejected")}
    with pytest.raises(UserError, match="left out \\(text stands before the first turn"):
        read(tmp_path, row, format="dialogue")
    assert "a.jsonl:1: text stands before the first turn" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("record", "format", "said"),
    [
        (
            {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"},
            "pairs",
            "config.data.format=dialogue reads",
        ),
        ({"info": {}, "summaries": [], "choice": 0}, "pairs", "config.data.format=summarize reads"),
        ({"prompt": "a", "completion": "b", "label": True}, "pairs", "a row for KTO has one"),
        ({"messages": [HI, YES]}, "pairs", "in 'messages' is for config.objective.name=sft"),
        ({"question": "a", "best": "b", "worst": "c"}, "pairs", "it has best, question, worst"),
        (
            {"prompt": "a", "chosen": [{"role": "assistant", "content": "b"}], "rejected": "c"},
            "dialogue",
            "config.data.format=pairs reads",
        ),
    ],
)
def test_a_record_of_another_kind_is_told_what_reads_it(record, format, said, tmp_path):
    with pytest.raises(UserError, match=re.escape(said)):
        read(tmp_path, record, format=format)


def test_a_sentence_is_told_once(tmp_path):
    row = {"prompt": "a", "completion": "b", "label": False}
    with pytest.raises(UserError, match=r"of both kinds$"):
        read(tmp_path, row, rejected=False)
    with pytest.raises(UserError, match=r"it has completion, label, prompt$"):
        read(tmp_path, row, fields=("chosen=answer",))
    with pytest.raises(UserError, match=r"fields names two columns for 'chosen'"):
        read(tmp_path, row, fields=("chosen=answer", "chosen=completion"))
