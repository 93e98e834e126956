"""config.json as it is read: what is missing, and what nobody has read, is an error by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo_jax.models.families.unsaid import (
    GENERATION,
    NEUTRAL,
    OLDER,
    OWN_NEUTRAL,
    SILENT,
    UNSAID,
)
from srpo_jax.runtime.errors import UserError


class Keys:
    """config.json, and which of its entries have been read."""

    def __init__(self, path: Path, content: Mapping[str, Any]):
        self.path = path
        self._content = content
        kind = content.get("model_type", "")
        self._unsaid = UNSAID.get(kind, {})
        self._neutral = NEUTRAL | OWN_NEUTRAL.get(kind, {})
        self._own = OWN_NEUTRAL.get(kind, {})
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The entry, or what the family takes for a missing one; default where both are none."""
        self._read.add(key)
        value = self._content.get(key, self._unsaid.get(key))
        return default if value is None else value

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise UserError(f"{self.path} lacks {key!r}: it is not the whole config of a model")
        return value

    def size(self, key: str, default: int | None = None) -> int:
        """The entry, which must be a whole number above 0."""
        value = self.need(key) if default is None else self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1:
            raise UserError(f"{self.path}: {key} is {value!r}, which is no whole number above 0")
        return int(value)

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.path} asks for {what}, which this decoder does not have")

    def check_all_read(self) -> None:
        """UserError for an entry that nobody has read, unless it is silent or asks for nothing."""
        for key, value in self._content.items():
            if key in self._read or key in SILENT | GENERATION or key.startswith("_"):
                continue
            older = key in OLDER and OLDER[key] in self._read and key not in self._own
            if older and value is not None:
                self._check_same(key, OLDER[key])
            elif value not in self._neutral[key] if key in self._neutral else value:
                raise UserError(
                    f"{self.path} asks for {key}={value!r}, which this decoder does not know: if it "
                    "changes nothing in what the model computes, remove the entry"
                )

    def _check_same(self, older: str, key: str) -> None:
        """Two names for one thing must not disagree."""
        first, second = self._content[older], self.get(key)
        if first != second:
            raise UserError(
                f"{self.path} says {older}={first!r} and {key}={second!r}, which are two names for one "
                "thing: remove the wrong one"
            )
