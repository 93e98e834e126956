"""`train_online` in processes of its own: killed and run again, and as several processes, the same run."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from srpo_jax.models import loading
from srpo_jax.runtime import metrics
from tests import processes
from tests.processes import ROOT, finish, kill_when

STEPS = 6
start = functools.partial(
    processes.start, ROOT / "configs" / "online_tiny.py", program="train_online"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def more(tmp_path_factory) -> list[str]:
    """PPO, which has most to keep: value head, adapted coefficient, several updates a round."""
    path = tmp_path_factory.mktemp("data") / "documents.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(11)))
    changes = {
        **{"online.documents": path, "online.count": 11, "online.objective": "ppo"},
        **{"online.minibatches": 2, "online.epochs": 2, "online.samples": 2},
        **{"online.kl_target": 1.0, "sampling.max_new_tokens": 4, "sampling.batch_size": 16},
        **{"train.batch_size": 16, "train.steps": STEPS, "train.checkpoint_every": 2},
    }
    return [f"--config.{key}={value}" for key, value in changes.items()]


def run(workdir: Path, number: int, devices: int, more: list[str]) -> str:
    """What the processes said."""
    codes, said = finish(start(workdir, number, devices, *more))
    assert codes == [0] * number, said
    return "".join(out for out, _ in said)


@pytest.fixture(scope="module")
def alone(more, tmp_path_factory) -> Path:
    """One process with eight devices, undisturbed."""
    workdir = tmp_path_factory.mktemp("alone")
    run(workdir, 1, 8, more)
    return workdir


def rounds(workdir: Path) -> list[dict[str, float]]:
    """The metrics, those of the clock apart."""
    lines = metrics.read(workdir / "metrics.jsonl")
    return [
        {k: v for k, v in line.items() if k != "time" and not k.startswith("seconds_")}
        for line in lines
    ]


def weights(workdir: Path) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(loading.load(str(workdir), dtype="float32")))
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in flat}


def test_a_killed_run_ends_as_an_undisturbed_one(alone, more, tmp_path):
    """kill -9 between checkpoints; then to the bit."""
    kept, log = tmp_path / "checkpoints" / "2", tmp_path / "metrics.jsonl"
    begun = lambda: kept.is_dir() and log.is_file() and len(log.read_text().splitlines()) >= 3
    kill_when(start(tmp_path, 1, 8, *more), begun)
    assert not (tmp_path / "checkpoints" / str(STEPS)).exists()
    assert "resuming at round " in run(tmp_path, 1, 8, more)
    assert rounds(tmp_path) == rounds(alone)
    expected = weights(alone)
    for name, value in weights(tmp_path).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_two_processes_of_four_devices_are_one_of_eight(alone, more, tmp_path):
    """To 1e-5 of the weights: sums over two processes are taken in another order."""
    run(tmp_path, 2, 4, more)
    for one, other in zip(rounds(alone), rounds(tmp_path), strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name
    expected = weights(alone)
    for name, value in weights(tmp_path).items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, err_msg=name)
