"""Digests of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.runtime import digest
from srpo_jax.runtime import mesh as mesh_module

VALUES = np.random.default_rng(0).normal(size=(8, 6, 4)) * 50


@pytest.mark.parametrize(
    "dtype", ["float32", "bfloat16", "float16", "int32", "uint32", "int8", "bool"]
)
def test_the_same_on_devices_cut_and_in_host_memory(dtype):
    array = VALUES > 0 if dtype == "bool" else VALUES.astype(jnp.dtype(dtype))
    mesh = mesh_module.make(fsdp=4, tensor=2)
    cut = jax.device_put(array, mesh_module.sharding(mesh, ("embed", "heads", None)))
    assert digest.of(jnp.asarray(array)) == digest.of(cut) == digest.of(array)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "float64"])
def test_every_flipped_bit_is_seen(dtype):
    array = VALUES.astype(jnp.dtype(dtype))
    before, bits = digest.of(array), array.copy().view(np.uint8).reshape(-1)
    rng = np.random.default_rng(1)
    for _ in range(200):
        place, bit = rng.integers(len(bits)), np.uint8(1 << rng.integers(8))
        bits[place] ^= bit
        assert digest.of(bits.view(array.dtype).reshape(array.shape)) != before
        bits[place] ^= bit
    assert digest.of(bits.view(array.dtype).reshape(array.shape)) == before


def test_where_a_value_stands_counts():
    assert digest.of(np.array([1.0, 2.0])) != digest.of(np.array([2.0, 1.0]))


def test_numbers_and_random_keys():
    assert digest.of(3) == digest.of(np.int64(3)) != digest.of(4)
    assert digest.of(jax.random.key(1)) != digest.of(jax.random.key(2))


def test_large_arrays_are_summed_in_pieces(monkeypatch):
    whole = digest.of(VALUES)
    monkeypatch.setattr(digest, "_CHUNK", 7)
    assert digest.of(VALUES) == whole
