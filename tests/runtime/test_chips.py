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
