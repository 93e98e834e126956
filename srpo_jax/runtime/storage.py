"""Where a run's files lie: a folder of this machine, or one of an object store (gs://, s3://).

A path of this machine is a `pathlib.Path`, one of a store an `etils.epath.Path`, which has the methods of
the former that this package uses. Objects of a store are written whole or not at all, but a store knows
no append, no memory map and no file descriptor. What needs one of these works on a copy in a folder of
this machine, and the functions here bring it there and back.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, cast

import fsspec
from etils import epath

from srpo_jax.runtime.errors import Unavailable, UserError

# scheme -> (fsspec's name of it, the package that speaks it, our extra)
STORES = {"gs": ("gcs", "gcsfs", "gcs"), "s3": ("s3", "s3fs", "s3")}
SECONDS = 30.0  # between two copies of a growing file to a store


def place(path: str | Path) -> Path:
    """The path of a name that a user gave, or of one kept in a file.

    ~/ is the user's home, which no shell puts into --workdir=~/runs. Raises UserError for a store that
    is not known, and for one whose package is not installed.
    """
    if isinstance(path, Path | epath.Path):
        return cast(Path, path)
    scheme, separator, _ = path.partition("://")
    if not separator:
        return Path(path).expanduser() if path.startswith("~/") else Path(path)
    if scheme not in STORES:
        known = ", ".join(f"{name}://" for name in STORES)
        raise UserError(f"{path}: of the stores of objects {known} can be used, or a local folder")
    name, package, extra = STORES[scheme]
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client, whatever else is installed
    # Another process, or TensorStore, may have written since a listing was kept.
    fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    try:
        fsspec.get_filesystem_class(name)
    except ImportError as error:
        raise UserError(
            f"{path} needs the package {package}: pip install 'srpo_jax[{extra}]'"
        ) from error
    return cast(Path, epath.Path(path))


def folder(path: str | Path, flag: str) -> Path:
    """`place` of a folder to be used; UserError where it is a file, or its store does not answer."""
    found = place(path)
    try:
        with asking(f"{flag}={path}"):
            found.stat()  # `exists` takes every failure of a store for a no
            is_file = found.is_file()
    except FileNotFoundError:
        return found
    if is_file:
        raise UserError(f"{flag}={path} is a file: give a folder")
    return found


def check_writable(path: Path, name: str) -> None:
    """UserError where nothing could be written at a path: a file is among its folders, or no right to.

    So that a mistake is said at the start, not when all is done that was to be written. Nothing is made. A
    store is not asked. name: of the flag or setting.
    """
    if is_remote(path):
        return
    whole = path.absolute()
    nearest = next(one for one in (whole, *whole.parents) if os.path.lexists(one))
    parent = nearest.parent if nearest == whole and nearest.is_file() else nearest
    if not parent.is_dir():
        raise UserError(f"{name}={path}: {parent} is no folder: give another path")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"{name}={path}: nothing may be written in {parent}: give another path")


@contextlib.contextmanager
def asking(what: object) -> Iterator[None]:
    """UserError where a place fails: no rights, no such bucket; `Unavailable` where a store is away.

    what: names the place, with its scheme. That a file is not there passes through.
    """
    try:
        yield
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        sentence = f"{what} cannot be used: {lines[0]}"
        raise (
            of_store([error], sentence) if "://" in str(what) else UserError(sentence)
        ) from error


# What a store or its client says to who may not ask, or asks for what is not there.
_REFUSAL = re.compile(
    "PERMISSION_DENIED|UNAUTHENTICATED|AccessDenied|Forbidden|NoSuchBucket|InvalidAccessKey|"
    "SignatureDoesNotMatch|[Cc]redentials|Anonymous caller|Parameter validation failed|INVALID_ARGUMENT"
)


def of_store(causes: Iterable[BaseException], sentence: str) -> UserError:
    """The sentence as an error that the user mends, or, unless the store refuses, as `Unavailable`."""
    refused = any(isinstance(e, PermissionError) or _REFUSAL.search(str(e)) for e in causes)
    return UserError(sentence) if refused else Unavailable(sentence)


def here(path: str | Path, flag: str) -> Path:
    """A path of this machine; UserError for one of a store."""
    if "://" in str(path):
        raise UserError(f"{flag}={path}: this must be a path of this machine, not of a store")
    return place(path)


def is_remote(path: str | Path) -> bool:
    """Whether it lies in a store."""
    return "://" in str(path)


def absolute(path: Path) -> Path:
    """From the root, without links; a store's paths are so already."""
    return path if is_remote(path) else path.resolve()


def size(path: Path) -> int:
    """Bytes of a file."""
    said: Any = path.stat()
    return int(said.length if is_remote(path) else said.st_size)


def changed(path: Path) -> float:
    """Seconds since 1970; 0 where the store does not say."""
    said: Any = path.stat()
    return float(said.mtime if is_remote(path) else said.st_mtime)


def stamp(path: Path) -> list[int]:
    """What changes when the file does: its size, and when that was in nanoseconds."""
    if is_remote(path):
        return [size(path), int(changed(path) * 1e9)]
    said = path.stat()
    return [said.st_size, said.st_mtime_ns]


def below(directory: Path) -> Iterator[Path]:
    """All files in a folder and its folders."""
    for path in sorted(directory.iterdir()):
        if path.is_dir():
            yield from below(path)
        else:
            yield path


def remove_folder(path: Path) -> None:
    """With all that is in it; nothing happens where there is none."""
    if is_remote(path):
        cast(epath.Path, path).rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def rename_folder(path: Path, target: Path) -> None:
    """`target` is not there. A store has no folders: its objects are copied, and the old ones removed."""
    if not is_remote(path):
        path.rename(target)
        return
    # Not epath's `rename`: the clients fail at a copy of what is no object, the folder itself.
    client = fsspec.filesystem(str(path).partition("://")[0])
    for file in below(path):
        client.cp_file(str(file), str(target / file.relative_to(path).as_posix()))
    remove_folder(path)


def copy(source: Path, target: Path) -> None:
    """A file from or to a store, a piece at a time."""
    if not is_remote(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write, 1 << 24)


def append(path: Path, content: bytes) -> None:
    """Adds to the end of a file, which is made if it is not there; on disk when this returns.

    In a store the whole object is written anew, so this is for small files and rare additions.
    """
    if is_remote(path):
        before = path.read_bytes() if path.exists() else b""
        path.write_bytes(before + content)
        return
    with path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def local_copy(path: Path) -> Path:
    """The file itself, or of one in a store a copy on this machine, which is kept for the next time.

    The copies lie in the folder for temporary files (TMPDIR names another), by what they are copies of.
    """
    if not is_remote(path):
        return path
    kept = _copy_of(path, stamp(path))
    if not kept.is_file() or size(kept) != size(path):
        part = kept.with_name(f".{os.getpid()}-{kept.name}")
        copy(path, part)
        part.replace(kept)
    return kept


def local_folder(path: Path) -> Path:
    """The folder itself, or of one in a store a copy on this machine, as `local_copy`."""
    if not is_remote(path):
        return path
    held = list(below(path))
    kept = _copy_of(path, [(file.name, stamp(file)) for file in held])
    if not kept.is_dir():
        part = kept.with_name(f".{os.getpid()}-{kept.name}")
        for file in held:
            copy(file, part / file.relative_to(path).as_posix())
        try:
            part.replace(kept)
        except OSError:
            if not kept.is_dir():  # else another process was faster
                raise
            remove_folder(part)
    return kept


def _copy_of(path: Path, stamps: Any) -> Path:
    """Where the copy of a store's file or folder lies, as it is now."""
    key = hashlib.sha256(repr((str(path), stamps)).encode()).hexdigest()[:32]
    return Path(tempfile.gettempdir()) / f"srpo_jax_copies_{os.getuid()}" / f"{key}-{path.name}"


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A folder to write files into: itself; for one in a store one here, whose files follow at the end."""
    if not is_remote(directory):
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="srpo_jax_") as temporary:
        yield Path(temporary)
        send(Path(temporary), directory)


def send(source: Path, directory: Path) -> None:
    """Copies all files of a folder of this machine into one of a store."""
    for path in below(source):
        copy(path, directory / path.relative_to(source).as_posix())


class Lines:
    """A text file that grows. What was written is on disk at once, or in a store within SECONDS.

    There the object is written anew, from a copy on this machine: with a `write`, where SECONDS have
    passed since the last time, and at `flush` and `close`.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._remote = path, is_remote(path)
        if not self._remote:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: Any = path.open("ab")
            return
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `close`)
        if path.exists():
            self._file.write(path.read_bytes())
        else:
            path.write_bytes(b"")
        self._sent, self._unsent = time.monotonic(), False

    def write(self, text: str) -> None:
        """Adds a text."""
        self._file.write(text.encode())
        self._file.flush()
        if self._remote:
            self._unsent = True
            if time.monotonic() - self._sent >= SECONDS:
                self.flush()

    def flush(self) -> None:
        """Until this returns a store may lack the last lines."""
        if self._remote and self._unsent:
            self._file.seek(0)
            with self._path.open("wb") as out:
                shutil.copyfileobj(self._file, out, 1 << 24)
            self._sent, self._unsent = time.monotonic(), False

    def close(self) -> None:
        """Flushes; nothing can be written any more."""
        self.flush()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
