"""The soak, a small one; and flipped bits in a checkpoint of the run that it trains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.runtime.errors import UserError
from tools import soak

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


@pytest.mark.slow
def test_twenty_bits_flipped_in_three_files_of_a_checkpoint_are_all_found(tmp_path):
    """Of a real run: values of parameters and optimiser, the index of where they lie, its manifest."""
    records.write_pairs(tmp_path / "pairs.jsonl", [Pair(f"{i}?", f"{i}!", "no") for i in range(8)])
    soak.finish(tmp_path, "run", processes=1, steps=soak.EVERY)
    state = tmp_path / "run" / "checkpoints" / str(soak.EVERY) / "state"
    largest = lambda pattern: max(state.glob(pattern), key=lambda path: path.stat().st_size)
    files = [largest(one) for one in ("ocdbt.process_0/d/*", "d/*", "manifest.ocdbt")]
    rng, said = np.random.default_rng(0), []
    for number in range(20):
        path = files[number % 3]
        whole = path.read_bytes()
        flipped, place = bytearray(whole), int(rng.integers(len(whole)))
        flipped[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            soak.last(tmp_path / "run", soak.EVERY)
        except UserError as error:
            said.append(str(error))
            print(f"{path.relative_to(state)}, byte {place} of {len(whole)}: {error}", flush=True)
        path.write_bytes(whole)
    print(f"{len(said)} of 20 found")
    assert len(said) == 20
    assert all("this checkpoint is damaged" in sentence for sentence in said)
    assert soak.last(tmp_path / "run", soak.EVERY), "the files are whole again"
