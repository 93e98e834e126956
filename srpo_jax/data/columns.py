"""The columns of a record: which they are, and what they say beside its texts.

What would be lost without a word is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from srpo_jax.runtime.errors import UserError

_TOOLS = (
    "is not given to the chat template, which would show them: take the column out, or tell of the tools "
    "in a 'system' column"
)
_SEEN = "is not shown to the model, which reads text alone: take the column out, or the record"
# Columns that would change what the model sees, and what to do about them.
UNREAD = {
    "tools": _TOOLS,
    "functions": _TOOLS,
    "documents": "is not given to the chat template, which would show them: put their text into 'prompt'",
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), _SEEN),
    "history": "is not read: make 'prompt' a list of messages that begins with it",
    "chat_template_kwargs": "is not read: take the column out, and give all rows the same by "
    "config.data.template_arguments",
}
BESIDE = ("input", "context")  # texts that are asked about, and may stand in the prompt already
# Of a message, the same; and what says by a 0 or false that it is not to be learned.
UNREAD_OF_MESSAGE = ("tool_calls", "reasoning_content", "reasoning", "thinking")
LEARNED = ("weight", "train", "trainable", "training", "train_on_turn", "loss")
# What says of an answer that stands alone whether it is a good one, and what a bad one is called.
LABELS = ("label", "desirable", "is_desirable", "is_chosen", "preferred", "accepted")
_BAD = frozenset(("false", "no", "bad", "undesirable", "rejected", "negative", "dislike"))
# What a text that tells of a conversation calls those who speak.
_SPEAKERS = frozenset(("system", "user", "human", "assistant", "model", "prompt", "h", "a"))
# A list of messages in JSON, or as Python and numpy print it, which spreadsheets and tables make of it.
_WRITTEN_OUT = re.compile(
    r"""\s*\[\s*\{\s*['"](role|content|from|value)['"]\s*:.*\}\s*\]\s*""", re.DOTALL
)
_HALF = re.compile("[\ud800-\udfff]")
_MARKER = re.compile(r"<[^<>\s]*>+|\[/?[A-Z]+\]")


class Malformed(Exception):
    """What is wrong with a record, as the end of a sentence."""


class Unusable(Exception):
    """A well-formed record that no objective can learn from; why."""


def check_read(record: Mapping[str, Any]) -> None:
    """Malformed for a column that is not empty and not read, and would change what the model sees."""
    for name, what in UNREAD.items():
        if not _is_empty(record.get(name)):
            raise Malformed(f"{name!r} {what}")
    for name in BESIDE:
        more = record.get(name)
        if isinstance(more, str) and more.strip() and not _tells(record, more.strip()):
            raise Malformed(f"{name!r} is not read: put its text into 'prompt'")


def _tells(record: Mapping[str, Any], text: str) -> bool:
    """Whether a text is a part of the prompt, or of the conversations that tell it."""
    for name in ("prompt", "messages", "chosen"):
        value = record.get(name)
        turns = value if isinstance(value, list | tuple) else [{"content": value}]
        said = [turn.get("content") for turn in turns if isinstance(turn, Mapping)]
        if any(isinstance(part, str) and text in part for part in said):
            return True
    return False


def check_message(message: Mapping[str, Any], name: str) -> None:
    """The same of one message of the conversation called name."""
    for key in UNREAD_OF_MESSAGE:
        if message.get(key):
            raise Malformed(f"{name!r} has a message with {key!r}, which is not read")
    for key in LEARNED:
        if message.get(key) in (0, False) and message.get("role") == "assistant":
            raise Malformed(
                f"{name!r} has a message with {key}={message[key]!r}, which would be learned: give each "
                "answer that is to be learned a row of its own (prompt, completion)"
            )


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def label_prob(record: Mapping[str, Any]) -> float:
    """What the record says of its label, 1 where it says nothing; Malformed for what is no probability."""
    said = record.get("label_prob", 1.0)
    if isinstance(said, bool) or not isinstance(said, int | float | Decimal):
        raise Malformed(f"'label_prob' is not a number but {said!r}"[:80])
    if not 0 <= said <= 1:
        raise Malformed(f"'label_prob' is {said}, which is not between 0 and 1")
    return float(said)


def check_label(record: Mapping[str, Any]) -> None:
    """Malformed for a bad answer that stands alone."""
    for name in LABELS:
        if not record.get("rejected") and _is_bad(record.get(name)):
            raise Malformed(
                f"{name!r} is {record[name]!r}: the completion is a bad one, as rows for KTO have them, "
                f"and would be learned: keep the rows whose {name} is true, or make pairs (chosen, "
                "rejected) of both kinds"
            )


def _is_bad(label: Any) -> bool:
    if isinstance(label, str):
        try:
            label = float(label)
        except ValueError:
            return label.strip().lower() in _BAD
    return isinstance(label, int | float | Decimal) and label <= 0


def check_texts(texts: Mapping[str, Any]) -> None:
    """Malformed for messages that were written out as a text, and for a whole dialogue of Anthropic's HH in
    place of an answer."""
    for name, text in texts.items():
        if not isinstance(text, str):
            continue
        if _WRITTEN_OUT.fullmatch(text):
            raise Malformed(
                f"{name!r} is a text that holds messages: write the list of them itself"
            )
        whole = name != "prompt" and "\n\nAssistant:" in text
        if whole and text.lstrip().startswith("Human:"):
            raise Malformed(
                f"{name!r} is a whole dialogue, not an answer: config.data.format=dialogue reads it"
            )


def says_no_more(text: str, messages: Iterable[str]) -> bool:
    """Whether a text is these messages, all of them, with nothing between but who speaks."""
    rest = text
    for message in sorted((m.strip() for m in messages), key=len, reverse=True):
        if message not in rest:
            return False
        rest = rest.replace(message, "\n", 1)
    words = re.findall(r"\w+", _MARKER.sub(" ", rest))
    return all(word.lower() in _SPEAKERS for word in words)


def check_characters(name: str, text: str) -> None:
    """Malformed for a text that no tokenizer takes."""
    if _HALF.search(text):
        raise Malformed(f"{name!r} holds half of a character (a lone surrogate)")


def renamed(
    record: Mapping[str, Any], names: Mapping[str, str], setting: str = "config.data.fields"
) -> dict[str, Any]:
    """The record with our names for some of its fields; Malformed where it lacks one."""
    given = {name: value for name, value in record.items() if name not in names.values()}
    for ours, theirs in names.items():
        if theirs not in record:
            raise Malformed(f"there is no {theirs!r} ({setting}): it has {known(record)}")
        given[ours] = record[theirs]
    return given


def mapping(fields: Sequence[str], section: str = "config.data") -> dict[str, str]:
    """{our name: theirs} of "ours=theirs"."""
    names = {}
    for entry in fields:
        ours, equals, theirs = entry.partition("=")
        if not (ours and equals and theirs):
            raise UserError(
                f"{section}.fields: {entry!r} is not 'ours=theirs', e.g. 'prompt=document'"
            )
        if ours in names:
            raise UserError(
                f"{section}.fields names two columns for {ours!r}: take one of them out"
            )
        names[ours] = theirs
    return names


def known(record: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, record)))
