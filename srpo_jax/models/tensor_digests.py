"""A digest of each tensor of an export, in a file beside them: damage since is found when one is read.

`transformers` and others pass the file over. Models that others wrote have none, and are read unchecked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from srpo_jax.runtime.errors import UserError

FILE = "digests.json"


def digest(array: np.ndarray) -> str:
    """SHA-256 of a tensor's type, shape and values, in hexadecimal digits."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    found = hashlib.sha256(f"{array.dtype} {array.shape} ".encode())
    found.update(content.data)
    return found.hexdigest()


def write(directory: Path, digests: Mapping[str, str]) -> None:
    """{tensor: digest}."""
    text = json.dumps({"sha256": dict(digests)}, indent=2) + "\n"
    (directory / FILE).write_text(text, encoding="utf-8")


def read(directory: Path) -> dict[str, str]:
    """{tensor: digest}, empty where there is no such file; UserError for a damaged one."""
    path = directory / FILE
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_bytes())["sha256"]
        if not isinstance(known, dict):
            raise TypeError(f"{type(known).__name__} in place of digests")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): copy or export the model again, or remove this file to "
            "read the model unchecked"
        ) from error
    return known


def check(known: Mapping[str, str], name: str, array: np.ndarray, path: Path) -> None:
    """UserError where a tensor of the file `path` is not what was exported."""
    if name in known and known[name] != digest(array):
        raise UserError(
            f"{path}: {name!r} has other bits than were exported: copy or export the model again, or "
            f"remove {FILE} beside it if you changed the weights yourself"
        )
