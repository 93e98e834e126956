"""The device mesh, and where arrays lie on it.

Models name the dimensions of their parameters logically ("embed", "heads", …) and know nothing of
machines; everything that places an array on devices goes through the table of `rules.py`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from srpo_jax.runtime import rules as rule_table
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.rules import AXES, LogicalAxes, mesh_axes, spec
from srpo_jax.runtime.settings import Check, check, setting

# Dimensions of which every device holds all where they cannot be cut: a few key heads for many devices.
WHOLE_IF_UNEVEN = ("kv_heads",)

_SIZE = Check(lambda value: value == -1 or value >= 1, "positive, or -1 for all that are left")


@dataclasses.dataclass(frozen=True)
class MeshSettings:
    """How devices share the work; at most one size is -1."""

    replica: int = setting(1, "copies of the model, the only axis that crosses slices", _SIZE)
    fsdp: int = setting(-1, "parameters and batch are split over these devices", _SIZE)
    expert: int = setting(
        1, "routed experts are split over these, and all else as over fsdp", _SIZE
    )
    tensor: int = setting(1, "heads, MLP and vocabulary are split over these", _SIZE)
    decode: int = setting(
        0,
        "evaluate and pairs: devices that share a copy of the weights; the fewest that hold it in half of "
        "their memory (0), or all as set above (-1)",
        Check(lambda value: value >= -1, "at least -1"),
    )
    rules: tuple[str, ...] = setting(
        (),
        "what else is split over which of these axes than in srpo_jax/runtime/rules.py, e.g. "
        "('embed=replica+fsdp', 'vocab=None')",
    )

    def __post_init__(self) -> None:
        check(self, "config.mesh")
        rule_table.changed(self.rules)


def of_settings(settings: MeshSettings, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of training; see `make`."""
    given: dict[str, Any] = {axis: getattr(settings, axis) for axis in AXES}
    if devices is not None:
        given["devices"] = devices
    return make(**given, rules=settings.rules)


def make(
    replica: int = 1,
    fsdp: int = -1,
    tensor: int = 1,
    devices: Sequence[jax.Device] | None = None,
    rules: Sequence[str] = (),
    expert: int = 1,
) -> Mesh:
    """Mesh with the axes ("replica", "fsdp", "tensor"), all of type Auto.

    Where `expert` is not 1, that axis stands before "tensor".

    Args:
        replica: copies of the whole model. The only axis that may cross the slow network between
            TPU slices; with several slices it must be a multiple of their number.
        fsdp: devices that share one copy of parameters and optimiser, split along "embed".
        tensor: devices that share every matrix product, split along heads, mlp and vocabulary.
            At most one of the sizes is -1: all devices that the others leave.
        devices: default `jax.devices()`, those of all processes.
        rules: see `rules.changed`; with some the mesh has a last axis that carries them.
        expert: devices that share the routed experts of each layer, split along "experts". To the batch
            and to all other parameters they are what those of fsdp are.

    Raises:
        UserError: the sizes are not positive, or their product is not the number of devices; a rule that
            cannot be.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"replica": replica, "fsdp": fsdp, "expert": expert, "tensor": tensor}
    names = tuple(axis for axis in AXES if axis != "expert" or expert != 1)
    shape = _complete({axis: sizes[axis] for axis in names}, len(devices))
    # make_mesh is not used: it knows neither several slices nor allow_split_physical_axes, without
    # which a mesh that does not map onto the torus is refused.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    elif shape[0] % slices == 0:
        grid = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]),
            (slices, *(1,) * (len(shape) - 1)),
            devices,
            allow_split_physical_axes=True,
        )
    else:
        raise UserError(
            f"config.mesh.replica is {shape[0]}, but the devices are in {slices} slices: make it a "
            f"multiple of {slices}, so that only replicas talk over the network between slices"
        )
    if rules:
        rule_table.changed(rules)
        grid, names = grid[..., None], (*names, rule_table.axis_name(rules))
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def local(width: int) -> Mesh:
    """Mesh of this process's own devices, for what it computes alone: as many as divide `width` evenly."""
    devices = jax.local_devices()
    return make(devices=devices[: math.gcd(len(devices), width)])


def sharding(mesh: Mesh, axes: LogicalAxes, shape: Sequence[int] | None = None) -> NamedSharding:
    """Sharding of an array whose dimensions have these logical names (None: not split).

    shape: of the array, where dimensions of WHOLE_IF_UNEVEN are among them. Raises UserError where two of
    the dimensions lie along one axis, as "batch" and "embed" would.
    """
    if shape is not None:
        axes = _whole_if_uneven(mesh, axes, shape)
    return NamedSharding(mesh, spec(mesh, axes))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding that splits the leading dimension over the batch axes, for arrays of any rank."""
    return sharding(mesh, ("batch",))


def plainest(given: NamedSharding) -> NamedSharding:
    """The same without axes of one device, which is how compiled programs describe their results."""
    mesh, kept = given.mesh, []
    for axes in given.spec:
        names = (axes,) if isinstance(axes, str) else axes or ()
        several = tuple(name for name in names if mesh.shape[name] > 1)
        kept.append(several[0] if len(several) == 1 else several or None)
    while kept and kept[-1] is None:
        kept.pop()
    return NamedSharding(mesh, PartitionSpec(*kept))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of an array of which every device holds all."""
    return NamedSharding(mesh, PartitionSpec())


def of(state: Any) -> Mesh | None:
    """The mesh that the arrays of a pytree lie on; None for one device."""
    placed = getattr(jax.tree.leaves(state)[0], "sharding", None)
    if isinstance(placed, NamedSharding) and isinstance(placed.mesh, Mesh) and placed.mesh.size > 1:
        return placed.mesh
    return None


def held(tree: Any) -> int:
    """Bytes on one device, of arrays or of shapes with shardings."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts `batch_sharding` splits the leading dimension."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(mesh, "batch"))


def constrain(x: jax.Array, axes: LogicalAxes) -> jax.Array:
    """x, laid out along the mesh of the context as these logical names say; without a mesh, x.

    The context is what `jax.sharding.use_abstract_mesh` or `jax.set_mesh` made it.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    fitting = spec(mesh, _whole_if_uneven(mesh, axes, x.shape))
    laid_out: jax.Array = jax.lax.with_sharding_constraint(x, fitting)
    return laid_out


def current_parts(logical: str) -> int:
    """Into how many parts a dimension of this name is cut on the mesh of the context; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in mesh_axes(mesh, logical))


def own_parts(mesh: Mesh) -> np.ndarray:
    """Which of the parts of `batch_sharding` this process's devices hold, ascending.

    Devices of several processes hold the same part where they share a tensor group.
    """
    parts, process = batch_parts(mesh), jax.process_index()
    where: Mapping[Any, Any] = batch_sharding(mesh).devices_indices_map((parts,))
    held = {
        index[0].start or 0 for device, index in where.items() if device.process_index == process
    }
    return np.array(sorted(held))


def own_rows(mesh: Mesh, rows: int) -> np.ndarray:
    """The numbers of those rows of a batch of so many that this process has to bring, ascending.

    Raises:
        UserError: the rows cannot be split evenly over the batch axes.
    """
    parts = batch_parts(mesh)
    if rows % parts:
        raise UserError(
            f"a batch of {rows} rows cannot be split over {settings_of(mesh, 'batch')} = {parts} devices: "
            "choose a batch size that is a multiple"
        )
    own: np.ndarray = np.arange(rows).reshape(parts, -1)[own_parts(mesh)]
    return own.reshape(-1)


def check_divisible(mesh: Mesh, name: str, shape: Sequence[int], axes: LogicalAxes) -> None:
    """Checks that every dimension can be cut evenly along its mesh axes.

    Raises:
        UserError: naming the parameter, dimension, mesh axis and both sizes.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{name}: shape {tuple(shape)} has not the dimensions {axes}")
    for dimension, (size, logical) in enumerate(zip(shape, axes, strict=True)):
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes(mesh, logical))
        if size % parts and logical not in WHOLE_IF_UNEVEN:
            raise UserError(
                f'{name}: dimension {dimension} ("{logical}", size {size}) cannot be cut into '
                f"{settings_of(mesh, logical)} = {parts} equal parts: choose a size that divides it"
            )


def settings_of(mesh: Mesh, logical: str | None) -> str:
    """The settings whose product says into how many parts a dimension is cut, for sentences."""
    return " * ".join(f"config.mesh.{axis}" for axis in mesh_axes(mesh, logical))


def parameter_shardings(mesh: Mesh, state: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
    """Where each Variable of a state lies.

    A Variable names its dimensions in its metadata: `nnx.Param(value, axes=("embed", "mlp"))`. One
    with one dimension more than names is stacked: "layers" stands in front. One without names (a
    counter, say) is replicated.

    Args:
        state: values are arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        A state of the same tree structure (Variables and metadata included) that holds a
        NamedSharding where `state` holds an array. It fits `in_shardings` and `out_shardings` of
        `jax.jit`, `jax.device_put`, and `jax.tree.map` together with `state`.

    Raises:
        UserError: see `check_divisible`.
    """
    flat = nnx.to_flat_state(state)
    placed = [
        (path, variable.replace(_variable_sharding(mesh, path, variable)))
        for path, variable in flat
    ]
    return nnx.from_flat_state(placed)


def host_to_global(mesh: Mesh, tree: Any) -> Any:
    """Global batch arrays from each process's own rows.

    Args:
        tree: pytree of NumPy arrays [`own_rows`, ...] of this process. Scalars stay as they are.

    Returns:
        Same tree of jax arrays [rows of all processes, ...], the leading dimension split over the
        batch axes.

    Raises:
        UserError: the rows cannot be split evenly over this process's parts of the batch.
    """
    target, own = batch_sharding(mesh), own_parts(mesh)

    def place(array: np.ndarray) -> jax.Array | np.ndarray:
        if not array.ndim:
            return array
        if array.shape[0] % len(own):
            raise UserError(
                f"a batch of {array.shape[0]} rows cannot be split over {len(own)} devices: choose a "
                "batch size that is a multiple"
            )
        each = array.shape[0] // len(own)

        def part(index: Any) -> np.ndarray:
            at = int(np.searchsorted(own, (index[0].start or 0) // each)) * each
            return array[at : at + each]

        whole = (each * batch_parts(mesh), *array.shape[1:])
        return jax.make_array_from_callback(whole, target, part)

    return jax.tree.map(place, tree)


def place_rows(mesh: Mesh, tree: Any) -> Any:
    """Arrays that every process has whole, their leading dimension split over the batch axes.

    Each process hands over the rows of its own devices. Scalars stay as they are; random keys may be among
    the arrays.
    """
    by_row = batch_sharding(mesh)

    def place(x: Any) -> Any:
        if not x.ndim:
            return x
        if jax.process_count() == 1:
            return jax.device_put(x, by_row)
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(np.asarray(jax.random.key_data(x))))
        return jax.make_array_from_callback(x.shape, by_row, lambda index: x[index])

    return jax.tree.map(place, tree)


def replicate(mesh: Mesh, value: Any) -> jax.Array:
    """A value that every process has, as an array of which every device holds all."""
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, replicated(mesh), lambda index: array[index])


def gathered(array: jax.Array) -> np.ndarray:
    """The whole array on every process. Called by all of them."""
    if not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def _complete(sizes: dict[str, int], devices: int) -> tuple[int, ...]:
    written = ", ".join(f"config.mesh.{axis}={size}" for axis, size in sizes.items())
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1 or any(size < 1 for size in sizes.values() if size != -1):
        raise UserError(
            f"{written}: sizes must be positive, and at most one may be -1 (all that is left)"
        )
    known = math.prod(size for size in sizes.values() if size != -1)
    if devices % known or (not rest and known != devices):
        raise UserError(
            f"{written}: the product is {known}{' times the rest' if rest else ''}, which does not "
            f"match the {devices} devices here: change config.mesh.* (one may be -1: all that is "
            "left)"
        )
    return tuple(devices // known if size == -1 else size for size in sizes.values())


def _variable_sharding(
    mesh: Mesh, path: tuple[Any, ...], variable: nnx.Variable[Any]
) -> NamedSharding:
    axes: LogicalAxes | None = variable.get_metadata().get("axes")
    if axes is None:
        return replicated(mesh)
    shape = variable.get_value().shape
    if len(shape) == len(axes) + 1:
        axes = ("layers", *axes)
    check_divisible(mesh, ".".join(map(str, path)), shape, axes)
    return sharding(mesh, axes, shape)


def _whole_if_uneven(
    mesh: Mesh | AbstractMesh, axes: LogicalAxes, shape: Sequence[int]
) -> LogicalAxes:
    """axes without the names of dimensions that stay whole, as they cannot be cut evenly."""

    def uneven(name: str | None, size: int) -> bool:
        parts = math.prod(mesh.shape[axis] for axis in mesh_axes(mesh, name))
        return name in WHOLE_IF_UNEVEN and size % parts > 0

    return tuple(
        None if uneven(name, size) else name for name, size in zip(axes, shape, strict=True)
    )
