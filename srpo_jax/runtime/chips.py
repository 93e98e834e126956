"""Published figures of the accelerators that people train on."""

import dataclasses
import re

import jax


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX calls one device.

    kinds: what `jax.Device.device_kind` begins with. flops: of dense bfloat16 products, per second. memory:
    bytes of HBM. link, network: bytes per second that it sends, to its neighbours in all, and over the data
    centre's network. clock: Hz of a TPU's core. cores: that share a TPU's kernel. bandwidth: bytes per
    second of a GPU's memory.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory: float
    link: float
    network: float
    clock: float = 0.0
    cores: int = 1
    bandwidth: float = 0.0


GIB, GB, TFLOP = 2.0**30, 1e9, 1e12
CHIPS = (
    Chip(
        "v5e",
        ("TPU v5 lite", "TPU v5e"),
        flops=197 * TFLOP,
        memory=16 * GIB,
        link=180 * GB,
        network=3.125 * GB,
        clock=1.5e9,
    ),
    Chip(
        "v5p",
        ("TPU v5p", "TPU v5"),
        flops=459 * TFLOP,
        memory=95 * GIB,
        link=540 * GB,
        network=6.25 * GB,
        clock=1.75e9,
        cores=2,
    ),
    Chip(
        "v6e",
        ("TPU v6 lite", "TPU v6e"),
        flops=918 * TFLOP,
        memory=32 * GIB,
        link=360 * GB,
        network=12.5 * GB,
        clock=1.75e9,
    ),
    Chip("H200", ("NVIDIA H200",), 989 * TFLOP, 141 * GB, 450 * GB, 50 * GB, bandwidth=4800 * GB),
    Chip("H100", ("NVIDIA H100",), 989 * TFLOP, 80 * GB, 450 * GB, 50 * GB, bandwidth=3350 * GB),
    Chip("A100", ("NVIDIA A100",), 312 * TFLOP, 80 * GB, 300 * GB, 25 * GB, bandwidth=2039 * GB),
)


def of(device: jax.Device) -> Chip | None:
    """The chip that a device is; None for one that is not in the table, a CPU for instance."""
    named = ((kind, chip) for chip in CHIPS for kind in chip.kinds)
    fitting = [pair for pair in named if device.device_kind.startswith(pair[0])]
    if not fitting:
        return None
    chip = max(fitting, key=lambda pair: len(pair[0]))[1]
    # Of a GPU that comes with other memory, too, the kind says how much.
    said = re.search(r"\b(\d+) ?GB\b", device.device_kind)
    return dataclasses.replace(chip, memory=int(said[1]) * GB) if said else chip
