"""Checkpoints in s3:// of a real server: two processes, kill -9 in an upload, another process count."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests import processes, s3_server

pytestmark = pytest.mark.slow
WHERE = f"s3://{s3_server.BUCKET}/run"

# Goes on from the newest checkpoint to the step asked for. With HANG the second process never sends its
# part of the last one.
PROGRAM = """
import os, sys, time
import jax, numpy as np
from srpo_jax.runtime import distributed, mesh, store_checkpoints
from srpo_jax.runtime.checkpoints import Checkpoints

distributed.initialize(timeout=200)
grid, last = mesh.make(), int(sys.argv[2])
values = lambda step: np.arange(24.0).reshape(12, 2) + step
place = lambda x, how: jax.make_array_from_callback(x.shape, how, lambda index: x[index])
state = lambda step: {
    "cut": place(values(step), mesh.batch_sharding(grid)),
    "whole": place(values(step), mesh.replicated(grid)),
    "numpy": values(step),
    "step": step,
}
with Checkpoints(sys.argv[1]) as checkpoints:
    start, found = checkpoints.restore_latest(state(0)) or (0, state(0))
    for name in ("cut", "whole"):
        for shard in found[name].addressable_shards:
            np.testing.assert_array_equal(shard.data, values(start)[shard.index])
    assert (found["numpy"] == values(start)).all() and found["step"] == start
    for step in range(start + 1, last + 1):
        if "HANG" in os.environ and step == last and jax.process_index():
            checkpoints.wait()
            store_checkpoints.GlobalAsyncCheckpointManager.serialize = lambda *a, **k: time.sleep(300)
        checkpoints.save(step, state(step))
print("from", start, "steps", checkpoints.steps(), flush=True)
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server.serve() as found:
        yield found


def start(count: int, last: int, devices: int, **more: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices}"
    several = {"SRPO_COORDINATOR": f"127.0.0.1:{port}", "SRPO_PROCESSES": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, WHERE, str(last)],
            env=os.environ
            | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", **more}
            | ({**several, "SRPO_PROCESS_ID": str(i)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=processes.ROOT,
        )
        for i in range(count)
    ]


def test_kill_9_in_an_upload_of_two_processes_leaves_the_step_before(client: Any) -> None:
    held = lambda: s3_server.names(client, "run/3/")
    both = start(2, 3, 2, HANG="1")
    processes.kill_when(both, lambda: any("/cut/c/" in name for name in held()))
    assert "run/3/checkpoint.json" not in held()

    codes, said = processes.finish(start(2, 3, 2))
    assert codes == [0, 0], said
    assert all("from 2 steps [3, 2, 1]" in out for out, _ in said)
    assert {f"run/3/cut/c/{row}/0" for row in range(4)} <= held()

    codes, said = processes.finish(start(1, 4, 3))
    assert codes == [0], said
    assert "from 3 steps [4, 3, 2]" in said[0][0]
