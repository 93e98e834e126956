"""Weights that are read when they are wanted, with adapters merged, whole or layer by layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from srpo_jax.models import weights
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError

RNG = np.random.default_rng(0)
ARRAYS = {
    "model.up.kernel": RNG.normal(size=(3, 8, 6)).astype(np.float32),
    "model.up.lora_a": RNG.normal(size=(3, 8, 2)).astype(np.float32),
    "model.up.lora_b": RNG.normal(size=(3, 2, 6)).astype(np.float32),
    "model.odd": RNG.normal(size=(5, 7)).astype(np.float32),
}
SHAPES = {name.removeprefix("model."): array.shape for name, array in ARRAYS.items()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("weights")
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(4, ARRAYS | {"optimizer.count": np.zeros(())}, force=True)
    return weights.saved(directory, 4, SHAPES, "model.")


@pytest.fixture(scope="module")
def sharding():
    return NamedSharding(mesh_module.make(fsdp=4, tensor=2), PartitionSpec(None, "fsdp", "tensor"))


def test_a_saved_array_is_read_into_any_sharding_and_by_layer(saved, sharding):
    kernel = saved["up.kernel"]
    placed = kernel.place(jnp.bfloat16, sharding)
    assert placed.sharding == sharding
    np.testing.assert_array_equal(placed, ARRAYS["model.up.kernel"].astype(jnp.bfloat16))
    for i in range(3):
        np.testing.assert_array_equal(kernel.layer(i), ARRAYS["model.up.kernel"][i])


def test_the_checkpoint_is_described_once_for_all_arrays(saved, sharding, monkeypatch):
    monkeypatch.delattr(ocp.training.Checkpointer, "metadata")
    read = weights.place(saved["odd"], np.float32, NamedSharding(sharding.mesh, PartitionSpec()))
    np.testing.assert_array_equal(read, ARRAYS["model.odd"])


def test_layers_wait_on_all_devices_or_where_they_can(saved):
    """8 devices can share a dimension of 8, but not 5 x 7, which each of them then holds."""
    np.testing.assert_array_equal(saved["odd"].layer(None), ARRAYS["model.odd"])
    saved["up.kernel"].layer(0)
    assert saved["odd"]._placed.sharding.is_fully_replicated
    assert saved["up.kernel"]._placed.addressable_shards[0].data.shape == (3, 1, 6)


@pytest.mark.parametrize("base", ["saved", "in memory"])
def test_an_adapter_is_w_plus_scale_a_b(saved, sharding, base):
    """Layer by layer on the host, and on a mesh; sums of two products in another order."""
    kernel = saved["up.kernel"] if base == "saved" else ARRAYS["model.up.kernel"]
    merged = weights.Adapted(kernel, saved["up.lora_a"], saved["up.lora_b"], 1.5)
    product = np.einsum("ldr,lrf->ldf", ARRAYS["model.up.lora_a"], ARRAYS["model.up.lora_b"])
    expected = ARRAYS["model.up.kernel"] + 1.5 * product
    placed = merged.place(jnp.float32, sharding)
    assert placed.sharding == sharding
    assert (merged.shape, placed.dtype) == (expected.shape, merged.dtype)
    np.testing.assert_allclose(placed, expected, rtol=1e-6, atol=1e-6)
    read = weights.reader({"up": merged})
    for i in range(3):
        np.testing.assert_allclose(read("up", i), expected[i], rtol=1e-6, atol=1e-6)


def test_a_narrow_base_is_widened_before_the_adapter_is_added(saved, sharding):
    """What is added is smaller than a step of bfloat16: adding in float32 must not lose it."""
    base = np.ones((3, 8, 6), jnp.bfloat16)
    merged = weights.Adapted(base, saved["up.lora_a"], saved["up.lora_b"], 1e-4)
    placed = np.asarray(merged.place(jnp.float32, sharding))
    assert 0 < np.abs(placed - 1).max() < 2**-8
    np.testing.assert_allclose(merged.layer(1), placed[1], rtol=1e-6)


def test_kernels_with_several_dimensions_of_heads_keep_their_shape(tmp_path):
    """Output projections [L, heads, head, D]: A has two dimensions of inputs."""
    a, b = RNG.normal(size=(2, 4, 3, 2)), RNG.normal(size=(2, 2, 5))
    arrays = {"a": a.astype(np.float32), "b": b.astype(np.float32)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, arrays, force=True)
    held = weights.saved(tmp_path, 0, {name: x.shape for name, x in arrays.items()})
    merged = weights.Adapted(np.zeros((2, 4, 3, 5), np.float32), held["a"], held["b"], 1.0)
    one = NamedSharding(mesh_module.make(devices=jax.devices()[:1]), PartitionSpec())
    expected = np.einsum("lhkr,lrd->lhkd", a, b)
    np.testing.assert_allclose(merged.place(jnp.float32, one), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged.layer(1), expected[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nowhere": (2,)}, r'has no "model\.nowhere"'),
        ({"odd": (7, 5)}, r'shape of "model\.odd" is \(5, 7\).*needs \(7, 5\)'),
    ],
)
def test_what_a_checkpoint_does_not_hold_is_named(saved, changes, said):
    directory = saved["odd"].directory
    with pytest.raises(UserError, match=said):
        weights.saved(directory, 4, SHAPES | changes, "model.")


def test_a_weight_says_what_it_is_before_it_is_read(saved):
    described = dataclasses.asdict(saved["odd"])
    assert (described["shape"], described["dtype"]) == ((5, 7), np.float32)
