"""Preference pairs, from whatever schema a data set keeps them in.

A *record* is one entry of a data set, {name: value}; FORMATS turns it into a Pair.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_jax.data import sources
from srpo_jax.runtime import files, storage
from srpo_jax.runtime.errors import UserError

Record = Mapping[str, Any]
TEXTS = ("prompt", "chosen", "rejected")
ROLES = ("system", "user", "assistant")


@dataclasses.dataclass(frozen=True)
class Message:
    """A turn of a conversation. role: of ROLES."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """prompt is x, a text or a conversation that waits for the assistant.

    label_prob: the probability that chosen is better. rejected: "" where a record has none (SFT).
    line: where it was read. every_turn: what the assistant said in the prompt is to be learned too (SFT).
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str = ""
    label_prob: float = 1.0
    line: int = dataclasses.field(default=0, compare=False)
    every_turn: bool = False


class Malformed(Exception):
    """What is wrong with a record, as the end of a sentence."""


class Unusable(Exception):
    """A well-formed record that no objective can learn from; why."""


def read_pairs(
    source: str | Path,
    *,
    format: str = "pairs",
    split: str = "train",
    fields: Sequence[str] = (),
    rejected: bool = True,
) -> list[Pair]:
    """All pairs of a data set; see `sources.read` for what a source may be.

    format: of FORMATS. fields: "ours=theirs", where a data set has other names. rejected: whether a pair
    must have a rejected completion. Records that nothing can be learned from are left out and counted on
    standard error.
    The first malformed record ends it with a UserError that names the file and the record.
    """
    if format not in FORMATS:
        raise UserError(f"config.data.format={format!r} is none of {', '.join(FORMATS)}")
    names = mapping(fields)
    pairs, unusable = [], []
    for where, line, record in sources.read(source, split):
        try:
            if not isinstance(record, Mapping):
                raise Malformed(f"a pair is a JSON object, not {type(record).__name__}")
            given = renamed(record, names)
            pair = dataclasses.replace(FORMATS[format](given), line=line)
            _check(pair, rejected)
        except Malformed as error:
            raise UserError(f"{where}: {error}") from error
        except Unusable as error:
            unusable.append(str(error))
            continue
        pairs.append(pair)
    if not pairs:
        raise UserError(f"{source} holds no pairs")
    for reason in sorted(set(unusable)):
        sources.say(f"{source}: {unusable.count(reason)} records left out: {reason}")
    return pairs


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> None:
    """JSON lines, whole or not at all."""
    with files.whole(storage.place(path)) as part, part.open("w", encoding="utf-8") as out:
        for pair in pairs:
            record = {name: getattr(pair, name) for name in (*TEXTS, "label_prob")}
            if not isinstance(pair.prompt, str):
                record["prompt"] = [dataclasses.asdict(message) for message in pair.prompt]
            out.write(json.dumps(record, ensure_ascii=False) + "\n")


# --- formats: a record -> a pair ------------------------------------------------------------------


def _pairs(record: Record) -> Pair:
    """prompt, chosen, rejected?, label_prob?; or prompt, completion; or messages.

    prompt, chosen and rejected may be texts or lists of {"role", "content"}; where chosen and rejected are
    whole conversations, the prompt is what they have in common and is not needed.
    """
    if record.get("messages") is not None and record.get("chosen") is None:
        said = conversation(record["messages"], "messages")
        if len(said) < 2 or said[-1].role != "assistant":
            raise Malformed("'messages' does not end with what the assistant says to somebody")
        return Pair(said[:-1], said[-1].content, every_turn=True)
    label_prob = record.get("label_prob", 1.0)
    if isinstance(label_prob, bool) or not isinstance(label_prob, int | float):
        raise Malformed("'label_prob' is not a number")
    if not 0 <= label_prob <= 1:
        raise Malformed(f"'label_prob' is {label_prob}, which is not between 0 and 1")
    answer = "completion" if record.get("chosen") is None and "completion" in record else "chosen"
    prompt: Any = record.get("prompt")
    chosen = record.get(answer)
    if isinstance(prompt, list | tuple):
        prompt = conversation(prompt, "prompt")
    rejected = record.get("rejected")
    if isinstance(chosen, list | tuple):
        before, chosen = last_answer(chosen, answer)
        if rejected is not None:
            other, rejected = last_answer(rejected, "rejected")
            if other != before:
                raise Unusable("chosen and rejected answer different prompts")
        prompt = before or prompt
    if isinstance(prompt, tuple):
        if not prompt or prompt[-1].role == "assistant":
            raise Malformed("'prompt' is a conversation that does not wait for the assistant")
    elif not isinstance(prompt, str):
        raise Malformed("'prompt' is missing or not a text")
    if not isinstance(chosen, str):
        raise Malformed(f"{answer!r} is missing or not a text")
    if rejected is not None and not isinstance(rejected, str):
        raise Malformed("'rejected' is missing or not a text")
    return Pair(prompt, chosen, rejected or "", float(label_prob))


def last_answer(value: Any, name: str) -> tuple[tuple[Message, ...], str]:
    """A conversation that ends with the assistant: what is before, and its last words."""
    messages = conversation(value, name)
    if not messages or messages[-1].role != "assistant":
        raise Malformed(f"{name!r} does not end with what the assistant says")
    return messages[:-1], messages[-1].content


def conversation(value: Any, name: str) -> tuple[Message, ...]:
    """Messages from a list of {"role", "content"}."""
    if not isinstance(value, list | tuple):
        raise Malformed(f"{name!r} is not a list of messages")
    made = []
    for message in value:
        known = isinstance(message, Mapping) and isinstance(message.get("content"), str)
        if not known or message.get("role") not in ROLES:
            raise Malformed(
                f"{name!r} holds {str(message)[:80]!r}: a message has a 'content' and a 'role' of "
                f"{', '.join(ROLES)}"
            )
        made.append(Message(message["role"], message["content"]))
    return tuple(made)


def _summarize(record: Record) -> Pair:
    """OpenAI's comparisons of summaries: info.post, summaries[2].text, choice."""
    try:
        info, (first, second), choice = record["info"], record["summaries"], record["choice"]
        prompt = reddit_post(info)
        texts = first["text"], second["text"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"info, summaries (two) and choice are expected ({error!r})") from error
    if choice not in (0, 1):
        raise Malformed(f"'choice' is {choice!r}, not 0 or 1")
    return Pair(prompt, texts[choice], texts[1 - choice])


def reddit_post(info: Record) -> str:
    """A post of TL;DR with its subreddit and title, or an article of CNN/DM, as one text."""
    post = info.get("post") or info.get("article")
    head = [f"{name}: {info[key]}" for name, key in _REDDIT if info.get(key)]
    return "\n".join([*head, f"POST: {post}" if head else str(post)])


_REDDIT = (("SUBREDDIT", "subreddit"), ("TITLE", "title"))
_TURNS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}


def _dialogue(record: Record) -> Pair:
    """Anthropic's HH: chosen and rejected are whole dialogues that differ in the last answer."""
    chosen, rejected = (_spoken(record.get(name), name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("chosen and rejected differ before the last answer")
    if len(chosen) < 2 or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Unusable("the dialogue does not end with an answer")
    return Pair(chosen[:-1], chosen[-1].content, rejected[-1].content)


def _spoken(text: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(text, str):
        raise Malformed(f"{name!r} is missing or not a text")
    for marker, role in _TURNS.items():
        text = text.replace(marker, f"\x00{role}\x01")
    parts = [part.split("\x01", 1) for part in text.split("\x00")[1:]]
    if not parts:
        raise Malformed(
            f"{name!r} has no turns: they begin with '\\n\\nHuman:' and '\\n\\nAssistant:'"
        )
    return tuple(Message(role, content.strip()) for role, content in parts)


FORMATS: dict[str, Callable[[Record], Pair]] = {
    "pairs": _pairs,
    "summarize": _summarize,
    "dialogue": _dialogue,
}


def _check(pair: Pair, rejected: bool) -> None:
    prompt = pair.prompt
    if not isinstance(prompt, str):
        prompt = "".join(message.content for message in prompt)
    texts = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if not rejected and not pair.rejected:
        del texts["rejected"]
    for name, text in texts.items():
        if name == "rejected" and text == "":
            raise Malformed("'rejected' is missing or not a text, or is empty")
        if not text.strip():
            raise Malformed(f"{name!r} is empty")
        check_characters(name, text)


def check_characters(name: str, text: str) -> None:
    """Malformed for a text that no tokenizer takes."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise Malformed(f"{name!r} holds half of a character (a lone surrogate)")


def renamed(
    record: Record, names: Mapping[str, str], setting: str = "config.data.fields"
) -> dict[str, Any]:
    """The record with our names for some of its fields; Malformed where it lacks one."""
    given = dict(record)
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
        names[ours] = theirs
    return names


def known(record: Record) -> str:
    return ", ".join(sorted(map(str, record)))
