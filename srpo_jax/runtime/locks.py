"""One process at a time where two would spoil each other's files: a lock that ends with its process."""

import contextlib
import fcntl
import functools
import time
from collections.abc import Iterator
from pathlib import Path

from srpo_jax.runtime import distributed, storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

# Seconds that a start waits for the one before it: that may be saving still, and a file server keeps the
# locks of a machine that is lost for a minute and a half.
PATIENCE = 180.0


@contextlib.contextmanager
def alone(file: Path, taken: str, instead: str) -> Iterator[None]:
    """No other process is in a block with the lock `file` until this one ends; the empty file stays.

    taken: what the other one does, for people; instead: what else could be given, such as another folder.
    Called by all processes. Raises UserError where another goes on for PATIENCE seconds. In a store, and on
    a file system without locks, nobody is kept out, which is said once.
    """
    with contextlib.ExitStack() as stack:
        distributed.from_main(lambda: _lock(file, taken, instead, stack))
        yield


def _lock(path: Path, taken: str, instead: str, stack: contextlib.ExitStack) -> None:
    if storage.is_remote(path):
        say_unwatched(path.parent)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock of the process, which its children do not have: they may outlive it.
    file = stack.enter_context(path.open("ab"))
    began, waits = time.monotonic(), False
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() - began >= PATIENCE:
                raise UserError(f"{taken}: let it end, or use {instead}") from error
        except OSError:  # a file system without locks
            say_unwatched(path.parent)
            return
        if not waits:
            status(f"{taken}; waiting for it to end")
        waits = True
        time.sleep(0.5)


@functools.cache
def say_unwatched(folder: Path) -> None:
    """Says, once a process, that two programs could write in a folder at the same time."""
    status(f"{folder}: there are no locks here: see that no second program writes to it")
