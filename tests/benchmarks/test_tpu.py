"""The TPU estimates; all but the refusal need the compiler: extra `plan`."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler: extra `plan`"
)
def test_a_tree_costs_less_than_rows_on_a_small_decoder():
    program = """
import dataclasses
from absl import flags
from benchmarks import tpu
flags.FLAGS(["tpu"])
small = dataclasses.replace(tpu.LLAMA_8B, layers=2, width=1024, mlp_width=2048, vocab_size=8192)
where = tpu.machine.named("v5e:2x2")
group = tpu.GROUPS["4 pairs a chip"]
tree, rows = (tpu.estimate(group[n], small, where) for n in ("SRPO, trees", tpu.SIX))
assert 0 < tree.cycles < 0.5 * rows.cycles and 0 < tree.kernel_cycles, (tree, rows)
assert not tree.warnings
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_unknown_chips_are_refused():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu", "--topology=v9"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert "--topology=v9 is no machine known here" in done.stderr
