"""Seconds from cycles and bytes."""

import types

import numpy as np
import pytest

from srpo_jax.planning import roofline
from srpo_jax.planning.hlo_cost import SLICES, Collective
from srpo_jax.runtime.chips import Chip

CHIP = Chip("x", (), flops=1, memory=1, link=100.0, network=10.0, clock=1000.0)


def mesh(platform="tpu", slices=1):
    """Sixteen chips, numbered along the axes; half of them in each slice, four of them in each host."""
    chips = [
        types.SimpleNamespace(platform=platform, slice_index=slices * i // 16, process_index=i // 4)
        for i in range(16)
    ]
    devices = np.array(chips, object).reshape(2, 4, 2)
    return types.SimpleNamespace(devices=devices, axis_names=("replica", "fsdp", "tensor"), size=16)


MESH = mesh()


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


@pytest.mark.parametrize(
    ("where", "fast", "slow"),
    [(mesh(), 0.6, 0.5), (mesh(slices=2), 0.6, 5.0), (mesh("gpu"), 6.0, 5.0)],
)
def test_what_crosses_slices_or_hosts_of_gpus_is_slow(where, fast, slow):
    sent = (
        Collective("all-gather", 20.0, 3, (0, 2, 4, 6)),
        Collective("all-reduce", 50.0, 1, (0, 8)),
    )
    cost = types.SimpleNamespace(computing=2.0, collectives=sent)
    found = roofline.seconds(cost, CHIP, where)
    assert found.sending == pytest.approx({"fsdp": fast, "replica": slow})
    assert found.least == pytest.approx(max(2.0, fast + slow))
    assert found.most == pytest.approx(2.0 + fast + slow)


def test_what_slices_send_by_their_hosts_goes_over_the_network_between_them():
    two = mesh(slices=2)
    between = Collective(SLICES + "ALL_REDUCE", 100.0, executions=3, group=None)
    assert roofline.sent_by_axis((between,), two) == {"replica": 300.0}
    cost = types.SimpleNamespace(computing=2.0, collectives=(between,))
    assert roofline.seconds(cost, CHIP, two).sending == {"replica": pytest.approx(30.0)}
