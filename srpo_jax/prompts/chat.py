"""Messages -> the text a chat model was trained on, by the template that came with its tokenizer."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.runtime.errors import UserError

Message = Mapping[str, str]  # {"role": …, "content": …}


class _Generation(Extension):
    """{% generation %}…{% endgeneration %} marks what the assistant says; the text stays as it is."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(tokenizer: Tokenizer, messages: Sequence[Message], *, begin_answer: bool = True) -> str:
    """The text of a conversation; begin_answer: up to where the assistant's next words go.

    A system message that the template refuses is put at the head of the first user message, as the authors
    of such templates advise.
    Raises UserError where there is no template, or it takes no such messages.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "the tokenizer has no chat template: use config.data.template=plain, or a checkpoint "
            "that has one"
        )
    try:
        return _render(tokenizer, messages, begin_answer)
    except jinja2.TemplateError as error:
        first, *rest = messages
        if first["role"] != "system" or not rest or rest[0]["role"] != "user":
            raise UserError(
                f"the tokenizer's chat template does not take these messages ({error}): use "
                "config.data.template=plain"
            ) from error
        joined = {"role": "user", "content": f"{first['content']}\n\n{rest[0]['content']}"}
        return render(tokenizer, [joined, *rest[1:]], begin_answer=begin_answer)


def pieces(
    tokenizer: Tokenizer, messages: Sequence[Message], *, begin_answer: bool = True
) -> list[tuple[tuple[int, ...], str | None]]:
    """A conversation in token ids: what the template says (role None) and what the messages say, in turn.

    They are tokenised apart, messages as plain text: nothing in them can end a turn. White space around a
    message is not part of it. Raises UserError as `render`, and for a template that leaves a message out.
    """
    marked = [{"role": m["role"], "content": chr(_MARK + i)} for i, m in enumerate(messages)]
    text = render(tokenizer, marked, begin_answer=begin_answer)
    found: list[tuple[tuple[int, ...], str | None]] = []
    for i, message in enumerate(messages):
        before, mark, text = text.partition(chr(_MARK + i))
        if not mark:
            raise UserError(
                f"the tokenizer's chat template leaves out message {i + 1} of {len(messages)} "
                f"({message['role']!r}): use config.data.template=plain"
            )
        found.append((_template_ids(tokenizer, before, first=not found), None))
        content = tokenizer.encode(message["content"].strip(), continued=True)
        found.append((tuple(content), message["role"]))
    found.append((_template_ids(tokenizer, text, first=not found), None))
    return found


_MARK = 0xF0000  # private-use characters: one for each message


def _template_ids(tokenizer: Tokenizer, text: str, first: bool) -> tuple[int, ...]:
    return tuple(tokenizer.encode(text, special=True, continued=not first)) if text else ()


def _render(tokenizer: Tokenizer, messages: Sequence[Message], begin_answer: bool) -> str:
    # A chat template comes with somebody's checkpoint: it is run, so it is run in a sandbox.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    special = {"eos_token": tokenizer.token(tokenizer.eos_id)}
    if tokenizer.bos_id is not None:
        special["bos_token"] = tokenizer.token(tokenizer.bos_id)
    return environment.from_string(tokenizer.chat_template or "").render(
        messages=list(messages), add_generation_prompt=begin_answer, **special
    )


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def end_of_answer(tokenizer: Tokenizer) -> int:
    """The token that the chat template writes behind what the assistant says; else the tokenizer's eos.

    Some chat models end a turn with another token than a text (Gemma: <end_of_turn>).
    """
    marked = "\ue002"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": marked}]
    try:
        _, _, behind = render(tokenizer, messages, begin_answer=False).partition(marked)
    except UserError:
        return tokenizer.eos_id
    ids = tokenizer.encode(behind.lstrip(), special=True, continued=True)
    special = bool(ids) and not tokenizer.decode(ids[:1])
    return ids[0] if special else tokenizer.eos_id
