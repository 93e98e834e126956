"""What `plan --search` tries: meshes, remat and batch sizes of a configuration."""

import dataclasses
import itertools
from collections.abc import Iterator

from srpo_jax.config import Settings
from srpo_jax.planning import gpu
from srpo_jax.planning.machine import Machine

TENSOR, REMAT, PAIRS = (1, 2, 4, 8), ("none", "dots", "full"), (1, 2, 4)
# Numbers of the model's width that a chip must hold of a weight: thinner parts are not gathered by the
# compilers for these TPUs but summed with zeros, an all-reduce, which sends twice as much.
THINNEST = {"v5e": 128, "v5p": 128, "v6e": 32}


def candidates(settings: Settings, where: Machine, width: int) -> Iterator[list[Settings]]:
    """For each mesh and remat the settings to try, the smallest batch first. width: of the model."""
    chips, expert = len(where.devices), settings.mesh.expert
    groups = [tensor for tensor in TENSOR if expert * tensor <= chips]
    meshes = [(r, tensor) for tensor in groups for r in replicas(where, width, expert * tensor)]
    for (replica, tensor), remat in itertools.product(meshes, REMAT):
        each = settings.train.accumulate * chips // tensor
        yield [
            dataclasses.replace(
                settings,
                mesh=dataclasses.replace(settings.mesh, replica=replica, fsdp=-1, tensor=tensor),
                model=dataclasses.replace(settings.model, remat=remat),
                train=dataclasses.replace(settings.train, batch_size=pairs * each),
            )
            for pairs in PAIRS
        ]


def replicas(where: Machine, width: int, group: int) -> tuple[int, ...]:
    """How many copies of a model to try, each on devices that share it in groups and along `fsdp`.

    Of GPUs one in all, or on each host. Of TPUs one on each slice and, where fsdp would cut a width so thin
    that weights are not gathered, as many as it takes.
    """
    if where.platform == "cuda":
        return tuple(sorted({1, max(1, int(where.topology) // gpu.HOST)}))
    copies, most = where.slices, max(1, width // THINNEST[where.chip.name])
    while len(where.devices) // (copies * group) > most:
        copies *= 2
    return tuple(sorted({where.slices, copies}))
