"""What the assistant generates in a conversation, and how it ends.

A conversation is cut in two places only: where the assistant begins to write, which is where the prompt of
generation ends, and where its turn ends. What is learned is therefore what would be generated; where the
template allows for no such cut, the turn is named.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from srpo_jax.prompts.chat import Chat, Message, Rendered
from srpo_jax.runtime.errors import UserError

_ALONE = "give each answer a row of its own (prompt, completion)"


class Span(NamedTuple):
    """What is learned of a turn: characters first to last, that one not included, of the conversation."""

    turn: int
    first: int
    last: int


def answer(chat: Chat, messages: Sequence[Message], y: str) -> str:
    """What the template has the model write for the answer y to these messages, up to its end.

    Raises UserError, naming the turn, where the answer stands behind other words than it is generated
    behind.
    """
    begun = chat.render(messages).text
    turns = [*messages, {"role": "assistant", "content": y}]
    whole = chat.render(turns, begin_answer=False).text
    name = _named(len(messages), turns)
    written = _behind(begun, whole, name, "use config.data.template=text")
    _check_whole(chat, written, y, name)
    stop = chat.stop(written)
    return written.removesuffix(chat.frame.rest) if stop is None else written[: stop[0]]


def conversation(chat: Chat, messages: Sequence[Message]) -> list[tuple[int, ...]]:
    """Segments of token ids that are read and learned in turn; the last message is the assistant's.

    Learned is what stands behind the prompt of generation, up to the end of the turn; where the template
    marks what is generated, what it marks, and the end. Raises UserError, naming the turn, where the ids
    learned would not be those generated.
    """
    whole = chat.render(messages, begin_answer=False)
    found = [
        _learned(chat, whole, messages, turn)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant" and turn
    ]
    spans = [span for span in found if span is not None]
    if not spans:
        raise UserError(
            "the tokenizer's chat template marks nothing of a conversation as generated"
        )
    segments: list[tuple[int, ...]] = []
    at, text = 0, whole.text
    for turn, first, last in spans:
        segments.append(chat.encode(text[at:first], text[:at]))
        if at and sum(segments, ()) != chat.ids(messages[:turn]):
            raise UserError(
                f"{_named(turn, messages)}: what stands before it is cut into other tokens than when it is "
                f"generated: {_ALONE}"
            )
        segments.append(chat.encode(text[first:last], text[:first]))
        at = last
    if spans[-1].turn == len(messages) - 1 and chat.stop(chat.frame.rest) is None:
        # A template that writes no end leaves it to the end of the text.
        segments[-1] = (*segments[-1], chat.end)
    return segments


def _learned(chat: Chat, whole: Rendered, messages: Sequence[Message], turn: int) -> Span | None:
    """The span of a turn; None where the template marks none of it as generated."""
    begun = chat.render(messages[:turn]).text
    alone = chat.render(messages[: turn + 1], begin_answer=False).text
    written = _behind(begun, alone, _named(turn, messages), _ALONE)
    _check_whole(chat, written, messages[turn]["content"], _named(turn, messages))
    stop = chat.stop(written)
    own = written[: stop[1]] if stop else written.removesuffix(chat.frame.rest)
    if not whole.text.startswith(begun + own):
        raise UserError(
            f"{_named(turn, messages)}: the chat template writes it otherwise once the conversation goes "
            f"on: {_ALONE}"
        )
    last = len(begun + own)
    span = Span(turn, len(begun), last if stop else _end_at(chat, whole.text, last))
    return _marked(chat, whole, span, _named(turn, messages)) if chat.marks_answers else span


def _marked(chat: Chat, whole: Rendered, span: Span, name: str) -> Span | None:
    """The span that the template marks as generated, with the end; None where it marks nothing of it."""
    text, (turn, first, last) = whole.text, span
    inside = [(a, b) for a, b in whole.marked if a < last and b > first]
    if not inside:
        return None
    # What is marked of the prompt of generation is not the model's to write.
    begin, end = max(first, inside[0][0]), inside[-1][1]
    # White space that is no token of its own is learned with the word behind it.
    joins = (
        begin > first and not text[first:begin].strip() and _joins(chat, text, first, begin, end)
    )
    if begin != first and not joins:
        raise UserError(
            f"{name}: the chat template marks as generated what begins with {_short(text[begin:end])}, and "
            f"has it generated behind {_short(text[max(0, first - 40) : first])}"
        )
    if end < last and text[end:last].strip() not in ("", chat.frame.end):
        raise UserError(
            f"{name}: the chat template marks a part of the answer only as generated, not "
            f"{_short(text[end:last])}"
        )
    return Span(turn, first, max(last, end))


def _joins(chat: Chat, text: str, first: int, begin: int, end: int) -> bool:
    with_gap, without = (chat.encode(text[i:end], text[:i]) for i in (first, begin))
    return len(with_gap) == len(without)


def _end_at(chat: Chat, text: str, at: int) -> int:
    """Where the end of a turn ends that stands there, behind white space at most; else `at`."""
    ends = {chat.tokenizer.token(chat.tokenizer.eos_id), chat.frame.end} - {""}
    found = re.compile(rf"\s*({'|'.join(map(re.escape, sorted(ends)))})").match(text, at)
    return found.end() if found else at


def _behind(begun: str, whole: str, name: str, advice: str) -> str:
    """What stands behind the prompt of generation of a turn."""
    if whole.startswith(begun):
        return whole[len(begun) :]
    both = enumerate(zip(begun, whole, strict=False))
    same = next((i for i, (a, b) in both if a != b), len(whole))
    raise UserError(
        f"{name}: the chat template has it generated behind {_short(begun[same:])}, and writes "
        f"{_short(whole[same:])} there once it is answered: see config.data.template_arguments, or {advice}"
    )


def _check_whole(chat: Chat, written: str, y: str, name: str) -> None:
    """UserError where the template leaves out a part of an answer, as many do with its reasoning."""
    if not chat.holds(written, y):
        raise UserError(
            f"{name}: the chat template writes {_short(y)} as {_short(written)}, so not all of it would be "
            "learned: see config.data.template_arguments, or take what it leaves out from the answer"
        )


def _named(turn: int, messages: Sequence[Message]) -> str:
    return f"turn {turn + 1} of {len(messages)} (assistant)"


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
