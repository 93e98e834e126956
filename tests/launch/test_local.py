import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import processes

SCRIPT = Path(__file__).parents[2] / "launch" / "local.sh"

MESH = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from srpo_jax.runtime import distributed, mesh

distributed.initialize(timeout=200)
grid = mesh.make()
ones = mesh.host_to_global(grid, jnp.ones(jax.local_device_count()))
add = jax.shard_map(lambda x: jax.lax.psum(x, "fsdp"), mesh=grid, in_specs=P("fsdp"), out_specs=P())
total = jax.jit(add)(ones)
print(f"{jax.process_index()}: {jax.process_count()}x{jax.local_device_count()} {total[0]:.0f}")
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=240, check=False
    )


def python(code: str) -> list[str]:
    return ["--", sys.executable, "-c", code]


def test_two_processes_form_one_mesh() -> None:
    done = run("--processes", "2", "--devices", "4", *python(MESH))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "0| 0: 2x4 8" in lines
    assert "1| 1: 2x4 8" in lines


def test_a_failure_is_named_and_ends_the_others() -> None:
    code = """
import os, sys, time
if os.environ["SRPO_PROCESS_ID"] == "1":
    sys.exit("no luck")
time.sleep(60)
"""
    began = time.monotonic()
    done = run("--processes", "3", *python(code))
    assert done.returncode == 1
    assert "1| no luck" in done.stderr
    assert "error: process 1 failed with status 1\n" in done.stderr
    assert time.monotonic() - began < 30


def test_who_does_not_stop_is_killed() -> None:
    code = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ["SRPO_PROCESS_ID"] == "0":
    time.sleep(0.5)
    sys.exit(7)
time.sleep(60)
"""
    began = time.monotonic()
    done = run("--grace", "1", *python(code))
    assert done.returncode == 7
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_passed_on_once(number: signal.Signals) -> None:
    code = """
import signal, sys, time
seen = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: seen.append(number))
print("ready")
while not seen:
    time.sleep(0.02)
time.sleep(0.5)
print(*(signal.Signals(number).name for number in seen), end="")
"""
    started = subprocess.Popen(
        ["bash", str(SCRIPT), *python(code)], stdout=subprocess.PIPE, text=True
    )
    with processes.within(120, started) as launcher:
        assert launcher.stdout is not None
        assert sorted(launcher.stdout.readline() for _ in range(2)) == ["0| ready\n", "1| ready\n"]
        os.kill(launcher.pid, number)
        assert sorted(launcher.stdout) == [f"0| {number.name}\n", f"1| {number.name}\n"]
    assert launcher.returncode == 0


def test_no_output_is_lost() -> None:
    done = run("--processes", "1", *python("for i in range(20000): print('x' * 40)"))
    assert done.stdout == ("0| " + "x" * 40 + "\n") * 20000


def test_arguments_arrive_as_they_are() -> None:
    done = run(
        "--processes", "1", *python("import sys; print(sys.argv[1:])"), "two words", "$HOME", "'"
    )
    assert done.stdout == f"0| {['two words', '$HOME', chr(39)]}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command"),
        (["--processes", "0", "--", "true"], "--processes is '0'"),
        (["--devices"], "--devices needs a value"),
        (["python"], "unknown option 'python'"),
        (["--", "no-such-program"], "there is no command 'no-such-program'"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1
