"""Preference pairs, from whatever schema a data set keeps them in.

A *record* is one entry of a data set, {name: value}; FORMATS turns it into a Pair.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_jax.data import columns, reddit, sources
from srpo_jax.data.columns import Malformed, Unusable
from srpo_jax.runtime import files, storage
from srpo_jax.runtime.errors import UserError

Record = Mapping[str, Any]
TEXTS = ("prompt", "chosen", "rejected")
EMPTY = " "  # a rejected completion that is there and says nothing
ROLES = ("system", "user", "assistant")
SYSTEM = ("system", "system_prompt", "system_message")  # columns for what the system says


@dataclasses.dataclass(frozen=True)
class Message:
    """A turn of a conversation. role: of ROLES."""

    role: str
    content: str


@dataclasses.dataclass(frozen=True)
class Pair:
    """prompt is x, a text or a conversation that waits for the assistant.

    label_prob: the probability that chosen is better. rejected: "" where a record has none (SFT).
    at, line: where it was read, as `sources.Located` has it. every_turn: what the assistant said in the
    prompt is to be learned too (SFT).
    """

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str = ""
    label_prob: float = 1.0
    line: int = dataclasses.field(default=0, compare=False)
    every_turn: bool = False
    at: str = dataclasses.field(default="", compare=False, repr=False)


def read_pairs(
    source: str | Path,
    *,
    format: str = "pairs",
    split: str = "train",
    fields: Sequence[str] = (),
    rejected: bool = True,
    distinct: bool = True,
) -> list[Pair]:
    """All pairs of a data set; see `sources.read` for what a source may be.

    format: of FORMATS. fields: "ours=theirs", where a data set has other names. rejected: whether a pair
    must have a rejected completion; distinct: and one that is not the chosen one, white space apart.
    Records that nothing can be learned from are left out and counted on standard error.
    The first malformed record ends it with a UserError that names the file and the record.
    """
    if format not in FORMATS:
        raise UserError(f"config.data.format={format!r} is none of {', '.join(FORMATS)}")
    names = columns.mapping(fields)
    pairs: list[Pair] = []
    unusable: dict[str, list[str]] = {}  # reason -> where
    for at, line, record in sources.read(source, split):
        try:
            if not isinstance(record, Mapping):
                raise Malformed(f"a pair is a JSON object, not {type(record).__name__}")
            pair = FORMATS[format](columns.renamed(record, names))
            _check(pair, rejected, distinct)
        except Malformed as error:
            _say_left_out(source, unusable)
            alike = not pairs or pairs[-1].at == at
            hint = _hint(record, format) if _OF_A_KIND.search(str(error)) else ""
            raise UserError(f"{at}{line}: {error}{hint if alike else hint and _UNLIKE}") from error
        except Unusable as error:
            unusable.setdefault(str(error), []).append(f"{at}{line}")
            continue
        pairs.append(dataclasses.replace(pair, at=at, line=line))
    _say_left_out(source, unusable)
    if not pairs:
        why = f": all {sum(map(len, unusable.values()))} records are left out" if unusable else ""
        raise UserError(f"{source} holds no pairs{why}{_reasons(unusable)}")
    return pairs


def _hint(record: Any, format: str) -> str:
    """What else a malformed record may be, by the columns that it has; "" where they are those expected."""
    if not isinstance(record, Mapping):
        return ""
    chosen, is_pair = record.get("chosen"), any(name in record for name in ("prompt", "messages"))
    if format == "pairs":
        if "prompt" not in record and isinstance(chosen, str) and _FIRST_TURN[0] in chosen:
            return ": config.data.format=dialogue reads dialogues of 'Human:' and 'Assistant:'"
        if "info" in record and "summaries" in record:
            return ": config.data.format=summarize reads comparisons of summaries"
        if "label" in record and "rejected" not in record:
            return ": a row for KTO has one completion, a pair two (chosen, rejected)"
        if record.get("messages") is not None and chosen is None:
            return ": a conversation in 'messages' is for config.objective.name=sft alone"
        is_known = is_pair and any(name in record for name in ("chosen", "completion", "messages"))
        return "" if is_known else f": {_RENAME}, and it has {columns.known(record)}"
    if is_pair or isinstance(chosen, list | tuple):
        return ": config.data.format=pairs reads prompts, conversations and messages"
    return ""


# What is said of a record that may be of another kind.
_OF_A_KIND = re.compile("is missing or not a text|has no turns|are expected")
_UNLIKE = ", and all files of a run are read alike: write this one as those before it are"
_RENAME = "config.data.fields=('prompt=NAME', 'chosen=NAME') says which columns are read"


def _reasons(unusable: Mapping[str, Sequence[str]]) -> str:
    return f" ({'; '.join(sorted(unusable))})" if unusable else ""


def _say_left_out(source: str | Path, unusable: Mapping[str, Sequence[str]]) -> None:
    for reason, places in sorted(unusable.items()):
        sources.say_left_out(source, len(places), places[0], reason)


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
    """prompt, chosen, rejected?, label_prob?; or prompt, completion; or messages; each with system?.

    prompt, chosen and rejected may be texts or lists of {"role", "content"}; where chosen and rejected are
    whole conversations, the prompt is what they have in common and is not needed.
    """
    columns.check_read(record)
    columns.check_label(record)
    label_prob = columns.label_prob(record)
    if record.get("messages") is not None and record.get("chosen") is None:
        said = conversation(record["messages"], "messages")
        if len(said) < 2 or said[-1].role != "assistant":
            raise Malformed("'messages' does not end with what the assistant says to somebody")
        if any(m.role == "assistant" and not m.content.strip() for m in said[:-1]):
            raise Unusable("an answer of the assistant is empty")
        before = _with_system(_joined(_asked(record), said[:-1], "messages"), record)
        assert not isinstance(before, str)
        return Pair(before, said[-1].content, every_turn=True)
    answer = "completion" if record.get("chosen") is None and "completion" in record else "chosen"
    chosen, rejected = record.get(answer), record.get("rejected")
    columns.check_texts({"prompt": record.get("prompt"), answer: chosen, "rejected": rejected})
    prompt: Any = _asked(record)
    if isinstance(chosen, list | tuple):
        before, chosen = last_answer(chosen, answer)
        if rejected is not None:
            other, rejected = last_answer(rejected, "rejected")
            if other != before:
                raise Unusable("chosen and rejected answer different prompts")
        prompt = _joined(prompt, before, answer)
    if record.get("messages") is not None:
        said = conversation(record["messages"], "messages")
        if said and said[-1].role == "assistant":
            said, answered = said[:-1], said[-1].content
            if answered != chosen:
                raise Malformed(f"'messages' ends otherwise than {answer!r}: take one of them out")
        prompt = _joined(prompt, said, "messages")
    if isinstance(prompt, tuple):
        if prompt and prompt[-1].role == "assistant":
            raise Malformed("'prompt' is a conversation that does not wait for the assistant")
    elif not isinstance(prompt, str):
        raise Malformed("'prompt' is missing or not a text")
    if not isinstance(chosen, str):
        raise Malformed(f"{answer!r} is missing or not a text")
    if rejected is not None and not isinstance(rejected, str):
        raise Malformed("'rejected' is missing or not a text")
    prompt = _with_system(prompt, record)
    return Pair(prompt, chosen, "" if rejected is None else rejected or EMPTY, label_prob)


def _asked(record: Record) -> Any:
    """What is in the column 'prompt', as a conversation if it is a list."""
    prompt = record.get("prompt")
    return conversation(prompt, "prompt") if isinstance(prompt, list | tuple) else prompt


def _joined(prompt: Any, before: tuple[Message, ...], answer: str) -> Any:
    """The prompt, where the conversations that answer it tell it too; Malformed where they disagree."""
    if not before or prompt is None:
        return before or prompt
    if isinstance(prompt, str):
        said = prompt.strip()
        turns = [message.content.strip() for message in before if message.role == "user"]
        if said and not turns:
            return (*before, Message("user", prompt))
        if said and before[0].role == "assistant":
            return (Message("user", prompt), *before)
        told = [m.content for m in before]
        asked = [m.content for m in before if m.role != "system"]
        if not said or said in turns or any(columns.says_no_more(said, x) for x in (told, asked)):
            return before
    elif not isinstance(prompt, tuple):
        raise Malformed("'prompt' is missing or not a text")
    elif before[: len(prompt)] == prompt:
        return before
    elif prompt[len(prompt) - len(before) :] == before:
        return prompt
    elif before[0].role == "assistant" and prompt[-1].role != "assistant":
        return (*prompt, *before)  # the conversations go on where the prompt ends
    elif before[-len(prompt) :] == prompt:
        return before
    elif {message.role for message in prompt} == {"system"} and before[0].role != "system":
        return (*prompt, *before)
    raise Malformed(f"'prompt' is not what {answer!r} answers: take one of them out")


def _with_system(prompt: Any, record: Record) -> Any:
    """The prompt behind what a column for the system says, which may have several names."""
    for name in SYSTEM:
        text = record.get(name)
        if not text or (isinstance(text, str) and not text.strip()):
            continue
        if not isinstance(text, str):
            raise Malformed(f"{name!r} is not a text")
        turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
        if not turns:
            raise Unusable("'prompt' is empty")
        if turns[0].role != "system":
            prompt = (Message("system", text), *turns)
        elif turns[0].content.strip() != text.strip():
            raise Malformed(f"{name!r} is not the conversation's own system message")
    return prompt


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
        content = _content(message.get("content")) if isinstance(message, Mapping) else None
        if content is None or message.get("role") not in ROLES:
            raise Malformed(
                f"{name!r} holds {str(message)[:80]!r}: a message has a 'content' and a 'role' of "
                f"{', '.join(ROLES)}, and its content is text"
            )
        columns.check_message(message, name)
        made.append(Message(message["role"], content))
    return tuple(made)


def _content(value: Any) -> str | None:
    """A text, or parts of text one after the other; None for anything else, pictures among it."""
    if isinstance(value, list | tuple):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in value]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if texts and len(texts) == len(parts) else None
    return value if isinstance(value, str) else None


def _summarize(record: Record) -> Pair:
    """OpenAI's comparisons of summaries: info.post, summaries[2].text, choice; label_prob?, system?."""
    columns.check_read(record)
    try:
        info, (first, second), choice = record["info"], record["summaries"], record["choice"]
        prompt = reddit.text(info)
        texts = first["text"], second["text"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"info, summaries (two) and choice are expected ({error!r})") from error
    if choice not in (0, 1):
        raise Malformed(f"'choice' is {choice!r}, not 0 or 1")
    if not all(isinstance(text, str) for text in texts):
        raise Malformed("a summary's 'text' is missing or not a text")
    better = int(choice)  # tables with holes keep whole numbers as 0.0 and 1.0
    prompt, label_prob = _with_system(prompt, record), columns.label_prob(record)
    return Pair(prompt, texts[better], texts[1 - better] or EMPTY, label_prob)


def _tldr(record: Record) -> Pair:
    """A post and the author's summary, for SFT, in the schemas of `reddit.summarized`."""
    columns.check_read(record)
    prompt, summary = reddit.summarized(record)
    if not isinstance(summary, str):
        raise Malformed("'summary' (or 'completion', or 'label') is missing or not a text")
    return Pair(_with_system(prompt, record), summary)


_TURNS = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
_MARKERS = re.compile(f"({'|'.join(_TURNS)})")
_FIRST_TURN = tuple(marker.strip() for marker in _TURNS)  # of a text that was stripped


def _dialogue(record: Record) -> Pair:
    """Anthropic's HH: chosen and rejected are whole dialogues that differ in the last answer; label_prob?,
    system?, prompt?."""
    columns.check_read(record)
    label_prob = columns.label_prob(record)
    chosen, rejected = (_spoken(record.get(name), name) for name in ("chosen", "rejected"))
    if len(chosen) < 2 or chosen[-1].role != "assistant" or rejected[-1].role != "assistant":
        raise Unusable("the dialogue does not end with an answer behind '\\n\\nAssistant:'")
    if chosen[:-1] != rejected[:-1]:
        raise Unusable("chosen and rejected differ before the last answer")
    if not (chosen[-1].content and rejected[-1].content):
        raise Unusable("the last answer is empty")
    if not any(message.content for message in chosen[:-1]):
        raise Unusable("nothing is said before the last answer")
    before = _with_system(_joined(_asked(record), chosen[:-1], "chosen"), record)
    return Pair(before, chosen[-1].content, rejected[-1].content, label_prob)


def _spoken(text: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(text, str):
        raise Malformed(f"{name!r} is missing or not a text")
    text = text.replace("\r\n", "\n")
    if text.lstrip().startswith(_FIRST_TURN):
        text = f"\n\n{text.lstrip()}"
    before, *parts = _MARKERS.split(text)
    if parts and before.strip():
        raise Unusable("text stands before the first turn")
    if not parts:
        raise Malformed(
            f"{name!r} has no turns: they begin with '\\n\\nHuman:' and '\\n\\nAssistant:'"
        )
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(_TURNS[marker], content.strip()) for marker, content in turns)


FORMATS: dict[str, Callable[[Record], Pair]] = {
    "pairs": _pairs,
    "summarize": _summarize,
    "tldr": _tldr,
    "dialogue": _dialogue,
}


def _check(pair: Pair, rejected: bool, distinct: bool) -> None:
    prompt = pair.prompt
    if not isinstance(prompt, str):
        prompt = "".join(message.content for message in prompt)
    texts = {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if not rejected:
        del texts["rejected"]
    for name, text in texts.items():
        if name == "rejected" and text == "":
            raise Malformed("'rejected' is missing or not a text")
        if not text.strip():
            raise Unusable(f"{name!r} is empty")
        columns.check_characters(name, text)
    if rejected and distinct and pair.chosen.strip() == pair.rejected.strip():
        raise Unusable("chosen and rejected are the same text")
