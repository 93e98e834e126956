"""The table of which dimension lies along which axes, as a run changes it."""

import jax
import pytest
from jax.sharding import PartitionSpec

from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import rules
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.mesh import MeshSettings


def test_a_mesh_carries_its_own_rules():
    plain = mesh_module.make(2, 2, 2)
    other = mesh_module.make(2, 2, 2, rules=("embed = replica + fsdp", "heads=None"))
    assert rules.of(plain) == rules.RULES
    axes = ("layers", "embed", "heads", "head")
    assert rules.spec(plain, axes) == PartitionSpec(None, "fsdp", "tensor", None)
    assert rules.spec(other, axes) == PartitionSpec(None, ("replica", "fsdp"), None, None)
    assert rules.spec(other.abstract_mesh, axes) == rules.spec(other, axes)
    assert rules.mesh_axes(other, "batch") == ("replica", "fsdp")


def test_experts_have_an_axis_where_a_mesh_is_asked_for_one():
    """All else lies along it as along fsdp."""
    mesh = mesh_module.make(fsdp=2, expert=2, tensor=2)
    assert mesh.axis_names == ("replica", "fsdp", "expert", "tensor")
    cut = rules.spec(mesh, ("layers", "experts", "expert_embed", "mlp"))
    assert cut == PartitionSpec(None, "expert", "fsdp", "tensor")
    assert rules.spec(mesh, ("embed", "mlp")) == PartitionSpec(("fsdp", "expert"), "tensor")
    assert mesh_module.batch_parts(mesh) == 4


def test_a_batch_is_cut_along_the_axes_of_its_rule():
    mesh = mesh_module.make(2, 2, 2, rules=("batch=replica",))
    assert mesh_module.batch_parts(mesh) == 2
    with pytest.raises(UserError, match=r"over config\.mesh\.replica = 2 devices"):
        mesh_module.own_rows(mesh, 3)


def test_equal_rules_make_equal_meshes_and_others_do_not():
    def made(*entries: str) -> jax.sharding.Mesh:
        return mesh_module.make(rules=entries)

    assert made("vocab=None", "mlp=fsdp") == made("mlp = fsdp", "vocab = None")
    assert made("vocab=None").abstract_mesh != made("mlp=None").abstract_mesh


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("hed=tensor", "'hed=tensor' must be NAME=AXIS, and NAME one of batch, embed"),
        ("heads", "'heads' must be NAME=AXIS"),
        ("heads=model", "has no axis 'model'; use None or some of replica, fsdp, expert, tensor"),
        ("heads=", "has no axis ''"),
        ("embed=fsdp+fsdp", "'fsdp' is given twice"),
        ("mlp=None", "'mlp' is given twice"),
    ],
)
def test_a_rule_that_cannot_be_is_one_sentence(entry, said):
    with pytest.raises(UserError, match=r"config\.mesh\.rules: ") as error:
        MeshSettings(rules=("mlp=fsdp", entry))
    assert said in str(error.value)


def test_two_dimensions_of_an_array_along_one_axis_are_refused():
    mesh = mesh_module.make(1, 4, 2, rules=("embed=tensor",))
    with pytest.raises(
        UserError,
        match=r'config\.mesh\.rules: "embed" and "heads" are .* of one array, and both lie along "tensor"',
    ):
        mesh_module.sharding(mesh, ("embed", "heads"))
