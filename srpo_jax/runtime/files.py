"""Small files of a workdir: written whole or not at all, and one sentence where one is damaged."""

import contextlib
import json
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Indented JSON; on disk when this returns, and until then the file is what it was."""
    with whole(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write in place of `path`, whose content it becomes, at once, when the block ends.

    Several processes may write one path: the last one counts. After a failure `path` is what it was. The
    file to write is one of this machine, also for a path of a store.
    """
    if storage.is_remote(path):
        with tempfile.TemporaryDirectory(prefix="srpo_jax_") as folder:
            part = Path(folder) / path.name
            yield part
            storage.copy(part, path)  # an object appears whole
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        error.filename = str(path)  # the part's name says nothing to anyone
        raise
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, it says so once more
            part.unlink(missing_ok=True)


def _sync(place: Path) -> None:
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file. remedy: what to do about a damaged one, as the end of a sentence.

    Raises UserError where it cannot be read, or is no JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {remedy}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged (it holds no JSON object): {remedy}")
    return value
