"""Machines by name, and every mesh that people ask of them."""

import importlib.util
import subprocess
import sys

import pytest

from srpo_jax.planning import machine
from srpo_jax.runtime.errors import UserError


@pytest.mark.parametrize(
    ("name", "topology", "slices"),
    [
        ("v5e-64", "v5e:8x8", 1),
        ("v5p-256", "v5:4x4x8", 1),
        ("v5p-8192", "v5:16x16x16", 1),
        ("2xv5e-256", "v5e:16x16", 2),
        ("2 x v6e-16", "v6e:4x4", 2),
        ("v5p:2x2x2", "v5:2x2x2", 1),
        ("H100-64", "64", 1),
        ("A100-4", "4", 1),
    ],
)
def test_machines_are_known_by_name(name, topology, slices):
    found = machine.named(name)
    assert (found.topology, found.slices) == (topology, slices)


@pytest.mark.parametrize(
    "name", ["v9-8", "v5e-7", "v5e", "", "H100-12", "H100-0", "H100", "2xH100-8"]
)
def test_others_are_refused(name):
    with pytest.raises(UserError, match=rf"--topology={name} is no machine .* v5p-N with N 8, 16"):
        machine.named(name)


PROGRAM = """
import itertools
import jax
jax.config.update("jax_platforms", "cpu")
from srpo_jax.planning import machine
from srpo_jax.runtime import mesh
for name in ("v5e-8", "v5e-64", "v5e-256", "v5p-128", "v5p-256", "v6e-256", "2xv5e-256"):
    one = machine.named(name)
    hosts = sorted({device.process_index for device in one.devices})
    for tensor in (1, 2, 4, 8):
        made = mesh.make(replica=one.slices, tensor=tensor, devices=one.devices)
        assert made.shape["tensor"] == tensor, made
        parts = mesh.batch_parts(made)
        brought = []
        for host in hosts:
            jax.process_index = lambda host=host: host
            brought.append(mesh.own_rows(made, 2 * parts).tolist())
        # Every row is brought, by equally many hosts, and every host brings equally many.
        assert sorted({row for rows in brought for row in rows}) == list(range(2 * parts))
        assert len(set(map(len, brought))) == 1
        counts = {row: sum(row in rows for rows in brought) for row in (0, 2 * parts - 1)}
        assert len(set(counts.values())) == 1
        for group in made.devices.reshape(-1, tensor):
            assert len({getattr(device, "slice_index", 0) for device in group}) == 1
    print(name, len(one.devices), len(hosts))
"""


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU's compiler: extra `plan`"
)
def test_meshes_on_real_topologies():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = dict(line.split()[:2] for line in done.stdout.splitlines() if line)
    assert sizes["v5p-256"] == "128"
    assert sizes["2xv5e-256"] == "512"
