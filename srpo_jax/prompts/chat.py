"""Conversations in token ids, by the template that came with the tokenizer.

The template sees the messages as they are, and its text is tokenised whole: prompts have the ids that
`transformers` gives them. What a message holds that reads like a special token is put in as plain text,
so nothing in it can end a turn.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.prompts import environment
from srpo_jax.prompts.environment import Arguments, Refused
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

Message = Mapping[str, str]  # {"role": …, "content": …}

# Private-use characters: where the shown completion goes; around what is plain text in spite of its
# looks; around the number that stands for a message.
SHOWN = "\U0010ff04"
_PLAIN = "\U0010ff00", "\U0010ff01"
_NUMBER = "\U0010ff05"
_RESERVED = re.compile(f"[{''.join(_PLAIN)}{environment.BEGIN}{environment.END}{_NUMBER}]")


class Rendered(NamedTuple):
    """What a template wrote. marked: the spans (first, last) of its text that it marks as generated."""

    text: str
    marked: tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Frame:
    """How the template frames an answer behind the prompt of generation.

    lead: what stands before the answer, None where the answer stands behind other words than that prompt.
    trail: what stands between the answer and `end`, a token: one that is written behind it or, if there is
    none, once another turn follows; else "". rest: all that stands behind the answer.
    """

    lead: str | None
    trail: str
    end: str
    rest: str


class Chat:
    """A tokenizer's chat template and what it is given beside the messages.

    Raises UserError where there is none, and for arguments that it does not read.
    """

    def __init__(self, tokenizer: Tokenizer, arguments: Arguments | None = None):
        self.tokenizer = tokenizer
        self.arguments = arguments = arguments or Arguments()
        self.template = _chosen(tokenizer, arguments)
        _check_read(self.template, arguments)
        # Tokens that are only white space are text to a template, and merge with text.
        added = {
            token: special for token, special in tokenizer.added_tokens.items() if token.strip()
        }
        self._tokens = tuple(sorted(added, key=len, reverse=True))
        self._added = _any_of(self._tokens)
        self._special = _any_of([token for token in self._tokens if added[token]])
        self._plain = re.compile(
            f"{_PLAIN[0]}({self._special.pattern}){_PLAIN[1]}|[{_PLAIN[0]}{_PLAIN[1]}]"
        )
        self.marks_answers = environment.marks_answers(self.template)
        # What is written of a pair's prompt is asked for again and again.
        self._written = functools.lru_cache(maxsize=16)(self._write)
        self._read_near = functools.lru_cache(maxsize=16)(lambda *near: tuple(self._read(*near)))
        self._missing: dict[tuple[tuple[str, ...], bool], tuple[int, ...]] = {}
        # Templates of models that see pictures may take a message as a list of parts only.
        self._in_parts = False
        if (frame := self._framed()) is None:
            self._in_parts = True
            self._written.cache_clear()
            frame = self._framed()
            self._in_parts = frame is not None
            self._written.cache_clear()
        self.frame = frame or Frame("", "", "", "")

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """All that the text of a conversation depends on."""
        special = tuple(sorted(self.tokenizer.special_tokens.items()))
        return self.template, special, self.arguments

    @functools.cached_property
    def end(self) -> int:
        """The token that ends an answer: the first one that the template writes behind it; else eos.

        Raises UserError where the tokenizer does not read it as a token there.
        """
        if not self.frame.end:
            return self.tokenizer.eos_id
        end = self.encode(self.frame.end)[0]
        if end not in self.encode(f"a{self.frame.trail}{self.frame.end}"):
            raise UserError(
                f"the chat template ends an answer with {self.frame.end!r}, which the tokenizer reads as a "
                'token only where no word stands before it: set "normalized" and "single_word" of it to '
                "false in tokenizer.json"
            )
        return end

    def render(self, messages: Sequence[Message], *, begin_answer: bool = True) -> Rendered:
        """The text of a conversation; begin_answer: up to where the assistant's next words go.

        What reads like a special token in a message stands between two marks, for `encode`. A system
        message that the template refuses is put at the head of the first user message, as the authors of
        such templates advise. Raises UserError where the template takes no such messages or leaves one out.
        """
        for message in messages:
            if _RESERVED.search(message["content"]):
                raise UserError(
                    "a message holds a private-use character beyond U+10FF00: leave it out"
                )
        roles = tuple(message["role"] for message in messages)
        said = [message["content"].strip() for message in messages]
        for missing in self._left_out(roles, begin_answer):
            if said[missing]:
                raise UserError(
                    f"the tokenizer's chat template leaves out message {missing + 1} of {len(roles)} "
                    f"({roles[missing]!r}): use config.data.template=text"
                )
        plain = [self._special.sub(_as_plain, message["content"]) for message in messages]
        return _without_marks(self._render(roles, plain, begin_answer))

    def ids(self, messages: Sequence[Message], *, begin_answer: bool = True) -> tuple[int, ...]:
        """A conversation in token ids; see `render`."""
        return self.encode(self.render(messages, begin_answer=begin_answer).text)

    def around(self, messages: Sequence[Message]) -> tuple[str, str]:
        """The prompt of generation for messages that hold SHOWN once: what is before and behind an answer.

        What frames an answer as the model writes it is left out on both sides, as the answer brings it.
        Raises UserError for a template that frames a shown answer otherwise.
        """
        before, mark, behind = self.render(messages).text.partition(SHOWN)
        if not mark or SHOWN in behind:
            raise UserError("the tokenizer's chat template does not write a shown answer once")
        lead, trail = self.frame.lead, self.frame.trail
        fits = lead is not None and (not lead.strip() or before.endswith(lead))
        if not fits or (trail.strip() and not behind.startswith(trail)):
            wanted = "the end of another prompt" if lead is None else repr(lead + "…" + trail)
            raise UserError(
                f"the tokenizer's chat template has the model write an answer as {wanted}, and a shown one "
                "stands otherwise in the improve prompt: see config.data.template_arguments (many "
                "templates read enable_thinking=false), or use config.data.template=text"
            )
        return before.removesuffix(lead or ""), behind.removeprefix(trail)

    def completion(self, y: str, *, ended: bool = True) -> tuple[int, ...]:
        """Token ids of an answer to no conversation in particular, framed as answers are.

        ended: whether y is whole, or the beginning of an answer.
        """
        begun = self._render(("user",), ("a",), True)
        text = f"{self.frame.lead or ''}{self._special.sub(_as_plain, y)}"
        return self.answer(text + self.frame.trail, begun) if ended else self.encode(text, begun)

    def answer(self, written: str, begun: str) -> tuple[int, ...]:
        """Token ids of what was written of an answer up to its end, which may take the space before it."""
        ids = self.encode(written + self.frame.end, begun)
        return ids[:-1] if self.frame.end else ids

    def holds(self, written: str, y: str) -> bool:
        """Whether all that y says stands in what was written of it, white space apart."""
        if y in written:
            return True
        said = written.translate(dict.fromkeys(map(ord, _PLAIN)))
        return "".join(y.split()) in "".join(said.split())

    def stop(self, written: str) -> tuple[int, int] | None:
        """Where the end token of an answer begins and ends in what stands behind its prompt."""
        if not self.frame.end:
            return None
        found = re.search(f"{re.escape(self.frame.end)}(?!{_PLAIN[1]})", written)
        return found.span() if found else None

    def encode(self, text: str, before: str = "") -> tuple[int, ...]:
        """Token ids of a part of what was rendered, which stands behind the text `before`."""
        ids: list[int] = []
        for number, part in enumerate(self._plain.split(text)):
            if part and number % 2:
                ids += self._as_text(part)
            elif part:
                ids += self._continued(part, before)
            before += part or ""
            if number % 2:
                before += _PLAIN[1]  # what stands there is no special token
        return tuple(ids)

    def _as_text(self, token: str) -> list[int]:
        """A special token's spelling as plain text, letter by letter where it were the token even so."""
        encode = functools.partial(self.tokenizer.encode, continued=True)
        ids = encode(token)
        special = self.tokenizer.encode(token, special=True)
        return [i for letter in token for i in encode(letter)] if special[0] in ids else ids

    def _continued(self, text: str, before: str) -> list[int]:
        """A text's ids behind `before`: what both together have more, where they begin with its own."""
        near, begun = self._near(before)
        if not before:
            return self._read(text, begun=False)
        # What a tokenizer makes of the space around a special token, and behind it, is its own affair.
        own, both = self._read_near(near, begun), self._read(near + text, begun)
        return both[len(own) :] if tuple(both[: len(own)]) == own else self._read(text, begun=True)

    def _near(self, before: str) -> tuple[str, bool]:
        """The end of it that ids behind it depend on, and whether other words stand before that."""
        plain = before.rfind(_PLAIN[1]) + 1
        tokens = [found.start() for found in self._added.finditer(before, plain)]
        return before[tokens[-1] if tokens else plain :], bool(plain and not tokens)

    def _read(self, text: str, begun: bool) -> list[int]:
        """Ids of a text that holds special tokens; begun: whether other words stand before it."""
        encode = functools.partial(self.tokenizer.encode, special=True)
        if not begun:
            return encode(text) if text else []
        found = self._added.search(text)
        head, tail = (text[: found.start()], text[found.start() :]) if found else (text, "")
        return [*(encode(head, continued=True) if head else ()), *(encode(tail) if tail else ())]

    # --- what the template does ---------------------------------------------------------------------

    def _framed(self) -> Frame | None:
        """Of a short conversation; None where the template takes none, or leaves out the answer."""
        try:
            begun, whole = (
                _without_marks(
                    self._render(roles, ["a", SHOWN][: len(roles)], len(roles) == 1)
                ).text
                for roles in (("user",), ("user", "assistant"))
            )
        except UserError:
            return None
        before, shown, rest = whole.partition(SHOWN)
        if not shown:
            return None
        lead = before[len(begun) :] if before.startswith(begun) else None
        end = self._added.search(rest)
        if end is None:
            return Frame(lead, "", self._end_of_earlier(), rest)
        return Frame(lead, rest[: end.start()], end[0], rest)

    def _end_of_earlier(self) -> str:
        """The token that ends an answer once another turn follows; "" where there is none."""
        try:
            text = self._render(("user", "assistant", "user"), ("a", SHOWN, "a"), False)
            opening = self._render(("user",), (SHOWN,), True)
        except UserError:
            return ""
        end = self._added.search(text.partition(SHOWN)[2])
        if end is None:
            return ""
        # What opens the user's turn ends an answer only where it ends generation, as in GLM.
        ends = self.tokenizer.encode(end[0], special=True)[0] in self.tokenizer.stop_ids
        return end[0] if ends or end[0] not in opening.partition(SHOWN)[0] else ""

    def _left_out(self, roles: tuple[str, ...], begin_answer: bool) -> tuple[int, ...]:
        """Numbers of the messages that the template does not write, whatever they say."""
        if (roles, begin_answer) not in self._missing:
            marks = [f"{_NUMBER}{i}{_NUMBER}" for i in range(len(roles))]
            try:
                text = self._render(roles, marks, begin_answer)
                missing = tuple(i for i, mark in enumerate(marks) if mark not in text)
            except UserError:  # it looks at what they say
                missing = ()
            self._missing[roles, begin_answer] = missing
        return self._missing[roles, begin_answer]

    def _render(self, roles: Sequence[str], contents: Sequence[str], begin_answer: bool) -> str:
        return self._written(tuple(roles), tuple(contents), begin_answer)

    def _write(self, roles: Sequence[str], contents: Sequence[str], begin_answer: bool) -> str:
        variables = {
            **{"tools": None, "documents": None, "strftime_now": self.arguments.today},
            **self.tokenizer.special_tokens,
            **self.arguments.variables,
            "messages": [
                {
                    "role": role,
                    "content": [{"type": "text", "text": said}] if self._in_parts else said,
                }
                for role, said in zip(roles, contents, strict=True)
            ],
            "add_generation_prompt": begin_answer,
        }
        try:
            return environment.render(self.template, variables)
        except Refused as error:
            if tuple(roles[:2]) != ("system", "user"):
                raise UserError(
                    f"the tokenizer's chat template does not take these messages ({error}): use "
                    "config.data.template=text"
                ) from error
            joined = [f"{contents[0]}\n\n{contents[1]}", *contents[2:]]
            return self._render(roles[1:], joined, begin_answer)


def _as_plain(found: re.Match[str]) -> str:
    return f"{_PLAIN[0]}{found[0]}{_PLAIN[1]}"


def _without_marks(text: str) -> Rendered:
    spans: list[tuple[int, int]] = []
    begun: list[int] = []
    plain = ""
    for part in re.split(f"([{environment.BEGIN}{environment.END}])", text):
        if part == environment.BEGIN:
            begun.append(len(plain))
        elif part == environment.END and begun:
            spans.append((begun.pop(), len(plain)))
        else:
            plain += part
    return Rendered(plain, tuple(spans))


def _chosen(tokenizer: Tokenizer, arguments: Arguments) -> str:
    """The template that is used; UserError where there is none, or none of the name asked for."""
    named = tokenizer.chat_templates
    name = arguments.variables.get(environment.NAMED)
    if name is not None and name in named:
        return named[name]
    if name is None and tokenizer.chat_template is not None:
        return tokenizer.chat_template
    if named:
        wanted = "none called 'default'" if name is None else f"none called {name!r}"
        raise UserError(
            f"the tokenizer has the chat templates {', '.join(named)}, and {wanted}: choose one by "
            f"config.data.template_arguments=('{environment.NAMED}=NAME',)"
        )
    raise UserError(
        "the tokenizer has no chat template: use config.data.template=text, or a checkpoint that has one"
    )


def _check_read(template: str, arguments: Arguments) -> None:
    """UserError for an argument that the template does not read; says which day it is told, if it asks."""
    reads = environment.reads(template)
    for name in arguments.variables:
        if name not in reads and name != environment.NAMED:
            known = ", ".join(sorted(reads - {*environment.OWN, "strftime_now"})) or "none"
            raise UserError(
                f"config.data.template_arguments: the chat template reads no {name!r}; it reads {known}"
            )
    if "strftime_now" in reads:
        _say_date(arguments.date)


@functools.cache
def _say_date(date: str) -> None:
    status(
        f"the chat template asks for today's date: it is told {date} (config.data.template_date)"
    )


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Of texts, longest first."""
    return re.compile("|".join(map(re.escape, texts)) or "(?!)")
