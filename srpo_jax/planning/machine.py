"""Machines by name, and their chips, which only the compiler needs to know."""

import dataclasses
import functools
import importlib.util
import os
import re
import tempfile
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from srpo_jax.planning import gpu
from srpo_jax.runtime import chips
from srpo_jax.runtime.chips import Chip
from srpo_jax.runtime.errors import UserError

# Accelerator type -> shape of a slice. Of v5p the number in the name counts cores, two a chip.
FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    **{8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8"},
    **{512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16", 4096: "8x16x16", 8192: "16x16x16"},
}
KINDS = {"v5e": ("v5e", FLAT), "v5p": ("v5", CUBES), "v6e": ("v6e", FLAT)}


@dataclasses.dataclass(frozen=True)
class Machine:
    """name: as it was asked for. topology: the TPU compiler's name of a slice; of GPUs, their number."""

    name: str
    chip: Chip
    topology: str
    slices: int = 1

    @property
    def platform(self) -> str:
        return "cuda" if self.chip.name in gpu.GPUS else "tpu"

    @property
    def compiler(self) -> str:
        """The package that it is in."""
        return "jax-cuda12-pjrt" if self.platform == "cuda" else "libtpu"

    @functools.cached_property
    def devices(self) -> Sequence[jax.Device]:
        """Described, not there. UserError without the compiler."""
        if self.platform == "cuda":
            return gpu.devices(self.chip, int(self.topology))
        prepare_compiler()
        several = {"num_slices": self.slices} if self.slices > 1 else {}
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=self.topology, **several
        )
        return list(described.devices)


def named(name: str) -> Machine:
    """ "v5e-64", "v5p-256" (an accelerator type), "v6e:4x4" (a slice's shape), "2xv5e-256" (two slices),
    "H100-64" (GPUs, 8 to a host).

    Raises UserError for anything else.
    """
    found = re.fullmatch(r"(?:(\d+) ?x ?)?(\w+)(?:-(\d+)|:([\dx]+))", name)
    if found and found[2] in KINDS:
        kind, shapes = KINDS[found[2]]
        shape = found[4] or shapes.get(int(found[3]))
        if shape:
            chip = next(chip for chip in chips.CHIPS if chip.name == found[2])
            return Machine(name, chip, f"{kind}:{shape}", int(found[1] or 1))
    if found and found[2] in gpu.GPUS and found[3] and not found[1]:
        count = int(found[3])
        if 0 < count < gpu.HOST or (count and count % gpu.HOST == 0):
            chip = next(chip for chip in chips.CHIPS if chip.name == found[2])
            return Machine(name, chip, str(count))
    known = "; ".join(
        f"{kind}-N with N {', '.join(map(str, shapes))}" for kind, (_, shapes) in KINDS.items()
    )
    raise UserError(
        f"--topology={name} is no machine known here: {known}; a shape as v5e:4x4; 2xv5e-256 for 2 slices; "
        f"{', '.join(f'{kind}-N' for kind in gpu.GPUS)} with N below {gpu.HOST} or a multiple of it"
    )


@functools.cache
def prepare_compiler() -> tempfile.TemporaryDirectory[str]:
    """What has to be set before libtpu is loaded; returns where it writes how it schedules programs.

    UserError where it is not installed.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU's compiler is not installed: run pip install 'srpo_jax[plan]'")
    folder = tempfile.TemporaryDirectory(prefix="srpo_jax_schedules_")
    options = f"--xla_jf_dump_to={folder.name} --xla_jf_dump_llo_text=true"
    only = "--xla_jf_dump_llo_pass_label_regex=final_bundles"
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    os.environ["LIBTPU_INIT_ARGS"] = f"{given} {options} {only}"
    # Without these the compiler looks for a TPU, and a second process cannot load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    return folder
