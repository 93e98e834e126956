"""How x, and x with a completion to improve, are put to the model.

Training, sampling and evaluation all take their token ids from here, so the ids that are scored are the ids
that are generated from. What the user brings is read as plain text, so that no document can end a turn. In
templates that are single texts, the text of x comes first and is tokenised apart from what follows; in chat
templates prompts are what the tokenizer's own template writes (see `chat`).
"""

import dataclasses
import functools
from collections.abc import Sequence

from srpo_jax.data.records import Message
from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.prompts import turns
from srpo_jax.prompts.chat import SHOWN, Chat
from srpo_jax.prompts.environment import Arguments
from srpo_jax.prompts.templates import TEMPLATES, X, Y
from srpo_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prompt:
    """x in token ids. The improve prompt is before + shown completion + after.

    refused: why there is no improve prompt, where there is none. stops: what ends a completion, as far as
    it is known.
    """

    direct: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    refused: str = ""
    stops: tuple[int, ...] = ()

    def improve(self, shown: Sequence[int]) -> tuple[int, ...]:
        """The prompt that shows a completion (ids without end of sequence); UserError where refused."""
        if self.refused:
            raise UserError(self.refused)
        return (*self.before, *shown, *self.after)

    def room(self, new: int) -> int:
        """Tokens of the longer of both prompts, where a completion of `new` tokens is shown."""
        return max(
            len(self.direct), 0 if self.refused else len(self.before) + new + len(self.after)
        )

    @functools.cached_property
    def shared(self) -> int:
        """How many tokens both prompts begin with; at least one of each is left over."""
        limit = max(min(len(self.direct), len(self.before)) - 1, 0)
        same = (a == b for a, b in zip(self.direct[:limit], self.before[:limit], strict=True))
        return next((i for i, equal in enumerate(same) if not equal), limit)


class Renderer:
    """A template and a tokenizer: text -> Prompt. eos: the token that ends a completion.

    arguments: what the tokenizer's chat template is given beside the messages. Raises UserError when the
    template is unknown, is a chat template that the tokenizer has none for, or reads no such arguments.
    """

    def __init__(self, name: str, tokenizer: Tokenizer, arguments: Arguments | None = None):
        if name not in TEMPLATES:
            raise UserError(
                f"config.data.template is {name!r}; the templates are {', '.join(TEMPLATES)}"
            )
        self.name = name
        self.template = TEMPLATES[name]
        self.tokenizer = tokenizer
        self._chat: Chat | None = None
        if self.template.chat:
            self._chat = self._open_chat(arguments)
        else:
            self._open_text()
        self.eos = self._chat.end if self._chat else tokenizer.eos_id
        self.fingerprint = (
            *(self.template, tokenizer.fingerprint),
            self._chat.fingerprint if self._chat else (),
        )

    def _open_chat(self, arguments: Arguments | None) -> Chat:
        try:
            chat = Chat(self.tokenizer, arguments)
            chat.render(self._direct("x"))
        except UserError as error:
            raise UserError(f"config.data.template={self.name!r}: {error}") from error
        return chat

    def _open_text(self) -> None:
        (direct,), (improve,) = self.template.direct, self.template.improve
        head, tail = direct.split(X)
        tokenizer = self.tokenizer
        begins = tokenizer.begins_with_bos and tokenizer.bos_id is not None
        # What stands at the very beginning is tokenised as such; everything else continues a text.
        self._head = (
            *((tokenizer.bos_id,) if begins else ()),
            *(tokenizer.encode(head, special=True) if head else ()),
        )
        self._begun = bool(head)
        self._direct_tail = self._template_ids(tail)
        improve_head, rest = improve.split(X)
        if improve_head != head:
            raise ValueError(
                f"template {self.name!r}: what stands before x must be the same in both prompts"
            )
        self._middle, self._after = (self._template_ids(part) for part in rest.split(Y))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Whatever ends a completion, `eos` first."""
        return tuple(dict.fromkeys((self.eos, *self.tokenizer.stop_ids)))

    def prompt(self, x: str | Sequence[Message]) -> Prompt:
        """x, a text or a conversation, as the model sees it. White space around a text is not part of it.

        Where the chat template allows for no improve prompt, the prompt says so when it is asked for it.
        Raises UserError for a conversation under a template for texts, and where the chat template does not
        take x.
        """
        if self._chat is None:
            text = self._text(x)
            start = (*self._head, *self.tokenizer.encode(text, continued=self._begun))
            direct, before = (*start, *self._direct_tail), (*start, *self._middle)
            return Prompt(direct, before, self._after, stops=self.stop_ids)
        direct = self._chat.ids(self._direct(x))
        try:
            around = self._chat.around(self._improve(x, SHOWN))
        except UserError as error:
            return Prompt(direct, (), (), str(error), self.stop_ids)
        before, after = (
            self._chat.encode(around[0]),
            self._chat.encode(around[1], around[0] + SHOWN),
        )
        return Prompt(direct, before, after, stops=self.stop_ids)

    def answer(self, x: str | Sequence[Message], y: str, *, shown: bool = False) -> tuple[int, ...]:
        """`completion` as the template writes it for this very x and y.

        shown: whether the improve prompt is to show it too. Raises UserError, naming the turn, where a chat
        template writes y otherwise than it would be generated, or shown.
        """
        if self._chat is None:
            return self.completion(y)
        asked = self._direct(x)
        written = turns.answer(self._chat, asked, y.strip())
        if shown and self._answers_in_turn:
            before, after = self._chat.around(self._improve(x, SHOWN))
            if self._chat.render(self._improve(x, y.strip())).text != before + written + after:
                raise UserError(
                    f"turn {len(asked) + 1} (assistant): the chat template writes the answer otherwise "
                    "once another turn follows (many cut reasoning): take that out of the completions"
                )
        return self._chat.answer(written, self._chat.render(asked).text)

    def completion(self, y: str, *, ended: bool = True) -> tuple[int, ...]:
        """A completion's ids, without end of sequence. White space around y is not part of it.

        Under a chat template, with what the model is to write before and behind every answer. ended:
        whether y is whole, or the beginning of a completion.
        """
        if self._chat is None:
            return tuple(self.tokenizer.encode(y.strip(), continued=True))
        return self._chat.completion(y.strip(), ended=ended)

    def conversation(self, x: str | Sequence[Message], y: str) -> list[tuple[int, ...]]:
        """x and the answer y as segments that are read and learned in turn; see `prefix_tree.build`.

        Learned is what the assistant generates, and the end of each of its turns; white space around its
        words is not part of them. For SFT. Raises UserError as `turns.conversation`.
        """
        if self._chat is None:
            raise UserError(
                f"this is a conversation, and config.data.template={self.name!r} is for texts: use "
                "config.data.template=dialogue"
            )
        messages = [*_messages(x), {"role": "assistant", "content": y}]
        for message in messages:
            if message["role"] == "assistant":
                message["content"] = message["content"].strip()
        return turns.conversation(self._chat, messages)

    @property
    def _answers_in_turn(self) -> bool:
        """Whether a shown completion is a turn of the assistant."""
        return bool(self.template.improvement) or Y in self.template.improve

    def _direct(self, x: str | Sequence[Message]) -> list[dict[str, str]]:
        if self.template.improvement:
            return _messages(x)
        return self._turns(self.template.direct, self._text(x), "")

    def _improve(self, x: str | Sequence[Message], y: str) -> list[dict[str, str]]:
        if not self.template.improvement:
            return self._turns(self.template.improve, self._text(x), y)
        more = [{"role": "assistant", "content": y}]
        more.append({"role": "user", "content": self.template.improvement})
        return [*_messages(x), *more]

    def _turns(self, turns: Sequence[str], x: str, y: str) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.template.system}]
        for i, turn in enumerate(turns):
            content = y.join(part.replace(X, x) for part in turn.split(Y))
            messages.append({"role": ("user", "assistant")[i % 2], "content": content})
        return messages

    def _text(self, x: str | Sequence[Message]) -> str:
        if isinstance(x, str):
            return x.strip()
        if [message.role for message in x] != ["user"]:
            raise UserError(
                f"the prompt is a conversation, and config.data.template={self.name!r} is for texts: "
                "use config.data.template=dialogue"
            )
        return x[0].content.strip()

    def _template_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, special=True, continued=True)) if text else ()


def _messages(x: str | Sequence[Message]) -> list[dict[str, str]]:
    if isinstance(x, str):
        return [{"role": "user", "content": x.strip()}]
    return [{"role": message.role, "content": message.content} for message in x]


def sequences(
    prompt: Prompt, chosen: Sequence[int], rejected: Sequence[int], names: Sequence[str], eos: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt ids, completion ids with end of sequence) of each score name, as prefix_tree.build takes.

    "w", "l" stand under the direct prompt; "a|b" is a under the improve prompt that shows b. "a_end" is for
    the hidden state at the end of a: all is prompt, and what is predicted from it a mere stand-in.
    """
    completions = {"w": (*chosen, eos), "l": (*rejected, eos)}
    # One object for all that stand under a context: what is shared is found and turned into an array once.
    contexts = {"": prompt.direct}
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for name in names:
        if name.endswith("_end"):
            found.append(((*prompt.direct, *completions[name.removesuffix("_end")]), (eos,)))
            continue
        completion, _, shown = name.partition("|")
        if shown not in contexts:
            contexts[shown] = prompt.improve(completions[shown][:-1])
        found.append((contexts[shown], completions[completion]))
    return found
