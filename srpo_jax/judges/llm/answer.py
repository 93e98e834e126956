"""What an endpoint sent back: the parts of an answer, or why there is none."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

_OPEN = re.compile(r"<(think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSE = re.compile(
    r"</(think|thinking|thought|reasoning)>|<\|channel\|>final<\|message\|>", re.IGNORECASE
)


class Fault(Exception):
    """There is no verdict on one pair. reason: a few words, to be counted by; detail: what came instead."""

    def __init__(self, reason: str, detail: str = "", *, tokens: tuple[int, int] = (0, 0)) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.tokens = reason, detail, tokens


UNPARSABLE, CUT, REFUSED, FILTERED, LONG = (
    *("no verdict in the answer", "cut off", "refused", "filtered", "too long"),
)
BROKEN, REJECTED, LATE, FAILED = ("broken answer", "rejected", "timed out", "server error")


@dataclasses.dataclass(frozen=True)
class Token:
    """A token of the answer. start: of its text in the content; top: text -> log-probability."""

    text: str
    start: int
    top: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """content: without thinking; offset: where it begins in what `tokens` spell. raw: as it came.

    reasoning: what the endpoint gives apart. cut: whether the limit of tokens ended it. tokens: () where
    there are no log-probabilities. prompt_tokens, completion_tokens: None where the endpoint does not say.
    """

    content: str
    raw: str
    reasoning: str = ""
    cut: bool = False
    offset: int = 0
    tokens: tuple[Token, ...] = ()
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    model: str = ""


def read(text: str) -> Answer:
    """The answer in the body of a reply with status 200; Fault where it holds none."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise Fault(BROKEN, f"no JSON: {_short(text)}") from error
    if not isinstance(body, dict):
        raise Fault(BROKEN, f"no JSON object: {_short(text)}")
    if body.get("error"):
        raise Fault(BROKEN, f"an error with status 200: {_short(json.dumps(body['error']))}")
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    spent = _usage(body)
    tokens = (spent[0] or 0, spent[1] or 0)
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise Fault(BROKEN, f"no message: {_short(text)}", tokens=tokens)
    if refusal := message.get("refusal"):
        raise Fault(REFUSED, _short(str(refusal)), tokens=tokens)
    if choice.get("finish_reason") == "content_filter":
        raise Fault(FILTERED, "by the endpoint", tokens=tokens)
    said = _text(message.get("content"))
    content, offset = without_thinking(said)
    return Answer(
        content=content,
        raw=said,
        reasoning=_text(message.get("reasoning_content") or message.get("reasoning")),
        cut=choice.get("finish_reason") == "length",
        offset=offset,
        tokens=_tokens(choice.get("logprobs"), said),
        prompt_tokens=spent[0],
        completion_tokens=spent[1],
        model=str(body.get("model") or ""),
    )


def without_thinking(text: str) -> tuple[str, int]:
    """What follows the thinking, and where that begins; "" where thinking has not ended.

    Some chat templates open the thinking themselves: only its end is in the answer.
    """
    start = 0
    for closed in _CLOSE.finditer(text):
        start = closed.end()
    if _OPEN.search(text, start):
        return "", len(text)
    return text[start:], start


def _text(content: Any) -> str:
    """A message's content: a text, a list of parts, or nothing."""
    if isinstance(content, list):
        parts = (part.get("text") for part in content if isinstance(part, dict))
        return _whole("".join(part for part in parts if isinstance(part, str)))
    return _whole(content) if isinstance(content, str) else ""


def _whole(text: str) -> str:
    """Without halves of surrogate pairs, which no file takes."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _tokens(logprobs: Any, content: str) -> tuple[Token, ...]:
    """The tokens with their log-probabilities; () unless they spell the content.

    From the last one back: some servers list those of the thinking, too, which is not in the content, and
    an "A" that was thought of is not the one that was answered.
    """
    listed = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(listed, list):
        return ()
    tokens, end = [], len(content)
    for entry in reversed(listed):
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            return ()
        text = entry["token"]
        start = _before(content, end, text)
        if start < 0:  # a special token, as the one that ends the answer
            continue
        tokens.append(Token(text, start, _top(entry)))
        end = start
    return tuple(reversed(tokens))


def _before(content: str, end: int, token: str) -> int:
    """Where a token stands that ends at `end`, or before it; -1 where there is none."""
    bare = token.strip()
    if content.endswith(token, 0, end):
        return end - len(token)
    # White space may have been cut off at either end of the content, and is nothing to look for further in.
    if bare and end in (len(content), len(bare)) and content.endswith(bare, 0, end):
        return end - len(bare)
    return content.rfind(token, 0, end) if bare else -1


def _top(entry: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    """The likeliest tokens at one place; the sampled one is among them."""
    listed = entry.get("top_logprobs")
    top: dict[str, float] = {}
    for other in [entry, *(listed if isinstance(listed, list) else [])]:
        if isinstance(other, dict) and isinstance(other.get("token"), str):
            value = other.get("logprob")
            if isinstance(value, int | float) and not math.isnan(value):
                top[other["token"]] = float(value)
    return tuple(top.items())


def _usage(body: dict[str, Any]) -> tuple[int | None, int | None]:
    usage = body.get("usage")
    counts = usage if isinstance(usage, dict) else {}
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    return (
        prompt if isinstance(prompt, int) else None,
        completion if isinstance(completion, int) else None,
    )


def _short(text: str) -> str:
    return " ".join(_whole(text).split())[:300]
