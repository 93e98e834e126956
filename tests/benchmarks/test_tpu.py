"""The arithmetic of the TPU estimates; the compiler's part needs the extra `plan`."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import tpu
from benchmarks.tpu import Schedule

LISTING = """
 0x1   :  { %a = x }
 0x5   : > { %loop = x }
 0x5 LB: > { Start region 1 }
 0x8   : > { sbr.rel (%p0) target = $region2 }
 0x10  : > { Start region 2 }
 0x12  : > { sbr.rel (%p1) target = $region3 }
 0x42  : > { Start region 3 }
 0x44  : > { sbr.rel (%p2) target = $region4 }
 0x54  : > { Start region 4 }
 0x60  : > { sbr.rel (%p3) target = $region1 }
 0x64  :  { Start region 5 }
"""


def test_a_schedule_is_read_from_the_listing():
    """Parts of 8, 48 and 16 bundles, and the rest of a turn of the loop from 0x5 to 0x60."""
    assert tpu.read_schedule(LISTING) == Schedule(step=91 - 72, start=8, turn=48, end=16)
    with pytest.raises(ValueError, match="not the schedule of an attention kernel"):
        tpu.read_schedule(LISTING.replace("sbr.rel (%p2) target = $region4", "no branch"))


def test_cycles_of_a_kernel_are_of_the_chip_with_most_to_do():
    schedule = Schedule(step=10, start=100, turn=1000, end=50)
    visits = np.array([[[1, 2, 3]], [[1, 1, 2]]])
    # 6 turns of 3 blocks, for each of 8 heads.
    assert tpu.kernel_cycles(schedule, visits, heads=8) == 8 * (6 * 10 + 6 * 1000 + 3 * 150)
    assert tpu.kernel_cycles(schedule, visits, heads=8, cores=2) == 4 * (6 * 10 + 6000 + 450)


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
chip = dataclasses.replace(tpu.CHIPS["v5e-64"], topology="v5e:2x2")
group = tpu.GROUPS["4 pairs a chip"]
tree, rows = (tpu.estimate(group[n], small, chip) for n in ("SRPO, trees", tpu.SIX))
assert 0 < tree.cycles < 0.5 * rows.cycles and 0 < tree.kernel_cycles, (tree, rows)
assert not tree.warnings
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_unknown_chips_are_refused():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.tpu", "--topology=v9"], capture_output=True, text=True
    )
    assert "--topology=v9 is none of v5e-64, v5p-64, v6e-64" in done.stderr
