"""Seconds from cycles and bytes."""

import types

import numpy as np
import pytest

from srpo_jax.planning import roofline
from srpo_jax.planning.hlo_cost import Collective
from srpo_jax.runtime.chips import Chip

CHIP = Chip("x", (), flops=1, memory=1, link=100.0, network=10.0, clock=1000.0)
MESH = types.SimpleNamespace(
    devices=np.empty((2, 4, 2), object), axis_names=("replica", "fsdp", "tensor"), size=16
)


@pytest.mark.parametrize(
    ("group", "axes"),
    [
        ((0, 1), "tensor"),
        ((0, 2, 4, 6), "fsdp"),
        ((1, 9), "replica"),
        ((0, 2, 4, 6, 8, 10, 12, 14), "replica + fsdp"),
        (None, "replica + fsdp + tensor"),
        ((3,), "none"),
    ],
)
def test_a_group_lies_along_the_axes_in_which_its_chips_differ(group, axes):
    assert roofline.axes(group, MESH) == axes


@pytest.mark.parametrize(("slices", "slow"), [(1, 0.5), (2, 5.0)])
def test_what_crosses_slices_is_slow(slices, slow):
    sent = (
        Collective("all-gather", 20.0, 3, (0, 2, 4, 6)),
        Collective("all-reduce", 50.0, 1, (0, 8)),
    )
    found = roofline.seconds(
        types.SimpleNamespace(cycles=2000, collectives=sent), CHIP, MESH, slices
    )
    assert found.sending == pytest.approx({"fsdp": 0.6, "replica": slow})
    assert found.least == pytest.approx(max(2.0, 0.6 + slow))
    assert found.most == pytest.approx(2.6 + slow)
