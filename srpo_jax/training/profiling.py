"""A profile of a few steps: at a step chosen beforehand, or when a signal asks for one."""

import contextlib
import signal
from pathlib import Path
from types import FrameType
from typing import Any, Self

import jax

from srpo_jax.runtime import storage
from srpo_jax.runtime.metrics import status
from srpo_jax.training.loop import Done


class Profiler:
    """Traces `steps` steps into WORKDIR/profile, each process what its own devices do.

    They begin behind step `at` (0: never), and each time this process receives SIGUSR1. Used in the main
    thread.
    """

    def __init__(self, workdir: Path, at: int, steps: int) -> None:
        self._folder, self._at, self._steps = workdir / "profile", at, steps
        self._asked = False
        self._until: int | None = None
        self._handler: Any = None
        self._traced = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._handler = signal.signal(signal.SIGUSR1, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGUSR1, self._handler)
        if self._until is not None:
            self._stop()

    def __call__(self, done: Done) -> None:
        """What is to be called behind each step."""
        if self._until is not None and done.number >= self._until:
            self._stop()
        elif self._until is None and (self._asked or done.number == self._at) and not done.last:
            self._asked, self._until = False, done.number + self._steps
            # JAX writes to this machine only.
            jax.profiler.start_trace(self._traced.enter_context(storage.staged(self._folder)))

    def _stop(self) -> None:
        self._until = None
        jax.profiler.stop_trace()
        self._traced.close()
        status(f"profile: written to {self._folder}; look at it with xprof or Perfetto")

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
