"""What goes wrong with files of checkpoints, out of Orbax's and TensorStore's many words."""

import contextlib
import errno
import gc
import logging
import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax

from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.storage import of_store

# Of the place, not of the program: no room, no rights, or it is gone.
OF_THE_PLACE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT),
    *(errno.ENOTDIR, errno.EIO, errno.ESTALE),
}
# The same of a store of objects: it is away, or it refuses.
OF_THE_STORE = re.compile(
    "(ABORTED|DEADLINE_EXCEEDED|PERMISSION_DENIED|RESOURCE_EXHAUSTED|UNAUTHENTICATED|UNAVAILABLE):"
)
CLIENTS = {"aiobotocore", "aiohttp", "botocore", "gcsfs"}


class Damaged(Exception):
    """A checkpoint whose save was completed cannot be read; the message says why."""


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Turns what Orbax raises for unreadable files into `Damaged`, and keeps it quiet.

    Too little memory is no damage: it passes through. Nor is a store that does not answer: `of_store`.
    """
    # asyncio and Orbax report each array that could not be read, at length.
    _hush()
    logs = [logging.getLogger("asyncio"), logging.getLogger("absl")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    failed = True
    try:
        yield
        failed = False
    except UserError:
        raise
    except Exception as error:
        if _is_of_devices(error):
            raise
        if _is_of_store(error):
            raise of_store(
                _chain(error),
                f"a checkpoint cannot be read now: {_cause(error)}; the same command tries it again",
            ) from error
        raise Damaged(_cause(error)) from error
    finally:
        if failed:
            gc.collect()  # asyncio reports on collection
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


@contextlib.contextmanager
def writing(directory: Any) -> Iterator[None]:
    """One sentence, a UserError, where a save fails for want of room or rights, or its folder is gone.

    So it does where a store does not answer, or refuses, see `of_store`.
    """
    _hush()
    try:
        yield
    except Exception as error:
        number = next(filter(None, map(_number, _chain(error))), None)
        if _is_of_devices(error) or isinstance(error, UserError):
            raise
        if number is None and not _is_of_store(error):
            raise
        reason = os.strerror(number) if number else _cause(error)
        sentence = (
            f"{directory}: a checkpoint could not be written: {reason}; those before it are "
            "whole, and the same command goes on from the newest"
        )
        raise (UserError(sentence) if number else of_store(_chain(error), sentence)) from error


def _is_of_devices(error: BaseException) -> bool:
    return any(isinstance(e, jax.errors.JaxRuntimeError | MemoryError) for e in _chain(error))


def _is_of_store(error: BaseException) -> bool:
    """Whether a store of objects is at fault, by the words of TensorStore or of the client's package."""
    return any(
        OF_THE_STORE.match(str(e)) or type(e).__module__.partition(".")[0] in CLIENTS
        for e in _chain(error)
    )


def _number(error: BaseException) -> int | None:
    """The operating system's, if the place is at fault; TensorStore has it in its text."""
    number = error.errno if isinstance(error, OSError) else None
    if found := re.search(r"os_error_code='(\d+)'", str(error)):
        number = int(found[1])
    return number if number in OF_THE_PLACE else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _cause(error: BaseException) -> str:
    """First line of the innermost cause, at readable length."""
    *_, root = _chain(error)
    lines = str(root).partition(" [tensorstore_spec=")[0].splitlines() or [type(root).__name__]
    return lines[0] if len(lines[0]) <= 200 else lines[0][:200] + "…"


_hushed = False


def _hush() -> None:
    """Readers and writers that a failure has left behind say so later, each at length, or at the end.

    They are coroutines of Orbax that nobody awaits any more, and threads of TensorStore whose event loop
    is closed. All other reports go their usual way.
    """
    global _hushed
    if _hushed:
        return
    _hushed = True
    usual, usual_unraisable = sys.excepthook, sys.unraisablehook

    def left_behind(error: BaseException | None, where: str) -> bool:
        closed = isinstance(error, RuntimeError) and "Event loop is closed" in str(error)
        return closed or "coroutine object" in where

    def excepthook(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if not left_behind(error, ""):
            usual(kind, error, trace)

    def unraisablehook(report: Any) -> None:
        if not left_behind(report.exc_value, repr(report.object)):
            usual_unraisable(report)

    sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
    # Orbax's threads tell their failures twice: here, and to whoever waits for them.
    logging.getLogger("absl").addFilter(
        lambda record: not (record.exc_info and "orbax" in record.pathname)
    )
