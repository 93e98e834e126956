"""What a run reports: metrics on disk, progress with an ETA, one-line announcements.

Only process 0 writes or prints.
"""

import collections
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, SupportsFloat

import jax
import rich.progress
from rich.console import Console

from srpo_jax.runtime import files, storage, writers
from srpo_jax.runtime.errors import UserError

_console = Console()


def is_main() -> bool:
    """Whether this is process 0. Does not start JAX's backends before `distributed.initialize`."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def status(text: str) -> None:
    """Prints one line on standard output, above a progress line if one is shown."""
    if is_main():
        _console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)


class Metrics:
    """`metrics.jsonl` of a workdir, and writers beside it.

    A line of the file: `{"step": 20, "time": 1700000000.1, "loss": 0.25, …}`, time in seconds
    since 1970. What is no finite number is the string "nan", "inf" or "-inf", which `float` reads.

    Args:
        workdir: made if it does not exist.
        resume: the step the run goes on from; 0 for a new one. Lines of later steps, which an
            earlier attempt wrote after its last checkpoint, are dropped (the file is rewritten
            without them and put in place at once), so that each step is there once.
        names, project: see `writers.open_all`.
    """

    def __init__(
        self,
        workdir: Path | str,
        resume: int = 0,
        names: Sequence[str] = ("tensorboard",),
        project: str = "srpo_jax",
    ) -> None:
        self.last: dict[str, dict[int, float]] = {}  # name -> {its last step: value}
        self._writes = is_main()
        if not self._writes:
            return
        path = storage.place(workdir) / "metrics.jsonl"
        if path.exists():
            _drop_later(path, resume)
        self._file = storage.Lines(path)
        self._writers = writers.open_all(names, storage.place(workdir), project, resume)

    def write(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Appends one line, which is on disk when this returns (in a store: see `storage.Lines`), and hands
        the numbers to the writers.

        Args:
            values: metric name -> a number, or anything `float` takes (an array of one element).
        """
        numbers = {name: float(value) for name, value in values.items()}
        self.last |= {name: {int(step): number} for name, number in numbers.items()}
        if not self._writes:
            return
        line: dict[str, Any] = {"step": int(step), "time": round(time.time(), 3)}
        for name, number in numbers.items():
            line[name] = number if math.isfinite(number) else str(number)
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        for writer in self._writers:
            writer.write(int(step), numbers)

    def flush(self) -> None:
        """Every line is on disk when this returns, in a store too."""
        if self._writes:
            self._file.flush()

    def close(self) -> None:
        """Closes the file and the writers."""
        if self._writes:
            self._file.close()
            for writer in self._writers:
                writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read(path: Path | str) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order.

    A last line without its end, cut off when the program was killed, is left out.

    Raises:
        UserError: another line is no JSON object with a step; the sentence names file and line.
    """
    lines = []
    for number, text in enumerate(storage.place(path).read_bytes().splitlines(True), 1):
        if not text.endswith(b"\n"):
            break
        try:
            line = json.loads(text)
            line["step"] = int(line["step"])
        except (ValueError, TypeError, KeyError):
            raise UserError(
                f"{path}:{number}: not a JSON object with a step: mend or delete this line"
            ) from None
        lines.append(line)
    return lines


def _drop_later(path: Path, step: int) -> None:
    """A new run, of step 0, keeps none: it writes what is known before its first step once more."""
    kept = [json.dumps(line) + "\n" for line in read(path) if line["step"] <= step and step]
    with files.whole(path) as rewritten:
        rewritten.write_text("".join(kept), encoding="utf-8")


class Progress:
    """One line that says how far a loop is, how fast it goes and when it will end.

        with Progress("train", total=steps, unit="tokens", done=start) as progress:
            for step in range(start, steps):
                ...
                progress.advance(work=tokens, note=f"loss {loss:.3f}")

    On a terminal the line is live; elsewhere (a log file, CI) plain lines are printed, at most one
    in `interval` seconds, and the last state at the end.

    Args:
        description: what is being done, in a word or two.
        total: how many times the loop runs in all.
        unit: what `work` counts, for the rate: "tokens" -> "412 tokens/s".
        done: how much an earlier attempt has done already.
        interval: seconds between plain lines.
        clock: seconds, for tests.
    """

    def __init__(
        self,
        description: str,
        total: int,
        unit: str = "steps",
        done: int = 0,
        interval: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.completed = done
        self._interval = interval
        self._clock = clock
        self._work = 0.0
        self._note = ""
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        self._started = self._printed = self._clock()
        # (time, completed, work) of the last calls, for the present rate.
        self._recent = collections.deque([(self._started, self.completed, 0.0)], maxlen=64)
        self._calls = 0
        self._unsaid = True
        if is_main() and sys.stdout.isatty():
            self._bar = rich.progress.Progress(
                rich.progress.TextColumn("{task.description}"),
                rich.progress.BarColumn(bar_width=24),
                rich.progress.TextColumn("{task.fields[text]}", markup=False),
                console=_console,
            )
            self._task = self._bar.add_task(
                self.description, total=self.total, completed=self.completed, text=self._text()
            )
            self._bar.start()
        return self

    def advance(self, steps: int = 1, work: float | None = None, note: str = "") -> None:
        """Counts `steps` more rounds of the loop.

        Args:
            work: how much was done in them, in `unit`s; default: the number of steps.
            note: shown at the end of the line, until the next call.
        """
        self.completed += steps
        self._work += steps if work is None else work
        self._note = note
        self._calls += 1
        self._unsaid = True
        if self._calls == 2:
            self._recent.popleft()  # the first round compiles: it says nothing about the rest
        now = self._clock()
        self._recent.append((now, self.completed, self._work))
        if self._bar is not None:
            self._bar.update(self._task, completed=self.completed, text=self._text())
        elif now - self._printed >= self._interval:
            self._print(now)

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.update(self._task, text=self._text())
            self._bar.stop()
        elif self._unsaid:
            self._print(self._clock())

    def _print(self, now: float) -> None:
        self._printed = now
        self._unsaid = False
        status(f"{self.description}: {self._text()}")

    def _text(self) -> str:
        (then, completed, work), (now, *_) = self._recent[0], self._recent[-1]
        seconds = now - then
        parts = [f"{self.completed}/{self.total}"]
        if seconds > 0:
            parts.append(f"{_short((self._work - work) / seconds)} {self.unit}/s")
        parts.append(f"elapsed {_duration(self._clock() - self._started)}")
        if self.completed < self.total and self.completed > completed and seconds > 0:
            left = (self.total - self.completed) * seconds / (self.completed - completed)
            parts.append(f"ETA {_duration(left)}")
        if self._note:
            parts.append(self._note)
        return " · ".join(parts)


def _short(rate: float) -> str:
    """Three digits, without an exponent."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" if rate >= 1e-3 else f"{rate:.5f}"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
