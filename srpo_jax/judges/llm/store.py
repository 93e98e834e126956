"""Answers on disk: what was said to each question, by a hash of all that determines it."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from srpo_jax.runtime import files, storage
from srpo_jax.runtime.errors import UserError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,
    judge TEXT NOT NULL,         -- a hash of who was asked: endpoint, model, parameters, template
    verdict REAL,                -- preference for what was shown first, in [0, 1]; NULL: none
    reason TEXT NOT NULL,        -- why there is none; '' where there is one
    answer TEXT NOT NULL,        -- as it came
    mode TEXT NOT NULL,          -- where the verdict was read: logprobs, json, text
    prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    model TEXT NOT NULL,         -- as the endpoint calls it
    time REAL NOT NULL           -- seconds since 1970
);
CREATE TABLE IF NOT EXISTS modes (judge TEXT PRIMARY KEY, mode TEXT NOT NULL);
"""
_OLD = {"A": 1.0, "B": 0.0, "tie": 0.5}


@dataclasses.dataclass(frozen=True)
class Record:
    """What is kept of one question in one order; see the table's comments."""

    verdict: float | None
    reason: str = ""
    answer: str = ""
    mode: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    time: float = dataclasses.field(default_factory=time.time)


class Store:
    """Records by key, in an SQLite file (or in memory); every `put` is on disk when it returns.

    An answer that is no verdict is kept as such. Safe with threads, and with another process beside. A file
    in a store of objects is worked on here and sent every `storage.SECONDS`, and at `flush`: there, two
    programs that judge at once need two files.

    `old`: how many verdicts the file holds in the format of before (a table `verdicts`); they stay there.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._lock = threading.Lock()
        try:
            self._file = sqlite3.connect(
                self._place(path), check_same_thread=False, isolation_level=None, timeout=60
            )
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.executescript(_SCHEMA)
            self.old = self._count_old()
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"config.judge.cache={path} cannot be used as the store of verdicts ({error}): "
                "name another file, or delete it"
            ) from error

    def get(self, keys: Iterable[str]) -> dict[str, Record]:
        """The records there are."""
        names = ", ".join(field.name for field in dataclasses.fields(Record))
        found = {}
        with self._lock:
            for key in keys:
                query = self._file.execute(f"SELECT {names} FROM answers WHERE key = ?", (key,))
                if row := query.fetchone():
                    found[key] = Record(*row)
        return found

    def put(self, key: str, judge: str, record: Record) -> None:
        """Keeps a record in place of one that may be there."""
        values = (key, judge, *dataclasses.astuple(record))
        places = ", ".join("?" * len(values))
        with self._lock:
            self._file.execute(f"INSERT OR REPLACE INTO answers VALUES ({places})", values)
            due = self._remote and time.monotonic() - self._sent >= storage.SECONDS
        if due:
            self.flush()

    def flush(self) -> None:
        """A file in a store of objects has everything when this returns."""
        if not self._remote:
            return
        with self._lock, files.whole(self._remote) as part:
            self._sent = time.monotonic()
            with contextlib.closing(sqlite3.connect(part)) as whole:
                self._file.backup(whole)

    def _place(self, path: str | Path | None) -> str | Path:
        """The file to work on."""
        self._remote = storage.place(path) if path and storage.is_remote(path) else None
        self._sent = time.monotonic()
        if not path:
            return ":memory:"
        if self._remote is None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            return path
        self._folder = tempfile.TemporaryDirectory(prefix="srpo_jax_")
        local = Path(self._folder.name) / self._remote.name
        if self._remote.exists():
            storage.copy(self._remote, local)
        return local

    def mode(self, judge: str) -> str | None:
        """Where a judge's verdicts are read, as found out before."""
        with self._lock:
            query = self._file.execute("SELECT mode FROM modes WHERE judge = ?", (judge,))
            row = query.fetchone()
        return row[0] if row else None

    def put_mode(self, judge: str, mode: str) -> None:
        """Keeps what `mode` returns."""
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO modes VALUES (?, ?)", (judge, mode))

    def mean_completion(self, judge: str) -> float | None:
        """Tokens of a judge's answer in the mean; None without any."""
        query = (
            "SELECT AVG(completion_tokens) FROM answers WHERE judge = ? AND completion_tokens > 0"
        )
        with self._lock:
            mean: float | None = self._file.execute(query, (judge,)).fetchone()[0]
        return mean

    def get_old(self, key: str) -> float | None:
        """A verdict in the format of before; what was no verdict there is none here either."""
        with self._lock:
            query = self._file.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,))
            row = query.fetchone()
        return _OLD.get(row[0]) if row else None

    def _count_old(self) -> int:
        tables = self._file.execute("SELECT 1 FROM sqlite_master WHERE name = 'verdicts'")
        if not tables.fetchone():
            return 0
        marks = ", ".join("?" * len(_OLD))
        query = f"SELECT COUNT(*) FROM verdicts WHERE verdict IN ({marks})"
        count: int = self._file.execute(query, tuple(_OLD)).fetchone()[0]
        return count
