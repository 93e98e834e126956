import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from srpo_jax.runtime import mesh as mesh_lib
from srpo_jax.runtime.errors import UserError


class Block(nnx.Module):
    def __init__(self) -> None:
        self.kernel = nnx.Param(jnp.zeros((8, 4, 2)), axes=("embed", "heads", "head"))
        self.count = nnx.BatchStat(jnp.zeros((), jnp.int32))


def stacked_blocks() -> Block:
    return nnx.vmap(lambda _: Block())(jnp.arange(3))


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ({}, (1, 8, 1)),
        ({"fsdp": 4, "tensor": 2}, (1, 4, 2)),
        ({"replica": -1, "fsdp": 2}, (4, 2, 1)),
        ({"replica": 2, "fsdp": 2, "tensor": -1}, (2, 2, 2)),
    ],
)
def test_make_completes_the_sizes(sizes: dict[str, int], shape: tuple[int, ...]) -> None:
    mesh = mesh_lib.make(**sizes)
    assert mesh.devices.shape == shape
    assert mesh.axis_names == ("replica", "fsdp", "tensor")
    assert mesh.axis_types == (AxisType.Auto,) * 3
    assert set(mesh.devices.flat) == set(jax.devices())


def test_make_takes_the_devices_given() -> None:
    assert mesh_lib.make(devices=jax.devices()[:1]).devices.shape == (1, 1, 1)


@dataclasses.dataclass(frozen=True)
class SliceDevice:
    """Device of one of two slices."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize(("width", "devices"), [(48, 8), (6, 2), (9, 1)])
def test_what_a_process_computes_alone_is_cut_over_its_devices(width: int, devices: int) -> None:
    mesh = mesh_lib.local(width)
    assert mesh.devices.flatten().tolist() == jax.local_devices()[:devices]


def test_only_replicas_cross_slices() -> None:
    devices: list[Any] = [SliceDevice(id=n, slice_index=n % 2) for n in range(8)]
    mesh = mesh_lib.make(replica=4, devices=devices)
    assert mesh.devices.shape == (4, 2, 1)
    assert all(len({device.slice_index for device in row.flat}) == 1 for row in mesh.devices)
    with pytest.raises(UserError, match=r"config\.mesh\.replica is 1.*2 slices"):
        mesh_lib.make(devices=devices)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip of a slice, with its place in the torus."""

    id: int
    process_index: int
    coords: tuple[int, ...]
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    default_memory_kind = "device"

    def addressable_memories(self) -> list[Any]:
        return []


def held(mesh: Any, rows: int) -> dict[int, list[int]]:
    """{process: the rows it has to bring}, from every process's own view."""
    found = {}
    for process in sorted({device.process_index for device in mesh.devices.flat}):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "process_index", lambda process=process: process)
            found[process] = mesh_lib.own_rows(mesh, rows).tolist()
    return found


def test_processes_that_share_a_tensor_group_bring_the_same_rows() -> None:
    devices: list[Any] = [SliceDevice(id=n, slice_index=0, process_index=n // 2) for n in range(8)]
    mesh = mesh_lib.make(fsdp=2, tensor=4, devices=devices)
    assert held(mesh, 4) == {0: [0, 1], 1: [0, 1], 2: [2, 3], 3: [2, 3]}
    mesh = mesh_lib.make(fsdp=4, tensor=2, devices=devices)
    assert held(mesh, 4) == {process: [process] for process in range(4)}
    mesh = mesh_lib.make(fsdp=8, devices=devices)
    assert held(mesh, 8) == {process: [2 * process, 2 * process + 1] for process in range(4)}


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 3}, {"fsdp": 4}, {"fsdp": 16}, {"tensor": 3}, {"replica": 2, "fsdp": 2}]
)
def test_make_names_the_settings_and_the_device_count(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"config\.mesh\.fsdp=.* 8 devices"):
        mesh_lib.make(**sizes)


@pytest.mark.parametrize("sizes", [{"fsdp": 0}, {"fsdp": -2}, {"fsdp": -1, "tensor": -1}])
def test_make_refuses_sizes_that_are_none(sizes: dict[str, int]) -> None:
    with pytest.raises(UserError, match="positive"):
        mesh_lib.make(**sizes)


def test_sharding_follows_the_rules() -> None:
    mesh = mesh_lib.make(2, 2, 2)
    placed = mesh_lib.sharding(mesh, ("layers", "embed", "head", "vocab", None))
    assert placed.spec == PartitionSpec(None, "fsdp", None, "tensor", None)
    assert mesh_lib.batch_sharding(mesh).spec == PartitionSpec(("replica", "fsdp"))


def test_check_divisible_names_everything() -> None:
    mesh = mesh_lib.make(1, 4, 2)
    mesh_lib.check_divisible(mesh, "fine", (8, 3), ("embed", "head"))
    with pytest.raises(
        UserError, match=r'blocks\.k: dimension 1 \("heads", size 3\).*config\.mesh\.tensor = 2'
    ):
        mesh_lib.check_divisible(mesh, "blocks.k", (8, 3), ("embed", "heads"))


@pytest.mark.parametrize("abstract", [False, True])
def test_parameter_shardings_keep_the_structure(abstract: bool) -> None:
    mesh = mesh_lib.make(1, 4, 2)
    state = nnx.state(nnx.eval_shape(stacked_blocks) if abstract else stacked_blocks())
    placed = mesh_lib.parameter_shardings(mesh, state)
    assert jax.tree.structure(placed) == jax.tree.structure(state)
    specs = {path: v.get_value().spec for path, v in nnx.to_flat_state(placed)}
    assert specs == {
        ("kernel",): PartitionSpec(None, "fsdp", "tensor", None),
        ("count",): PartitionSpec(),
    }


def test_parameter_shardings_serve_jit() -> None:
    mesh = mesh_lib.make(1, 4, 2)
    state = nnx.state(stacked_blocks())
    placed = mesh_lib.parameter_shardings(mesh, state)
    step = jax.jit(
        lambda s: jax.tree.map(lambda x: x + 1, s), in_shardings=(placed,), out_shardings=placed
    )
    out = step(step(state))
    kernel = out["kernel"].get_value()
    assert kernel.sharding == NamedSharding(mesh, PartitionSpec(None, "fsdp", "tensor", None))
    assert kernel.addressable_shards[0].data.shape == (3, 2, 2, 2)
    np.testing.assert_array_equal(kernel, 2.0)


def test_parameter_shardings_name_the_parameter_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="kernel: dimension 2"):
        mesh_lib.parameter_shardings(mesh_lib.make(1, 1, 8), nnx.state(stacked_blocks()))


def test_host_to_global_splits_rows() -> None:
    mesh = mesh_lib.make(2, 2, 2)
    batch = {"ids": np.arange(24).reshape(8, 3), "weight": np.ones(8, np.float32)}
    placed = mesh_lib.host_to_global(mesh, batch)
    np.testing.assert_array_equal(placed["ids"], batch["ids"])
    assert placed["ids"].addressable_shards[0].data.shape == (2, 3)
    with pytest.raises(UserError, match="batch of 6 rows"):
        mesh_lib.host_to_global(mesh, np.zeros((6, 2)))
    with pytest.raises(UserError, match="batch of 6 rows"):
        mesh_lib.own_rows(mesh, 6)
