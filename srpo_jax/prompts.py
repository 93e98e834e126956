"""How x, and x with a completion to improve, are put to the model.

Training, sampling and evaluation all take their token ids from here, so the ids that are scored are
the ids that are generated from. A prompt is assembled from pieces that are tokenised apart: what the
template says (special tokens read as such) and what the user brings (special tokens read as plain
text, so that no document can end a turn). The text of x comes first in both templates: what stands
before it is stored and read once, for the direct and every improve prompt.
"""

import dataclasses
from collections.abc import Sequence

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.errors import UserError

X, Y = "\ue000", "\ue001"  # private-use characters: where x and the shown completion go


@dataclasses.dataclass(frozen=True)
class Template:
    """Both prompts. direct holds X once; improve holds X and, later, Y once.

    chat: each text is a turn, the user's and the assistant's in alternation, behind the system's;
    otherwise a prompt is a single text.
    """

    direct: tuple[str, ...]
    improve: tuple[str, ...]
    chat: bool = False
    system: str = ""


_DESCRIBE = f"{X}\n\nDescribe this in one short phrase."
_SYSTEM = "You describe texts precisely and concisely."

TEMPLATES = {
    "plain": Template(
        direct=(f"{X}\n\nSummary of this text:\n",),
        improve=(
            f"{X}\n\nSummary of this text, a draft:\n{Y}\n\nSummary of this text, improved:\n",
        ),
    ),
    "chat": Template(
        direct=(_DESCRIBE,),
        improve=(f"{X}\n\nDescription: {Y}\n\nWrite a better description in one short phrase.",),
        chat=True,
        system=_SYSTEM,
    ),
    # The direct answer is the beginning of the improve prompt that shows it: the tree is smaller.
    "chained": Template(
        direct=(_DESCRIBE,),
        improve=(_DESCRIBE, Y, "Write a better description in one short phrase."),
        chat=True,
        system=_SYSTEM,
    ),
    # The paper's task (section 5), its instruction moved behind the post so that prompts share it.
    "tldr": Template(
        direct=(f"{X}\n\nA precise and concise summary of the reddit POST above.\n\nTL;DR:\n",),
        improve=(
            f"{X}\n\nEXAMPLE SUMMARY: {Y}\n\nA precise and concise summary of the reddit POST "
            "above, better than the EXAMPLE SUMMARY.\n\nTL;DR:\n",
        ),
    ),
}


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
    """A template and a tokenizer: text -> Prompt.

    Raises UserError when the template is unknown, or is a chat template and the tokenizer has none.
    """

    def __init__(self, name: str, tokenizer: Tokenizer):
        if name not in TEMPLATES:
            raise UserError(
                f"config.data.template is {name!r}; the templates are {', '.join(TEMPLATES)}"
            )
        template = TEMPLATES[name]
        self.tokenizer = tokenizer
        self.fingerprint = (template, tokenizer.fingerprint)
        if template.chat:
            direct, improve = (
                _as_chat(turns, template.system, name, tokenizer)
                for turns in (template.direct, template.improve)
            )
        else:
            (direct,), (improve,) = template.direct, template.improve
        self._head, self._direct_tail = (self._template_ids(part) for part in direct.split(X))
        head, rest = improve.split(X)
        if self._template_ids(head) != self._head:
            raise ValueError(
                f"template {name!r}: what stands before x must be the same in both prompts"
            )
        self._middle, self._after = (self._template_ids(part) for part in rest.split(Y))

    def prompt(self, x: str) -> Prompt:
        """x as the model sees it. Surrounding white space of x is not part of it."""
        start = (*self._head, *self.tokenizer.encode(x.strip()))
        return Prompt((*start, *self._direct_tail), (*start, *self._middle), self._after)

    def completion(self, y: str) -> tuple[int, ...]:
        """A completion's ids, without end of sequence."""
        return tuple(self.tokenizer.encode(y.strip()))

    def _template_ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, special=True)) if text else ()


def sequences(
    prompt: Prompt, chosen: Sequence[int], rejected: Sequence[int], names: Sequence[str], eos: int
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt ids, completion ids with end of sequence) of each score name, as prefix_tree.build takes.

    "w", "l" stand under the direct prompt; "a|b" is a under the improve prompt that shows b.
    """
    ids = {"w": tuple(chosen), "l": tuple(rejected)}

    def one(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        completion, _, shown = name.partition("|")
        context = prompt.improve(ids[shown]) if shown else prompt.direct
        return context, (*ids[completion], eos)

    return [one(name) for name in names]


def _as_chat(turns: Sequence[str], system: str, name: str, tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        raise UserError(
            f"config.data.template={name!r} needs a chat template and the tokenizer has none: use "
            "config.data.template=plain"
        )
    # A chat template comes with somebody's checkpoint: it is run, so it is run in a sandbox.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    messages = [{"role": "system", "content": system}]
    for i, turn in enumerate(turns):
        messages.append({"role": ("user", "assistant")[i % 2], "content": turn})
    try:
        return environment.from_string(tokenizer.chat_template).render(
            messages=messages, add_generation_prompt=True
        )
    except jinja2.TemplateError as error:
        raise UserError(
            f"config.data.template={name!r}: the tokenizer's chat template does not take a system and a "
            f"user message ({error}): use config.data.template=plain"
        ) from error
