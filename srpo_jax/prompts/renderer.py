"""How x, and x with a completion to improve, are put to the model.

Training, sampling and evaluation all take their token ids from here, so the ids that are scored are
the ids that are generated from. A prompt is assembled from pieces that are tokenised apart: what the
template says (special tokens read as such) and what the user brings (special tokens read as plain
text, so that no document can end a turn). The text of x comes first in both templates: what stands
before it is stored and read once, for the direct and every improve prompt.
"""

import dataclasses
from collections.abc import Sequence

from srpo_jax.data.records import Message
from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.prompts import chat
from srpo_jax.prompts.templates import TEMPLATES, X, Y
from srpo_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Prompt:
    """x in token ids. The improve prompt is before + shown completion + after."""

    direct: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    def improve(self, shown: Sequence[int]) -> tuple[int, ...]:
        """The prompt that shows a completion (ids without end of sequence)."""
        return (*self.before, *shown, *self.after)

    @property
    def shared(self) -> int:
        """How many tokens both prompts begin with; at least one of each is left over."""
        limit = min(len(self.direct), len(self.before)) - 1
        same = (a == b for a, b in zip(self.direct[:limit], self.before[:limit], strict=True))
        return next((i for i, equal in enumerate(same) if not equal), limit)


class Renderer:
    """A template and a tokenizer: text -> Prompt. eos: the token that ends a completion.

    Raises UserError when the template is unknown, or is a chat template and the tokenizer has none.
    """

    def __init__(self, name: str, tokenizer: Tokenizer):
        if name not in TEMPLATES:
            raise UserError(
                f"config.data.template is {name!r}; the templates are {', '.join(TEMPLATES)}"
            )
        template = TEMPLATES[name]
        self.name = name
        self.template = template
        self.tokenizer = tokenizer
        self.fingerprint = (template, tokenizer.fingerprint)
        self.eos = chat.end_of_answer(tokenizer) if template.chat else tokenizer.eos_id
        if template.improvement:
            chat.render(
                tokenizer, [{"role": "user", "content": X}]
            )  # refuses a tokenizer without template
            return
        if template.chat:
            direct, improve = (
                _as_chat(turns, template.system, name, tokenizer)
                for turns in (template.direct, template.improve)
            )
        else:
            (direct,), (improve,) = template.direct, template.improve
        head, tail = direct.split(X)
        begins = tokenizer.begins_with_bos and not template.chat and tokenizer.bos_id is not None
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
                f"template {name!r}: what stands before x must be the same in both prompts"
            )
        self._middle, self._after = (self._template_ids(part) for part in rest.split(Y))

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Whatever ends a completion, `eos` first."""
        return tuple(dict.fromkeys((self.eos, *self.tokenizer.stop_ids)))

    def prompt(self, x: str | Sequence[Message]) -> Prompt:
        """x, a text or a conversation, as the model sees it. White space around it is not part of it.

        Raises UserError for a conversation under a template for texts.
        """
        if self.template.improvement:
            return self._dialogue(_messages(x))
        if not isinstance(x, str):
            if [message.role for message in x] != ["user"]:
                raise UserError(
                    f"the prompt is a conversation, and config.data.template={self.name!r} is for texts: "
                    "use config.data.template=dialogue"
                )
            x = x[0].content
        start = (*self._head, *self.tokenizer.encode(x.strip(), continued=self._begun))
        return Prompt((*start, *self._direct_tail), (*start, *self._middle), self._after)

    def conversation(self, x: str | Sequence[Message], y: str) -> list[tuple[int, ...]]:
        """x and the answer y as segments that are read and learned in turn; see `prefix_tree.build`.

        Learned is what the assistant says, and the end of each of its turns. For SFT.
        """
        if not self.template.chat:
            raise UserError(
                f"this is a conversation, and config.data.template={self.name!r} is for texts: use "
                "config.data.template=dialogue"
            )
        messages = [*_messages(x), {"role": "assistant", "content": y}]
        (head, _), *rest = chat.pieces(self.tokenizer, messages, begin_answer=False)
        segments, read = [], head
        for (said, role), (behind, _) in zip(rest[::2], rest[1::2], strict=True):
            if role != "assistant":
                read = (*read, *said, *behind)
                continue
            ends = behind[:1] == (self.eos,)
            # A template that writes no end leaves it to the end of the text.
            end = (self.eos,) if ends or not behind else ()
            segments += [read, (*said, *end)]
            read = behind[1:] if ends else behind
        return segments

    def _dialogue(self, messages: list[dict[str, str]]) -> Prompt:
        def join(parts: Sequence[tuple[tuple[int, ...], str | None]]) -> tuple[int, ...]:
            return tuple(i for ids, _ in parts for i in ids)

        direct = join(chat.pieces(self.tokenizer, messages))
        more = [{"role": "assistant", "content": ""}]
        more.append({"role": "user", "content": self.template.improvement})
        parts = chat.pieces(self.tokenizer, [*messages, *more])
        # The pieces are template, message, template, …: the empty message stands for the shown completion.
        shown = 2 * len(messages) + 1
        return Prompt(direct, join(parts[:shown]), join(parts[shown:]))

    def completion(self, y: str) -> tuple[int, ...]:
        """A completion's ids, without end of sequence."""
        return tuple(self.tokenizer.encode(y.strip(), continued=True))

    def _template_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, special=True, continued=True)) if text else ()


def _messages(x: str | Sequence[Message]) -> list[dict[str, str]]:
    if isinstance(x, str):
        return [{"role": "user", "content": x}]
    return [{"role": message.role, "content": message.content} for message in x]


def sequences(
    prompt: Prompt, chosen: Sequence[int], rejected: Sequence[int], names: Sequence[str], eos: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt ids, completion ids with end of sequence) of each score name, as prefix_tree.build takes.

    "w", "l" stand under the direct prompt; "a|b" is a under the improve prompt that shows b.
    """
    completions = {"w": (*chosen, eos), "l": (*rejected, eos)}
    contexts = {
        "": prompt.direct,
        **{shown: prompt.improve(ids[:-1]) for shown, ids in completions.items()},
    }
    found = []
    for name in names:
        completion, _, shown = name.partition("|")
        found.append((contexts[shown], completions[completion]))
    return found


def _as_chat(turns: Sequence[str], system: str, name: str, tokenizer: Tokenizer) -> str:
    messages = [{"role": "system", "content": system}]
    for i, turn in enumerate(turns):
        messages.append({"role": ("user", "assistant")[i % 2], "content": turn})
    try:
        return chat.render(tokenizer, messages)
    except UserError as error:
        raise UserError(f"config.data.template={name!r}: {error}") from error
