"""Small files of a workdir: written whole or not at all, and one sentence where one is damaged."""

import json
import os
from pathlib import Path
from typing import Any

from srpo_jax.runtime.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; on disk when this returns, and until then the file is what it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as out:
        out.write(json.dumps(value, indent=2) + "\n")
        out.flush()
        os.fsync(out.fileno())
    part.replace(path)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. remedy: what to do about a damaged one, as the end of a sentence.

    Raises UserError where it cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return value
