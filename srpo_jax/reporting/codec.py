"""results.json: the whole report as JSON and back, under a numbered schema."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal

import numpy as np

from srpo_jax.reporting.data import Report
from srpo_jax.reporting.verdicts import nulls
from srpo_jax.runtime.errors import UserError

SCHEMA = 2  # 1 was the report without missing verdicts, several judges and differences


def to_json(report: Report) -> str:
    """The report as JSON text, a line for each part; `from_json` restores it. NaN becomes null."""
    parts: dict[str, Any] = {"schema": SCHEMA} | _encode(report)
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for key, value in parts.items()
    )
    return "{\n" + lines + "\n}\n"


def from_json(text: str) -> Report:
    """Restores what `to_json` wrote. Raises UserError where the text is not a report of this schema."""
    try:
        value = _checked(json.loads(text), dict, "report")
        schema = value.pop("schema", 1)
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema!r}, this program reads {SCHEMA}")
        return typing.cast(Report, _decode(value, Report, "report"))
    except ValueError as error:  # json.JSONDecodeError is one too
        raise UserError(
            f"this is not a report's results.json ({error}); write it again with srpo_jax.evaluate"
        ) from error


def _encode(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {each.name: _encode(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return nulls(value)
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, dict):
        return {key: _encode(item) for key, item in value.items()}
    return value


def _decode(value: Any, kind: Any, where: str) -> Any:
    """JSON value -> `kind`: a dataclass, array, tuple, dict[str, X], Literal, X | None, or a scalar."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(_checked(value, dict, where), kind, where)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _decode(value, arguments[0], where)
    if kind is np.ndarray:
        return _decode_array(value, where)
    if origin is tuple:
        items = _checked(value, list, where)
        kinds = (arguments[0],) * len(items) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(kinds):
            raise ValueError(f"{where} needs {len(kinds)} entries, got {len(items)}")
        return tuple(
            _decode(item, each, f"{where}[{i}]")
            for i, (item, each) in enumerate(zip(items, kinds, strict=True))
        )
    if origin is dict:
        entries = _checked(value, dict, where).items()
        return {key: _decode(item, arguments[1], f"{where}.{key}") for key, item in entries}
    if origin is Literal:
        return _checked(value, str, where)  # the record itself checks which
    if kind is float:
        return float(_checked(value, int | float, where))
    return _checked(value, kind, where)


def _decode_record(value: dict[str, Any], kind: Any, where: str) -> Any:
    kinds = typing.get_type_hints(kind)
    # What has a default was not there yet when older reports were written.
    needed = {field.name for field in dataclasses.fields(kind) if _is_needed(field)}
    if not needed <= set(value) <= set(kinds):
        missing, unknown = sorted(needed - set(value)), sorted(set(value) - set(kinds))
        raise ValueError(f"{where} lacks the keys {missing} and has the unknown keys {unknown}")
    return kind(**{key: _decode(value[key], kinds[key], f"{where}.{key}") for key in value})


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _decode_array(value: Any, where: str) -> np.ndarray:
    try:
        return np.array(_checked(value, list, where), dtype=np.float64)  # None becomes NaN
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} is no array of numbers") from error


def _checked(value: Any, kind: type | types.UnionType, where: str) -> Any:
    # JSON's true is a Python int, but a report's numbers are never booleans.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r:.60}, which is no {getattr(kind, '__name__', kind)}")
    return value
