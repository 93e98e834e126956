"""Which chip a device is."""

import types

import pytest

from srpo_jax.runtime import chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("cpu", None),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    chip = chips.of(types.SimpleNamespace(device_kind=kind))
    assert (chip and chip.name) == name


@pytest.mark.parametrize(
    ("kind", "gigabytes"),
    [("NVIDIA A100-SXM4-40GB", 40), ("NVIDIA A100 80GB PCIe", 80), ("NVIDIA H100 96GB HBM3", 96)],
)
def test_a_gpu_has_the_memory_that_its_kind_says(kind, gigabytes):
    """The plan of a second copy of the layers asks for a share of it."""
    assert chips.of(types.SimpleNamespace(device_kind=kind)).memory == gigabytes * 1e9
