"""`train` as two processes is the same run as one process."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.runtime import metrics
from tests import processes

ROOT = Path(__file__).parents[2]
STEPS = 40
pytestmark = pytest.mark.slow


def train(pairs: Path, workdir: Path, processes: int, devices: int, *more: str) -> list[str]:
    return [
        "bash",
        str(ROOT / "launch" / "local.sh"),
        *("--processes", str(processes), "--devices", str(devices), "--grace", "60", "--"),
        *(sys.executable, "-m", "srpo_jax.train", f"--config={ROOT / 'configs' / 'tiny.py'}"),
        *(f"--workdir={workdir}", f"--config.data.pairs={pairs}", f"--config.train.steps={STEPS}"),
        *("--config.train.batch_size=4", "--config.train.checkpoint_every=1000"),
        *(
            f"--config.data.held_out={pairs.with_name('others.jsonl')}",
            "--config.train.evaluate_every=8",
        ),
        *("--config.train.evaluate_documents=0", *more),
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    answers = ["yes", "sure", "fine"]
    # 13: the last batch of reference scores is not full
    records.write_pairs(path, [Pair(f"{i}?", answers[i % 3], "no way") for i in range(13)])
    others = [Pair(f"{i}?", answers[i % 3], "no way") for i in range(20, 25)]
    records.write_pairs(path.with_name("others.jsonl"), others)
    return path


@pytest.fixture(scope="module")
def alone(pairs, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("alone")
    done = run(train(pairs, workdir, 1, 1))
    assert done.returncode == 0, done.stderr
    return workdir


def losses(workdir: Path, name: str = "loss") -> list[tuple[int, float]]:
    lines = metrics.read(workdir / "metrics.jsonl")
    return [(line["step"], line[name]) for line in lines if name in line]


def reference(workdir: Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "reference_scores.npz") as file:
        return {name: file[name] for name in file if name != "fingerprint"}


def test_processes_are_stopped_and_go_on_in_another_number(pairs, alone, tmp_path):
    """First 4 of 2 devices, then 2 of 2: either way a tensor group spans two processes."""
    command = train(pairs, tmp_path, 4, 2, "--config.mesh.fsdp=2", "--config.mesh.tensor=4")
    output = []
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    with processes.within(500, started) as launcher:
        assert launcher.stdout is not None
        for line in launcher.stdout:
            output.append(line)
            if re.match(r"0\| train: +\d+/", line):  # the first step is done
                launcher.send_signal(signal.SIGTERM)
                break
        output += launcher.stdout
    assert launcher.returncode == 130, "".join(output)
    stopped = re.search(rf"stopped at step (\d+) of {STEPS}", "".join(output))
    assert stopped, "".join(output)
    assert 1 <= int(stopped[1]) < STEPS
    assert [step for step, _ in losses(tmp_path)] == list(range(1, int(stopped[1]) + 1))

    done = run(train(pairs, tmp_path, 2, 2, "--config.mesh.fsdp=1", "--config.mesh.tensor=4"))
    assert done.returncode == 0, done.stderr
    assert f"resuming at step {stopped[1]} of {STEPS}" in done.stdout
    assert "reference scores: 13 pairs read from" in done.stdout
    # float32 sums of another order, then Adam
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=2e-3)
    held_out = [losses(workdir, "held_out/loss") for workdir in (tmp_path, alone)]
    assert [step for step, _ in held_out[0]] == [0, 8, 16, 24, 32, 40]
    np.testing.assert_allclose(*held_out, rtol=2e-3)
    one, two = reference(alone), reference(tmp_path)
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)

    # and on one process, a finished run is finished
    done = run(train(pairs, tmp_path, 1, 1))
    assert f"is finished: step {STEPS} of {STEPS}" in done.stdout, done.stdout + done.stderr


def test_a_run_moves_between_all_numbers_of_processes_and_devices(pairs, tmp_path):
    """Ten steps on each, from the checkpoint and the reference scores of the one before it."""
    constant = "--config.optimizer.schedule=constant"
    done = run(train(pairs, tmp_path / "alone", 1, 1, constant))
    assert done.returncode == 0, done.stderr
    sizes = {
        (4, 2): {"fsdp": 2, "tensor": 4},  # a tensor group is on two processes
        (2, 4): {"fsdp": 4, "tensor": 2},
        (1, 8): {"replica": 2, "fsdp": 2, "tensor": 2},
        (1, 1): {},
    }
    for number, ((count, devices), mesh) in enumerate(sizes.items()):
        more = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items()]
        steps = f"--config.train.steps={10 * (number + 1)}"
        done = run(train(pairs, tmp_path / "moved", count, devices, constant, *more, steps))
        assert done.returncode == 0, done.stderr
        if number:
            assert f"resuming at step {10 * number} of {10 * (number + 1)}" in done.stdout
            assert "reference scores: 13 pairs read from" in done.stdout
    alone, moved = (losses(tmp_path / name) for name in ("alone", "moved"))
    assert [step for step, _ in moved] == list(range(1, STEPS + 1))
    np.testing.assert_allclose(moved, alone, rtol=2e-3)
    one, two = (reference(tmp_path / name) for name in ("alone", "moved"))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-5)


def test_a_mistake_is_told_and_ends_all_processes(tmp_path):
    done = run(train(tmp_path / "none.jsonl", tmp_path / "run", 2, 1))
    assert done.returncode == 2
    assert "0| error: no pairs at" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_processes_may_start_from_a_workdir(pairs, alone, tmp_path):
    more = (f"--config.model.source={alone}", "--config.lora.rank=2", "--config.train.batch_size=2")
    done = run(train(pairs, tmp_path, 2, 1, *more))
    assert done.returncode == 0, done.stderr
    first = losses(tmp_path)[0][1]
    assert first == pytest.approx(0.75), "step 0 is the reference itself"
    assert losses(tmp_path)[-1][0] == STEPS
