import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from srpo_jax.runtime import distributed
from srpo_jax.runtime.distributed import StopSignal
from srpo_jax.runtime.errors import Unavailable, UserError

VARIABLES = ("SRPO_COORDINATOR", "SRPO_PROCESSES", "SRPO_PROCESS_ID", "SRPO_DISTRIBUTED")

LOOP = """
import os, signal, sys, time
from pathlib import Path
import jax, jax.numpy as jnp, numpy as np
from srpo_jax.runtime import distributed, mesh
from srpo_jax.runtime.checkpoints import Checkpoints

distributed.initialize(timeout=200)
grid = mesh.make()
state = {"x": jax.device_put(np.zeros(4), mesh.batch_sharding(grid)), "step": 0}
step_fn = jax.jit(lambda x: x + jnp.mean(x) + 1)
with Checkpoints(sys.argv[1], every=1000) as checkpoints, distributed.StopSignal() as stop:
    found = checkpoints.restore_latest(state)
    start, state = found or (0, state)
    for step in range(start + 1, start + 1000):
        state = {"x": step_fn(state["x"]), "step": step}
        if step == start + 3 and jax.process_index() == 1:
            os.kill(os.getpid(), getattr(signal, sys.argv[2]))
        if stop.requested(step):
            checkpoints.save(step, state, force=True)
            break
        time.sleep(0.05)
print("start", start, "stop", step, flush=True)
"""


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    flags = "--xla_force_host_platform_device_count=2"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"XLA_FLAGS": flags} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_no_variables_mean_one_process() -> None:
    distributed.initialize()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("localhost:1", "2", ""), "SRPO_PROCESS_ID is not set"),
        (("localhost", "2", "0"), "must be host:port"),
        (("localhost:1", "2", "2"), "the first less than the second"),
        (("localhost:1", "two", "0"), "whole numbers"),
    ],
)
def test_wrong_variables_are_named(
    monkeypatch: pytest.MonkeyPatch, values: tuple[str, str, str], said: str
) -> None:
    for name, value in zip(VARIABLES, values, strict=False):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        distributed.initialize()


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UserError, match="auto, cluster, none"):
        distributed.initialize("yes")


def test_mode_none_ignores_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRPO_PROCESSES", "2")
    distributed.initialize("none")
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("process", "reason"), [("0", "other processes did not come"), ("1", "process 0 is not there")]
)
def test_who_cannot_join_says_so(process: str, reason: str) -> None:
    code = """
from srpo_jax.runtime import distributed
from srpo_jax.runtime.program import run_program
run_program(lambda _: distributed.initialize(timeout=1))
"""
    coordinator = f"127.0.0.1:{free_port()}"
    done = start(code, SRPO_COORDINATOR=coordinator, SRPO_PROCESSES="2", SRPO_PROCESS_ID=process)
    _, said = done.communicate(timeout=60)
    assert done.returncode == 1  # they may come when it is started again
    assert len(said.splitlines()) == 1
    assert said.startswith(
        f"error: process {process} of 2 on host {socket.gethostname()}: cannot join the "
        f"coordinator {coordinator}: {reason}"
    )


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        for name, value in zip(VARIABLES, (f"localhost:{port}", "2", "0"), strict=False):
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"process 0 of 2 .*port {port} cannot be opened"):
            distributed.initialize()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_to_stop(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.requested(1)
        os.kill(os.getpid(), number)
        assert stop.requested(1)
    assert signal.getsignal(number) is before
    assert "stopping" in capfd.readouterr().err


def test_a_signal_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert not stop.requested(1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_aborts_at_once() -> None:
    code = """
import os, signal, time
from srpo_jax.runtime.distributed import StopSignal
with StopSignal():
    os.kill(os.getpid(), signal.SIGINT)
    print("going on", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    done = start(code)
    out, _ = done.communicate(timeout=30)
    assert out == "going on\n"
    assert done.returncode == -signal.SIGINT


def test_all_processes_stop_at_the_same_step_and_resume(tmp_path: Path) -> None:
    stopped = 0
    for number in ("SIGINT", "SIGTERM"):  # sent to process 1 alone
        coordinator = f"127.0.0.1:{free_port()}"
        variables = {"SRPO_COORDINATOR": coordinator, "SRPO_PROCESSES": "2"}
        both = [
            start(LOOP, str(tmp_path), number, SRPO_PROCESS_ID=str(process), **variables)
            for process in range(2)
        ]
        (out, error), (other, _) = [process.communicate(timeout=240) for process in both]
        assert [process.returncode for process in both] == [0, 0], error
        last = out.splitlines()[-1]  # Gloo prints on standard output too
        assert last == other.splitlines()[-1]
        _, began, _, ended = last.split()
        assert int(began) == stopped
        assert int(ended) > stopped + 3
        stopped = int(ended)
        assert (tmp_path / ended).is_dir()


DIES = """
import os, signal, sys, time
import jax
from srpo_jax.runtime import distributed
from srpo_jax.runtime.program import run_program

def main(_):
    distributed.initialize(timeout=200)
    if jax.process_index() == 1:
        time.sleep(3)  # the other is not in the middle of meeting
        os.kill(os.getpid(), signal.SIGKILL)
    print("waiting", flush=True)
    time.sleep(200)

run_program(main)
"""


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_within_its_heartbeat() -> None:
    """Without launch/local.sh, and whatever they wait for."""
    coordinator = f"127.0.0.1:{free_port()}"
    common = {"SRPO_COORDINATOR": coordinator, "SRPO_PROCESSES": "2", "SRPO_HEARTBEAT": "5"}
    processes = [start(DIES, **common, SRPO_PROCESS_ID=str(i)) for i in range(2)]
    processes[1].communicate(timeout=100)
    began = time.monotonic()
    out, said = processes[0].communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert "waiting\n" in out
    assert processes[0].returncode != 0
    assert re.search(r"tasks are unhealthy \(stopped sending heartbeats\):\n1\n", said), said


@pytest.mark.parametrize("value", ["0", "soon"])
def test_a_heartbeat_that_is_no_time_is_refused(value, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SRPO_HEARTBEAT", value)
    with pytest.raises(UserError, match=r"^SRPO_HEARTBEAT is "):
        distributed._heartbeat()


class Coordinator:
    """The client of a coordinator that two processes in one have."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}

    def key_value_set(self, key: str, value: str) -> None:
        self.said[key] = value

    def blocking_key_value_get(self, key: str, patience: int) -> str:
        if key not in self.said:
            raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")
        return self.said[key]

    def wait_at_barrier(self, key: str, patience: int) -> None:
        raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch):
    """Makes this process the one of that number, asking for the first time."""
    monkeypatch.setattr(distributed.global_state, "client", Coordinator())
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def become(number: int) -> None:
        monkeypatch.setattr(jax, "process_index", lambda: number)
        monkeypatch.setattr(distributed, "_asked", 0)

    return become


@pytest.mark.parametrize(
    ("failure", "kind", "said"),
    [
        (UserError("there is no such file"), UserError, "^there is no such file$"),
        (Unavailable("the store is away"), Unavailable, "^the store is away$"),
        (OSError(28, "No space left"), UserError, "process 0 failed: OSError.28"),
        (RuntimeError("a mistake of ours"), Unavailable, "process 0 failed: RuntimeError"),
    ],
)
def test_what_fails_in_one_process_ends_the_others_with_its_status(
    failure, kind, said, in_process
) -> None:
    """Else a launcher takes a machine that was taken away for a mistake, and starts nothing again."""

    def work() -> None:
        raise failure

    for ask in (distributed.from_main, distributed.everywhere):
        in_process(0)
        with pytest.raises(type(failure)):
            ask(work)
        in_process(1)
        with pytest.raises(UserError, match=said) as caught:
            ask(lambda: None)
        assert type(caught.value) is kind


def test_a_process_with_other_prompts_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed.require_alike(["x"], "puts other prompts")
    monkeypatch.setattr(distributed, "everywhere", lambda work: [work(), work(), "another"])
    said = "process 2 puts other prompts than process 0: bring all hosts the same files"
    with pytest.raises(UserError, match=said):
        distributed.require_alike(["x"], "puts other prompts")


def test_a_process_that_is_gone_is_no_mistake(in_process) -> None:
    in_process(1)
    with pytest.raises(Unavailable, match="another process is gone"):
        distributed.from_main(lambda: None)
