"""From what a program costs to seconds."""

import collections
import dataclasses

import numpy as np
from jax.sharding import Mesh

from srpo_jax.planning.compiling import Estimate
from srpo_jax.planning.hlo_cost import SLICES, Collective
from srpo_jax.runtime.chips import Chip


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Of one execution. computing: of a chip's own programs. sending: axis of the mesh -> its collectives.

    They overlap wholly at best and not at all at worst.
    """

    computing: float
    sending: dict[str, float]

    @property
    def least(self) -> float:
        return max(self.computing, self.communicating)

    @property
    def most(self) -> float:
        return self.computing + self.communicating

    @property
    def communicating(self) -> float:
        return sum(self.sending.values())


def seconds(estimate: Estimate, chip: Chip, mesh: Mesh) -> Seconds:
    """What a chip computes, and what it sends by the speed of its links.

    All links of a chip are taken to be in use at once, at full speed; what crosses slices, or hosts of
    GPUs, goes over the data centre's network.
    """
    sending: dict[str, float] = collections.defaultdict(float)
    for one in estimate.collectives:
        sent, group = _sent(one, mesh)
        speed = chip.network if _crosses(group, mesh) else chip.link
        sending[axes(group, mesh)] += sent * one.executions / speed
    return Seconds(estimate.computing, dict(sending))


def _sent(one: Collective, mesh: Mesh) -> tuple[float, tuple[int, ...] | None]:
    """Bytes that a chip sends in one execution, and to whom: of slices, to its like in each other one."""
    if not one.kind.startswith(SLICES):
        return one.bytes, one.group
    slices = [getattr(chip, "slice_index", 0) for chip in mesh.devices.flatten()]
    group = tuple(map(slices.index, sorted(set(slices))))
    others = len(group) - 1
    return one.bytes * (2 * others / len(group) if "ALL_REDUCE" in one.kind else others), group


def _crosses(group: tuple[int, ...] | None, mesh: Mesh) -> bool:
    """Whether a group's chips are not all on one island of fast links: a TPU's slice, a GPU's host."""
    chips = mesh.devices.flatten()
    members = chips if group is None else [chips[number] for number in group]
    gpus = chips[0].platform != "tpu"
    islands = {d.process_index if gpus else getattr(d, "slice_index", 0) for d in members}
    return len(islands) > 1


def sent_by_axis(collectives: tuple[Collective, ...], mesh: Mesh) -> dict[str, float]:
    """Bytes that a chip sends, by the axes of the mesh along which it does: "fsdp", "replica + fsdp", …"""
    total: dict[str, float] = collections.defaultdict(float)
    for one in collectives:
        sent, group = _sent(one, mesh)
        total[axes(group, mesh)] += sent * one.executions
    return dict(total)


def axes(group: tuple[int, ...] | None, mesh: Mesh) -> str:
    """The axes along which chips of a group, numbered in the order of the mesh, differ."""
    shape = mesh.devices.shape
    numbers = range(mesh.size) if group is None else group
    places = np.array(np.unravel_index(np.array(numbers), shape))
    differ = [
        name for name, along in zip(mesh.axis_names, places, strict=True) if len(set(along)) > 1
    ]
    return " + ".join(map(str, differ)) or "none"
