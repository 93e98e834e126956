"""The arithmetic of a kernel's cycles, from the compiler's listing."""

import numpy as np
import pytest

from srpo_jax.planning import kernel_schedule
from srpo_jax.planning.kernel_schedule import Schedule

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
    assert kernel_schedule.read_schedule(LISTING) == Schedule(
        step=91 - 72, start=8, turn=48, end=16
    )
    with pytest.raises(ValueError, match="not the schedule of an attention kernel"):
        kernel_schedule.read_schedule(
            LISTING.replace("sbr.rel (%p2) target = $region4", "no branch")
        )


def test_cycles_of_a_kernel_are_of_the_chip_with_most_to_do():
    schedule = Schedule(step=10, start=100, turn=1000, end=50)
    visits = np.array([[[1, 2, 3]], [[1, 1, 2]]])
    # 6 turns of 3 blocks, for each of 8 heads.
    assert kernel_schedule.kernel_cycles(schedule, visits, heads=8) == 8 * (
        6 * 10 + 6 * 1000 + 3 * 150
    )
    assert kernel_schedule.kernel_cycles(schedule, visits, heads=8, cores=2) == 4 * (
        6 * 10 + 6000 + 450
    )
