"""The mesh of programs that only decode: as many copies of a model as the memory allows.

A step of decoding reads every weight for one token a row. Where a copy is cut over `fsdp`, that sends all
weights to every device for each token; a copy that a device, or the few of a `tensor` group, hold for
themselves sends none.
"""

import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from srpo_jax.models import creation, loading
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.decoder import Decoder
from srpo_jax.runtime import chips, distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.mesh import MeshSettings
from srpo_jax.runtime.metrics import status

# Of a device's memory, what the weights may take; caches and a token's work have the rest.
SHARE = 0.5


def load(source: str, dtype: str, settings: MeshSettings, seed: int = 0) -> Decoder:
    """As `loading.load`, on the mesh that `choose` chooses, which is said where it is another one."""
    config = loading.for_inference(loading.open_source(source).config, dtype)
    mesh = choose(settings, config)
    if mesh.size > 1 and dict(mesh.shape) != dict(mesh_module.of_settings(settings).shape):
        copies, each = mesh.shape["replica"], mesh.shape["tensor"]
        status(
            f"decoding with {copies} copies of the model, {each} device{'s'[: each > 1]} each "
            "(config.mesh.decode=-1: on the mesh of training)"
        )
    return loading.load(source, dtype, mesh, seed)


def choose(
    settings: MeshSettings,
    config: DecoderConfig,
    devices: Sequence[jax.Device] | None = None,
    memory: float | None = None,
) -> Mesh:
    """Copies of the model over all devices, each on a tensor group of `config.mesh.decode`.

    Of 0, on the fewest that hold it in SHARE of their memory. For -1, for rules of the user's own, and
    where no group holds a copy, the mesh of training.

    Args:
        config: of the model as it decodes, see `loading.for_inference`.
        devices: default those of all processes.
        memory: bytes of a device; default what it says itself, or the table of chips. Unknown, as a CPU's,
            it is taken to be enough.

    Raises:
        UserError: the group asked for does not divide the devices or the model; or rules beside it.
    """
    devices = list(jax.devices() if devices is None else devices)
    trained = mesh_module.of_settings(settings, devices)
    if settings.decode > 0 and settings.rules:
        raise UserError(
            f"config.mesh.decode={settings.decode} is not for a mesh with config.mesh.rules, which "
            "decodes as it trains: take one of them out"
        )
    if settings.decode == -1 or settings.rules:
        return trained
    if settings.decode:
        asked = _copies(settings.decode, devices)
        creation.abstract(config, asked)
        return asked
    # Hosts that chose different meshes would wait for each other for ever.
    room = SHARE * (distributed.from_main(_memory) if memory is None else memory)
    for each in (n for n in range(1, len(devices) + 1) if len(devices) % n == 0):
        try:
            mesh = _copies(each, devices)
            if _held(config, mesh) <= room:
                return mesh
        except UserError:  # heads, say, that do not divide: a larger group may
            continue
    status("no group of devices holds a copy of the model: decoding on the mesh of training")
    return trained


def _copies(each: int, devices: Sequence[jax.Device]) -> Mesh:
    return mesh_module.make(replica=-1, fsdp=1, tensor=each, devices=devices)


def _held(config: DecoderConfig, mesh: Mesh) -> int:
    """Bytes of the weights on one device."""
    _, *states = creation.abstract(config, mesh)
    return mesh_module.held(states)


def _memory() -> float:
    """Bytes of a device of this process, as far as they are known."""
    device = jax.local_devices()[0]
    said = device.memory_stats() or {}
    chip = chips.of(device)
    return float(said.get("bytes_limit", chip.memory if chip else math.inf))
