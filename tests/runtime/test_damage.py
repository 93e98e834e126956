"""Disks that are full or gone, and what Orbax says of them."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from srpo_jax.runtime import damage
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError

FULL = """
import sys
import numpy as np
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.program import run_program

def main(arguments):
    values = np.random.default_rng(0)
    with Checkpoints(arguments[1]) as checkpoints:
        for step in range(1, 9):
            state = {f"x{i}": values.normal(size=100_000) for i in range(4)}
            checkpoints.save(step, state)
            checkpoints.wait()

run_program(main)
"""


@pytest.fixture
def small(tmp_path):
    """A file system of 8 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False, timeout=60)
    except OSError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("only root may mount a small disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True, timeout=60)


def test_a_full_disk_in_a_save_is_one_sentence_and_leaves_what_was_saved(small: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(small / "checkpoints")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = [line for line in done.stderr.splitlines() if not line.startswith("WARNING")]
    assert done.returncode == 2, done.stderr
    assert said == [
        f"error: {small}/checkpoints: a checkpoint could not be written: No space left on device; those "
        "before it are whole, and the same command goes on from the newest"
    ]
    state = {f"x{i}": np.zeros(100_000) for i in range(4)}
    with Checkpoints(small / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps()
        assert checkpoints.restore_latest(state) is not None


def test_what_is_no_fault_of_the_place_keeps_its_own_words() -> None:
    with pytest.raises(ValueError, match="two shapes"), damage.writing("w"):
        raise ValueError("two shapes")
    with pytest.raises(UserError, match=r"^w: .*: Read-only file system; "), damage.writing("w"):
        raise RuntimeError("save") from OSError(errno.EROFS, "read-only", "w/1")


def test_reports_of_what_a_failure_left_behind_are_not_shown(monkeypatch, capsys) -> None:
    shown = []
    monkeypatch.setattr(damage, "_hushed", False)
    monkeypatch.setattr(sys, "excepthook", lambda *error: shown.append(error[1]))
    monkeypatch.setattr(sys, "unraisablehook", lambda report: shown.append(report.exc_value))
    damage._hush()
    for error in (RuntimeError("Event loop is closed"), ValueError("another")):
        sys.excepthook(type(error), error, None)
    assert [str(error) for error in shown] == ["another"]
