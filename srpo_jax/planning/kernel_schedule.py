"""What an attention kernel costs on a TPU: read off the compiler's schedule, times the blocks it visits."""

import dataclasses
import re

import numpy as np


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Bundles of instructions, one a cycle, of the parts of an attention kernel.

    turn: of one pair of blocks; start, end: before the first and after the last turn of a block; step: at
    every step of the grid, whether or not it has a turn.
    """

    step: int
    start: int
    turn: int
    end: int


def read_schedule(text: str) -> Schedule:
    """The schedule of a kernel, from the compiler's listing of its bundles.

    A kernel is a loop over its grid. Within it are conditional parts, each jumped over by one branch; those
    without a branch inside are the kernel's three `pl.when`. Raises ValueError for another form.
    """
    address, loop = 0, None
    jumps: list[tuple[int, str]] = []
    lands: dict[str, int] = {}
    for line in text.splitlines():
        bundle = re.match(r"\s*(0x[0-9a-f]+) +(LB)?", line)
        address = int(bundle[1], 16) if bundle else address
        if bundle and bundle[2]:
            loop = address
        jumps += [(address, to) for to in re.findall(r"sbr\.rel .*?target = \$region(\d+)", line)]
        for region in re.findall(r"Start(?:/End empty)? region (\d+)", line):
            lands.setdefault(region, address)
    spans = [(at, lands[to]) for at, to in jumps if at < lands.get(to, 0)]
    back = max((at for at, to in jumps if lands.get(to) == loop), default=0)
    whens = [
        (start, end)
        for start, end in spans
        if loop is not None and start > loop and not any(start < at < end for at, _ in spans)
    ]
    if loop is None or len(whens) != 3:
        raise ValueError(f"not the schedule of an attention kernel: {len(whens)} conditional parts")
    start, turn, end = (to - at for at, to in whens)
    return Schedule(back - loop - start - turn - end, start, turn, end)


def kernel_cycles(schedule: Schedule, visits: np.ndarray, heads: int, cores: int = 1) -> float:
    """Cycles of one call on the chip with most to do.

    visits: int [chips, rows, N], turns of each block. The grid is rows x heads x the most turns of a row.
    """
    _, rows, blocks = visits.shape
    steps = rows * np.maximum(visits, 1).sum(2).max(1) * schedule.step
    turns = visits.sum((1, 2)) * schedule.turn
    once = rows * blocks * (schedule.start + schedule.end)
    return heads * float((steps + turns + once).max()) / cores
