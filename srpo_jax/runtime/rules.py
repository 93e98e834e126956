"""The one table that says along which axes of the mesh a dimension lies, and how a run changes it.

A mesh carries its own table: one with changed rules has one axis more, of a single device, whose name says
what was changed. So whatever sees the mesh, a compiled program too, sees its rules, and two meshes with
other rules are never taken for one another. The axis "expert" is there only in meshes that ask for it.
"""

import functools
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from srpo_jax.runtime.errors import UserError

AXES = ("replica", "fsdp", "expert", "tensor")
RULES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "batch": ("replica", "fsdp", "expert"),
        "embed": ("fsdp", "expert"),
        "vocab": ("tensor",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "head": (),
        "mlp": ("tensor",),
        "experts": ("expert",),
        "expert_embed": ("fsdp",),  # the width, in what is cut along "experts"
        "layers": (),
        "rank": (),
    }
)
MARK = "rules "

LogicalAxes = tuple[str | None, ...]


def changed(entries: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
    """RULES with entries "NAME=AXIS", "NAME=AXIS+AXIS" or "NAME=None" in place of its own.

    Raises UserError for a name or an axis that does not exist, and for one that is given twice.
    """
    table = dict(RULES)
    given: set[str] = set()
    for entry in entries:
        where = f"config.mesh.rules: {entry!r}"
        name, equals, along = (part.strip() for part in entry.partition("="))
        axes = () if along == "None" else tuple(axis.strip() for axis in along.split("+"))
        if not equals or name not in RULES:
            raise UserError(f"{where} must be NAME=AXIS, and NAME one of {', '.join(RULES)}")
        if unknown := [axis for axis in axes if axis not in AXES]:
            raise UserError(
                f"{where}: the mesh has no axis {unknown[0]!r}; use None or some of {', '.join(AXES)}, "
                "several with + between them"
            )
        if name in given or len(set(axes)) < len(axes):
            raise UserError(f"{where}: {name if name in given else axes[0]!r} is given twice")
        given.add(name)
        table[name] = axes
    return MappingProxyType(table)


def axis_name(entries: Sequence[str]) -> str:
    """The name of the axis by which a mesh carries these entries."""
    return MARK + " ".join(sorted(entry.replace(" ", "") for entry in entries))


def of(mesh: Mesh | AbstractMesh) -> Mapping[str, tuple[str, ...]]:
    """The table of this mesh."""
    return _of(mesh.axis_names)


@functools.cache
def _of(axes: tuple[str, ...]) -> Mapping[str, tuple[str, ...]]:
    entries = [axis.removeprefix(MARK).split() for axis in axes if axis.startswith(MARK)]
    return changed(entries[0]) if entries else RULES


def mesh_axes(mesh: Mesh | AbstractMesh, logical: str | None) -> tuple[str, ...]:
    """The axes along which a dimension of this name is cut; () where every device holds all of it.

    An axis that the mesh does not have is none.
    """
    if logical is None:
        return ()
    return tuple(axis for axis in of(mesh)[logical] if axis in mesh.axis_names)


def spec(mesh: Mesh | AbstractMesh, axes: LogicalAxes) -> PartitionSpec:
    """How an array whose dimensions have these logical names is cut.

    Raises UserError where two of them lie along one axis.
    """
    taken: dict[str, str] = {}
    for logical in axes:
        for axis in mesh_axes(mesh, logical):
            if axis in taken:
                raise UserError(
                    f'config.mesh.rules: "{taken[axis]}" and "{logical}" are dimensions of one array, and '
                    f'both lie along "{axis}": give one of them another axis, or None'
                )
            taken[axis] = str(logical)
    return PartitionSpec(*(mesh_axes(mesh, logical) or None for logical in axes))
