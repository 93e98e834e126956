"""Where chat templates run: a sandbox that offers what `transformers` offers them.

A chat template comes with somebody's checkpoint, so whatever it raises is the template's refusal.
"""

import dataclasses
import datetime
import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import jinja2.meta
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

from srpo_jax.runtime.errors import UserError

# Private-use characters that stand around what {% generation %} marks; no text may hold them.
BEGIN, END = "\U0010ff02", "\U0010ff03"
# What Llama's templates take for today where they are told nothing.
DATE = "2024-07-26"
OWN = ("messages", "add_generation_prompt")  # what no argument may replace
NAMED = "chat_template"  # the argument that chooses among templates that have names


class Refused(Exception):
    """Why a template does not take what it is given."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What a chat template is given beside the messages.

    given: "name=value" each, the value as JSON if it is JSON, else a text. date: YYYY-MM-DD, what the
    template is told today is. Raises UserError for an entry that is none.
    """

    given: tuple[str, ...] = ()
    date: str = DATE

    def __post_init__(self) -> None:
        for entry in self.given:
            if not is_argument(entry):
                raise UserError(
                    f"config.data.template_arguments: {entry!r} is not 'name=value', e.g. "
                    f"'enable_thinking=false' (and {' and '.join(OWN)} are not for you to give)"
                )

    @functools.cached_property
    def variables(self) -> dict[str, Any]:
        """{name: value}."""
        parts = (entry.partition("=") for entry in self.given)
        return {name.strip(): _value(text.strip()) for name, _, text in parts}

    def today(self, form: str) -> str:
        """The date, which templates ask for by the name strftime_now."""
        return datetime.datetime.fromisoformat(self.date).strftime(form)


def is_argument(entry: str) -> bool:
    """Whether it is "name=value", with a name that is free."""
    name, equals, _ = entry.partition("=")
    return bool(equals) and name.strip().isidentifier() and name.strip() not in OWN


def is_date(text: str) -> bool:
    """Whether it is YYYY-MM-DD."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _value(text: str) -> Any:
    python = {"True": True, "False": False, "None": None}
    try:
        return python[text] if text in python else json.loads(text)
    except ValueError:
        return text


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The text, with BEGIN and END around what the template marks as generated. Raises Refused."""
    # What a foreign template may raise is anything: a TypeError of its own, an endless recursion.
    try:
        return _compiled(template).render(variables)
    except jinja2.TemplateSyntaxError as error:
        raise Refused(f"line {error.lineno} of it: {error.message}") from error
    except jinja2.TemplateError as error:
        raise Refused(str(error)) from error
    except Exception as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


def reads(template: str) -> set[str]:
    """The names that a template looks up; none of a template that is no template."""
    try:
        return jinja2.meta.find_undeclared_variables(_environment().parse(template))
    except jinja2.TemplateError:
        return set()


def marks_answers(template: str) -> bool:
    """Whether it says by {% generation %} what the assistant generates."""
    return bool(re.search(r"{%[-+]?\s*generation\s*[-+]?%}", template))


@functools.cache
def _environment() -> jinja2.Environment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    return environment


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


class _Generation(Extension):
    """{% generation %}…{% endgeneration %} marks what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own interface)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_marked")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{BEGIN}{caller()}{END}"


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
