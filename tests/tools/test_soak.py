"""The soak, a small one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_run_that_is_killed_three_times_ends_as_one_that_was_left_alone(tmp_path):
    counts = tmp_path / "counts.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak", "--kills=3", f"--json={counts}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(counts.read_text())
    assert found["kills"] == len(found["each"]) == 3
    assert found["arrays equal to the bit"] > 10
    assert found["inside a save"] >= 1, "two were aimed at"
