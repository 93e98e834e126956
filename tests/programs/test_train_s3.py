"""A run in s3:// of a real server: kill -9 in an upload, and on to the same bits."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from srpo_jax.data import records
from srpo_jax.data.records import Pair
from tests import processes, s3_server

pytestmark = pytest.mark.slow

COMPARE = """
import sys
import numpy as np
from srpo_jax.runtime import storage
from tools import soak

one, other = (soak.last(storage.place(name), int(sys.argv[3])) for name in sys.argv[1:3])
assert one.keys() == other.keys()
print(sum(np.array_equal(one[n], other[n]) for n in one), "of", len(one), "equal")
"""


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with s3_server.serve() as found:
        yield found


def test_a_run_that_is_killed_in_an_upload_ends_as_one_that_was_left_alone(client, tmp_path):
    pairs = [Pair(f"{i}?", ["yes", "no!"][i % 2], "nah") for i in range(8)]
    records.write_pairs(tmp_path / "pairs.jsonl", pairs)
    changes = {
        **{"model.source": "tiny", "model.dtype": "float32", "data.template": "plain"},
        **{"data.pairs": tmp_path / "pairs.jsonl", "train.batch_size": 4, "train.steps": 6},
        **{"train.checkpoint_every": 2, "train.log_every": 1},
    }
    more = [f"--config.{key}={value}" for key, value in changes.items()]
    config = processes.ROOT / "configs" / "tiny.py"
    run = lambda workdir: processes.start(config, workdir, 1, 2, *more, program="train")
    killed, whole = f"s3://{s3_server.BUCKET}/killed", tmp_path / "whole"

    held = lambda: s3_server.names(client, "killed/checkpoints/4/")
    processes.kill_when(run(killed), lambda: bool(held()))
    assert "killed/checkpoints/4/checkpoint.json" not in held(), "it was in the upload"
    codes, said = processes.finish(run(killed))
    assert codes == [0], said
    assert "resuming at step 2 of 6" in said[0][0]
    codes, said = processes.finish(run(whole))
    assert codes == [0], said

    text = s3_server.content(client, "killed/metrics.jsonl").decode()
    lines = [text.splitlines(), (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [[json.loads(one)["loss"] for one in each] for each in lines]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 6
    done = subprocess.run(
        [sys.executable, "-c", COMPARE, killed, whole, "6"],
        cwd=processes.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    equal, _, count, _ = done.stdout.split()
    assert equal == count
    assert int(count) > 10
