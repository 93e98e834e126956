"""Programs as their users start them, in processes of their own, one or several to a run."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
Started = Sequence[subprocess.Popen[str]]


def start(
    config: Path | str, workdir: Path, processes: int, devices: int, *more: str, program: str
) -> list[subprocess.Popen[str]]:
    """The processes of one run of srpo_jax.`program`, with so many virtual devices each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    several = {"SRPO_COORDINATOR": f"127.0.0.1:{port}", "SRPO_PROCESSES": str(processes)}
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", f"srpo_jax.{program}", f"--config={config}"),
                *(f"--workdir={workdir}", *more),
            ],
            env=os.environ
            | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
            | ({**several, "SRPO_PROCESS_ID": str(i)} if processes > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for i in range(processes)
    ]


@contextlib.contextmanager
def within(seconds: float, process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended if it is there for longer: who reads or awaits it goes on, and fails."""

    def end() -> None:
        process.terminate()  # what launches others ends these
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        with process:
            yield process
    finally:
        timer.cancel()


def finish(started: Started) -> tuple[list[int], list[tuple[str, str]]]:
    """Exit status, and what was said on standard output and error, of each."""
    try:
        said = [process.communicate(timeout=500) for process in started]
    except subprocess.TimeoutExpired:
        for process in started:
            process.kill()
        raise
    return [process.returncode for process in started], said


def kill_when(started: Started, happened: Callable[[], bool]) -> None:
    """kill -9 to all, as soon as something has happened."""
    end = time.monotonic() + 400
    while not happened() and time.monotonic() < end:
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.02)
    for process in started:
        process.send_signal(signal.SIGKILL)
    finish(started)


@contextlib.contextmanager
def holding(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock until it hears something."""
    code = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
