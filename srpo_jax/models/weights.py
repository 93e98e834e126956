"""Parameters that are read when they are wanted, each straight to where it belongs.

A checkpoint of safetensors has its own kind (huggingface.Stored). Those of this project's checkpoints are
here, as they are or with an adapter merged into them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints

Matrix = TypeVar("Matrix", np.ndarray, jax.Array)
CHECKPOINTS = "checkpoints"  # folder of a workdir, and of an imported model


class Weight(Protocol):
    """A parameter, or a stack of its layers, that is not in memory yet."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> Any: ...

    def place(self, dtype: Any, sharding: NamedSharding) -> jax.Array:
        """On the devices; the host holds one layer of it at a time at the most."""
        ...

    def layer(self, i: int | None) -> np.ndarray:
        """Layer i of a stack, or all of what is none (None), in host memory."""
        ...


# {dotted name: array in memory, or a Weight}.
Parameters = Mapping[str, np.ndarray | Weight]


def reader(parameters: Parameters) -> Callable[[str, int | None], np.ndarray]:
    """(dotted name, layer or None) -> array in its own dtype, read at each call."""

    def read(name: str, layer: int | None) -> np.ndarray:
        held = parameters[name]
        if isinstance(held, np.ndarray):
            return held if layer is None else held[layer]
        return held.layer(layer)

    return read


@dataclasses.dataclass(frozen=True)
class Saved:
    """An array of a checkpoint of this project, called `key` there, in the dtype it was saved in.

    held: descriptions of all that the checkpoint holds, so that they are read once for all arrays.
    """

    directory: Path
    step: int
    key: str
    shape: tuple[int, ...]
    dtype: Any
    held: Mapping[str, Any] = dataclasses.field(repr=False, compare=False)

    def place(self, dtype: Any, sharding: NamedSharding) -> jax.Array:
        """Each device reads its own part; the host holds none of it."""
        wanted = {self.key: jax.ShapeDtypeStruct(self.shape, self.dtype, sharding=sharding)}
        known = {self.step: self.held}
        with Checkpoints(self.directory, read_only=True, known=known) as checkpoints:
            array: jax.Array = checkpoints.restore(self.step, wanted, partial=True)[self.key]
        return array if array.dtype == dtype else array.astype(dtype)

    def layer(self, i: int | None) -> np.ndarray:
        """The whole array is read at the first call, and stays on this process's devices."""
        return np.asarray(self._placed if i is None else self._placed[i])

    @functools.cached_property
    def _placed(self) -> jax.Array:
        return self.place(self.dtype, _over_local_devices(self.shape))


@dataclasses.dataclass(frozen=True)
class Adapted:
    """W + scale A B, added up in float32: a stack of kernels W with its adapter merged.

    base [L, *inputs, *outputs], a [L, *inputs, r], b [L, r, *outputs]; of experts, their number behind L.
    """

    base: np.ndarray | Weight
    a: Weight
    b: Weight
    scale: float
    experts: bool = False
    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def place(self, dtype: Any, sharding: NamedSharding) -> jax.Array:
        base = place(self.base, self.base.dtype, sharding)
        everywhere = NamedSharding(sharding.mesh, PartitionSpec())
        a, b = (part.place(jnp.float32, everywhere) for part in (self.a, self.b))
        layers = _merging(self.scale, np.dtype(dtype), self.experts, sharding)
        merged: jax.Array = layers(base, a, b)
        return merged

    def layer(self, i: int | None) -> np.ndarray:
        base = reader({"base": self.base})("base", i).astype(np.float32)
        a, b = (part.layer(i).astype(np.float32) for part in (self.a, self.b))
        return base + self.scale * _product(a, b, self.experts).reshape(base.shape)


@functools.cache  # each stack of each model that is loaded would be compiled for otherwise
def _merging(
    scale: float, dtype: np.dtype[Any], experts: bool, sharding: NamedSharding
) -> Callable[..., Any]:
    """The program that merges a stack, layer by layer: no float32 copy of the whole is made on the way."""
    merge = functools.partial(_merge, scale=scale, dtype=dtype, experts=experts)
    return jax.jit(lambda *stacks: jax.lax.map(merge, stacks), out_shardings=sharding)


def _merge(
    layer: tuple[jax.Array, ...], scale: float, dtype: Any, experts: bool = False
) -> jax.Array:
    base, a, b = layer
    with jax.default_matmul_precision("highest"):
        product = _product(a, b, experts).reshape(base.shape)
    return (base.astype(jnp.float32) + scale * product).astype(dtype)


def _product(a: Matrix, b: Matrix, experts: bool = False) -> Matrix:
    """A B of one layer as a matrix [inputs, outputs], or one of each expert."""
    if experts:
        products: Matrix = a @ b
        return products
    rank = a.shape[-1]
    product: Matrix = a.reshape(-1, rank) @ b.reshape(rank, -1)
    return product


def place(array: np.ndarray | Weight, dtype: Any, sharding: NamedSharding) -> jax.Array:
    """A parameter on its devices; each process hands over only the parts that its own devices hold."""
    if not isinstance(array, np.ndarray):
        return array.place(dtype, sharding)
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index].astype(dtype)
    )


def saved(
    directory: Path, step: int, shapes: Mapping[str, tuple[int, ...]], prefix: str = ""
) -> dict[str, Weight]:
    """{name: what the checkpoint holds as prefix + name} for all of shapes.

    Raises UserError where the checkpoint is damaged, lacks one, or has it in another shape.
    """
    with Checkpoints(directory, read_only=True) as checkpoints:
        held = checkpoints.held(step, {prefix + name: shape for name, shape in shapes.items()})
    return {
        name: Saved(directory, step, prefix + name, shape, held[prefix + name].dtype, held)
        for name, shape in shapes.items()
    }


def _over_local_devices(shape: tuple[int, ...]) -> NamedSharding:
    """Cut over this process's devices along the last dimension that they can share evenly, if any."""
    devices = jax.local_devices()
    mesh = mesh_module.make(devices=devices)
    cut: list[str | None] = [None] * len(shape)
    for axis in reversed(range(len(shape))):
        if shape[axis] % len(devices) == 0:
            cut[axis] = "fsdp"
            break
    return NamedSharding(mesh, PartitionSpec(*cut))
