"""Settings as frozen dataclasses: a field's type, default, meaning and range stand in one place.

    @dataclasses.dataclass(frozen=True)
    class TrainSettings:
        '''How long a run is.'''

        steps: int = setting(100, "updates", at_least(1))

        def __post_init__(self) -> None:
            check(self, "config.train")

A section that exists is therefore a good one, whether it comes from a file, a flag or Python. Imports
nothing of this package but the error.
"""

import dataclasses
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from srpo_jax.runtime.errors import UserError

T = TypeVar("T")


class Check(NamedTuple):
    """good: whether a value, of the right type, is in range. wanted: the range, ending "… must be"."""

    good: Callable[[Any], bool]
    wanted: str


def at_least(least: int) -> Check:
    """For numbers."""
    return Check(lambda value: value >= least, f"at least {least}" if least else "0 or more")


def one_of(*choices: str) -> Check:
    """For texts."""
    *others, last = map(repr, choices)
    return Check(lambda value: value in choices, f"{', '.join(others)} or {last}")


def each(check: Check) -> Check:
    """For tuples whose every entry must pass a check."""
    return Check(lambda values: all(map(check.good, values)), f"each {check.wanted}")


POSITIVE = Check(lambda value: value > 0, "positive")
FRACTION = Check(lambda value: 0 <= value < 1, "in [0, 1)")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a field of a section says of itself beside type and default."""

    meaning: str
    check: Check | None = None

    @property
    def sentence(self) -> str:
        """The meaning with the range."""
        return self.meaning + (f"; {self.check.wanted}" if self.check else "")


def setting(default: T, meaning: str, check: Check | None = None) -> T:
    """A dataclass field; None passes every check where the field's type allows None."""
    said = {"setting": Setting(meaning, check)}
    if isinstance(default, dict):
        return typing.cast(T, dataclasses.field(default_factory=default.copy, metadata=said))
    return dataclasses.field(default=default, metadata=said)


def described(section: object) -> dict[str, Setting]:
    """{field: what it says of itself} of a section or its class; fields without `setting` are left out."""
    fields = dataclasses.fields(section)  # type: ignore[arg-type]
    return {f.name: f.metadata["setting"] for f in fields if "setting" in f.metadata}


def kinds(section: type) -> dict[str, Any]:
    """{field: its type} of a section's class."""
    hints = typing.get_type_hints(section)
    return {field.name: hints[field.name] for field in dataclasses.fields(section)}


def check(section: object, name: str, *, ranges: bool = True) -> None:
    """Checks a section's values; for its `__post_init__`.

    ranges: False checks types only, for a section that is switched off. Raises UserError
    "NAME.KEY=VALUE must be WANTED" for the first value at fault.
    """
    for key, said in described(section).items():
        value, kind = getattr(section, key), kinds(type(section))[key]
        wanted = None
        if not _is_a(value, kind):
            wanted = _words(kind)
        elif ranges and value is not None and said.check and not said.check.good(value):
            wanted = said.check.wanted
        if wanted:
            raise UserError(f"{name}.{key}={value!r} must be {wanted}")


def build(kind: type[T], values: Mapping[str, Any], name: str) -> T:
    """A section, or a dataclass of sections, from a mapping as JSON or a ConfigDict holds it.

    Lists become tuples, whole numbers floats and, in `tuple[str | DATACLASS, ...]` and
    `tuple[DATACLASS, ...]`, mappings records, where the field says so; what is not given keeps its default.
    name: of the mapping, "config.train". Raises UserError for an unknown key and for what `check` refuses.
    """
    fields = kinds(kind)
    given: dict[str, Any] = {}
    for key, value in values.items():
        inner = fields.get(key)
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            given[key] = build(typing.cast(type, inner), value, f"{name}.{key}")
        elif inner is None or dataclasses.is_dataclass(inner):
            raise UserError(f"{name}.{key}={value!r} is not a setting")
        else:
            given[key] = _converted(value, inner, f"{name}.{key}")
    return kind(**given)


def without_none(kind: Any) -> Any:
    """float of `float | None`; another type as it is."""
    if isinstance(kind, types.UnionType) and types.NoneType in typing.get_args(kind):
        (kind,) = (part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _record(kind: Any) -> Any:
    """The dataclass of `DATACLASS` or `str | DATACLASS`; None of another type."""
    parts = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((part for part in parts if dataclasses.is_dataclass(part)), None)


def _converted(value: Any, kind: Any, name: str) -> Any:
    kind = without_none(kind)
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        entry = typing.get_args(kind)[0]
        return tuple(_converted(part, entry, name) for part in value)
    if isinstance(value, Mapping) and _record(kind):
        return build(_record(kind), value, name)
    if typing.get_origin(kind) is dict:
        return _without_lists(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def _without_lists(value: Any) -> Any:
    """With tuples for the lists, at any depth, as JSON has lost them."""
    if isinstance(value, list | tuple):
        return tuple(map(_without_lists, value))
    if isinstance(value, Mapping):
        return {key: _without_lists(part) for key, part in value.items()}
    return value


def _is_a(value: Any, kind: Any) -> bool:
    plain = without_none(kind)
    if value is None:
        return plain is not kind
    if typing.get_origin(plain) is tuple:
        entry = typing.get_args(plain)[0]
        return isinstance(value, tuple) and all(_is_a(part, entry) for part in value)
    if typing.get_origin(plain) is dict:
        return isinstance(value, dict) and all(isinstance(key, str) for key in value)
    if plain in _NUMBERS:
        return isinstance(value, _NUMBERS[plain]) and not isinstance(value, bool)
    return isinstance(value, plain)


_NUMBERS: dict[Any, type] = {int: numbers.Integral, float: numbers.Real}
_WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("True or False", "True or False"),
}


def _words(kind: Any) -> str:
    plain = without_none(kind)
    if typing.get_origin(plain) is tuple:
        words = f"a tuple of {_plural(typing.get_args(plain)[0])}"
    elif typing.get_origin(plain) is dict:
        words = "a dictionary of texts"
    else:
        words = _WORDS[plain][0]
    return words if plain is kind else f"{words}, or None"


def _plural(entry: Any) -> str:
    if dataclasses.is_dataclass(entry):
        return "dictionaries"
    return "texts and dictionaries" if _record(entry) else _WORDS[entry][1]
