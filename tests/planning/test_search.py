"""What is tried: bounded in number, and copies of the model only where they can help."""

import dataclasses

import pytest

from srpo_jax import config as config_module
from srpo_jax.planning import machine, search
from srpo_jax.planning.machine import Machine


@pytest.mark.parametrize(
    ("name", "devices", "width", "tried"),
    [
        # Of 8,192 a chip of 128 would hold 64, too thin to be gathered; with tensor=2 it holds 128.
        ("v5p-256", 128, 8192, {1: (1, 2), 2: (1,), 8: (1,)}),
        ("v5p-256", 128, 4096, {1: (1, 4), 2: (1, 2), 4: (1,)}),
        ("v6e-256", 256, 8192, {1: (1,), 2: (1,)}),
        ("v6e-256", 256, 4096, {1: (1, 2), 2: (1,)}),
        ("2xv5e-256", 512, 8192, {1: (2, 8), 2: (2, 4), 4: (2,)}),
        ("v5e-8", 8, 64, {1: (1, 8), 8: (1,)}),
        ("H100-64", 64, 8192, {1: (1, 8), 8: (1, 8)}),
        ("H100-4", 4, 8192, {1: (1,)}),
    ],
)
def test_copies_are_tried_where_they_can_help(monkeypatch, name, devices, width, tried):
    monkeypatch.setattr(Machine, "devices", [None] * devices)
    where = machine.named(name)
    assert {group: search.replicas(where, width, group) for group in tried} == tried


def test_no_group_is_larger_than_the_machine(monkeypatch):
    monkeypatch.setattr(Machine, "devices", [None] * 4)
    settings = config_module.checked(config_module.default())
    tried = search.candidates(settings, machine.named("v5e-4"), 4096)
    assert {one.mesh.tensor for batches in tried for one in batches} == {1, 2, 4}


def test_no_more_is_tried_than_the_documentation_says(monkeypatch):
    monkeypatch.setattr(Machine, "devices", [None] * 4096)
    settings = config_module.checked(config_module.default())
    settings = dataclasses.replace(
        settings, train=dataclasses.replace(settings.train, accumulate=2)
    )
    batches = list(search.candidates(settings, machine.named("v5p-8192"), 4096))
    assert sum(map(len, batches)) == 72
    for tried in batches:
        (mesh,) = {one.mesh for one in tried}
        pairs = [one.train.batch_size * mesh.tensor / 2 / 4096 for one in tried]
        assert pairs == [1, 2, 4], "for each group of devices and piece of a batch"
    assert {(one.mesh.replica, one.mesh.tensor) for one, *_ in batches} == {
        *((1, 1), (1, 2), (1, 4), (1, 8)),
        *((128, 1), (64, 2), (32, 4), (16, 8)),
    }
