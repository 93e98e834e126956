import shutil
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.runtime import checkpoints as checkpoints_module
from srpo_jax.runtime import mesh as mesh_lib
from srpo_jax.runtime.checkpoints import Checkpoints, flatten, unflatten
from srpo_jax.runtime.errors import UserError


class Model(nnx.Module):
    def __init__(self, width: int = 16) -> None:
        kernel = jnp.arange(8.0 * width).reshape(8, width)
        self.kernel = nnx.Param(kernel, axes=("embed", "mlp"))
        self.scale = nnx.Param(jnp.ones(8), axes=("embed",))


def train_state(mesh: Mesh, width: int = 16) -> dict[str, Any]:
    model = nnx.state(Model(width))
    model = jax.device_put(model, mesh_lib.parameter_shardings(mesh, model))
    optimizer = jax.device_put(optax.adam(0.1).init(model), mesh_lib.replicated(mesh))
    return {"model": model, "optimizer": optimizer, "step": 7}


def abstract(tree: Any) -> Any:
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    return jax.tree.map(lambda x: shape(x) if isinstance(x, jax.Array) else x, tree)


def assert_equal(actual: Any, expected: Any) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def damage(checkpoint: Path) -> None:
    files = [path for path in (checkpoint / "state").rglob("d/*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"junk")


def remove_description(checkpoint: Path) -> None:
    (checkpoint / "state" / "_METADATA").unlink()


@pytest.fixture
def mesh() -> Mesh:
    return mesh_lib.make(1, 4, 2)


def test_save_with_little_memory_writes_small_files_as_it_goes(
    tmp_path: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints_module, "FILE_BYTES", 2**18)
    monkeypatch.setattr(checkpoints_module, "CHUNK_BYTES", 2**16)
    # Bits at random: no compression makes the files small.
    bits = jax.random.bits(jax.random.key(0), (4, 2**18), jnp.uint32)
    state = {"a": jax.device_put(bits, mesh_lib.replicated(mesh)), "b": bits[0]}
    with Checkpoints(tmp_path, in_flight=bits.nbytes) as checkpoints:
        checkpoints.save(0, state)
    sizes = [path.stat().st_size for path in tmp_path.rglob("d/*")]
    assert sum(sizes) > state["a"].nbytes
    assert max(sizes) < 2**18 + 2 * 2**16 + 4096
    assert_equal(Checkpoints(tmp_path).restore(0, abstract(state)), state)


def test_flatten_names_variables_without_their_value() -> None:
    tree = {"model": nnx.state(Model()), "rest": (1, {"a": 2})}
    flat = flatten(tree)
    assert list(flat) == ["model.kernel", "model.scale", "rest.0", "rest.1.a"]
    assert_equal(unflatten(tree, flat), tree)


def test_flatten_refuses_two_leaves_of_one_name() -> None:
    with pytest.raises(ValueError, match="same dotted name"):
        flatten({"a": {"b": 1}, "a.b": 2})


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_restores_onto_another_mesh(tmp_path: Path, sizes: tuple[int, int, int]) -> None:
    state = train_state(mesh_lib.make(1, 8, 1))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.save(7, state)
    other = mesh_lib.make(*sizes, devices=jax.devices()[: np.prod(sizes)])
    like = abstract(train_state(other)) | {"step": 0}
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(7, like)
    assert_equal(restored, state)
    kernel = restored["model"]["kernel"].get_value()
    assert kernel.sharding == like["model"]["kernel"].get_value().sharding


def test_saves_when_due_or_forced_and_keeps_the_newest(tmp_path: Path, mesh: Mesh) -> None:
    state = train_state(mesh)
    with Checkpoints(tmp_path, keep=2, every=2) as checkpoints:
        assert checkpoints.latest() is None
        begun = [checkpoints.save(step, state) for step in (1, 2, 3, 4)]
        assert begun == [False, True, False, True]
        assert checkpoints.save(5, state, force=True)
        assert not checkpoints.save(5, state, force=True)
        checkpoints.wait()
        assert checkpoints.latest() == 5
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [5, 4]


def test_takes_numpy_scalars_and_random_keys(tmp_path: Path) -> None:
    state = {"seed": np.int64(3), "loss": np.float32(0.5), "key": jax.random.key(4), "ids": [1, 2]}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(0, state)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(0, state)
    assert (int(restored["seed"]), float(restored["loss"]), restored["ids"]) == (3, 0.5, [1, 2])
    assert jnp.array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(state["key"]))


def test_state_may_be_donated_while_it_is_saved(tmp_path: Path, mesh: Mesh) -> None:
    place = mesh_lib.sharding(mesh, ("embed", "mlp"))
    step = jax.jit(lambda x: x + 1, donate_argnums=0, out_shardings=place)
    state = jax.device_put(jnp.zeros((512, 512)), place)
    with Checkpoints(tmp_path, keep=4) as checkpoints:
        for number in range(4):
            checkpoints.save(number, {"x": state})
            state = step(state)
    with Checkpoints(tmp_path) as checkpoints:
        for number in range(4):
            np.testing.assert_array_equal(
                checkpoints.restore(number, {"x": state})["x"], float(number)
            )


def test_arrays_are_given_up_only_for_others_in_their_place(tmp_path: Path) -> None:
    state = {"x": jnp.arange(4.0)}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_latest(state, replace=True) is None
        assert not state["x"].is_deleted()
        checkpoints.save(1, state)
        checkpoints.wait()
        step, restored = checkpoints.restore_latest(state, replace=True)
    assert step == 1
    assert state["x"].is_deleted()
    np.testing.assert_array_equal(restored["x"], np.arange(4.0))


def test_a_part_can_be_read_without_the_rest(tmp_path: Path, mesh: Mesh) -> None:
    state = train_state(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    part = {"model": abstract(state["model"])}
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert_equal(checkpoints.restore(1, part, partial=True), {"model": state["model"]})
        with pytest.raises(UserError, match=r'has "optimizer\.0\.count", which'):
            checkpoints.restore(1, part)


def test_a_changed_configuration_is_named(tmp_path: Path, mesh: Mesh) -> None:
    state = train_state(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        folder = str(tmp_path / "1")
        wider = abstract(train_state(mesh, width=32))
        with pytest.raises(
            UserError, match=rf'{folder}: shape of "model\.kernel" is \(8, 16\).*\(8, 32\)'
        ):
            checkpoints.restore(1, wider)
        with pytest.raises(UserError, match=rf'{folder}: .* has no "extra"'):
            checkpoints.restore(1, {**state, "extra": 1})
        other = {"model": jax.tree.map(lambda x: x.astype(jnp.bfloat16), state["model"])}
        with pytest.raises(UserError, match=r'dtype of "model\.kernel" is float32.*bfloat16'):
            checkpoints.restore_latest(other, partial=True)
        with pytest.raises(UserError, match=r'shape of "step" is None.*needs \(3,\)'):
            checkpoints.restore(1, state | {"step": np.zeros(3)})
        with pytest.raises(UserError, match="no checkpoint of step 2"):
            checkpoints.restore(2, state)


@pytest.mark.parametrize("harm", [damage, remove_description])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path,
    mesh: Mesh,
    harm: Callable[[Path], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    state = train_state(mesh)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, state)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    harm(tmp_path / "2")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        found = checkpoints.restore_latest(abstract(state))
        assert found is not None
        assert found[0] == 1
        assert_equal(found[1], state)
        said = capsys.readouterr().out
        assert f"{tmp_path / '2'}: passed over, it is damaged" in said
        assert f"{tmp_path / '1'}: this older checkpoint is used" in said
        assert checkpoints.save(2, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(2, abstract(state)), state)


def test_a_checkpoint_that_is_damaged_a_second_time_is_set_aside_too(tmp_path: Path) -> None:
    """The place was taken: OSError, at each start."""
    state = {"x": jnp.arange(4.0)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    shutil.copytree(tmp_path / "1", tmp_path / "2.damaged")
    remove_description(tmp_path / "2")
    with Checkpoints(tmp_path) as checkpoints:
        found = checkpoints.restore_latest(state)
    assert found is not None
    assert found[0] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2.damaged", "2-again.damaged"}


def test_a_flipped_bit_is_named_or_changes_nothing(tmp_path: Path, mesh: Mesh) -> None:
    """TensorStore's files have no checksum of values. Of metadata some bits mean nothing."""
    rng, said = np.random.default_rng(0), []
    values = jnp.asarray(rng.normal(size=(64, 1024)), jnp.float32)
    state = {"x": jax.device_put(values, mesh_lib.batch_sharding(mesh))}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    for path in [path for path in (tmp_path / "1").rglob("*") if path.is_file()] * 2:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with Checkpoints(tmp_path, read_only=True) as checkpoints:
                assert_equal(checkpoints.restore(1, abstract(state)), state)
        except UserError as error:
            said.append(str(error))
        path.write_bytes(whole)
    assert all("this checkpoint is damaged" in sentence for sentence in said)
    assert any("has other bits than were saved" in sentence for sentence in said)


def test_digests_may_be_left_out(
    tmp_path: Path, mesh: Mesh, capsys: pytest.CaptureFixture[str]
) -> None:
    state = train_state(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    with Checkpoints(tmp_path, verify=False) as checkpoints:
        assert_equal(checkpoints.restore(1, abstract(state)), state)
    assert "not compared with what was saved, as was asked" in capsys.readouterr().out


def test_latest_passes_over_what_cannot_be_described(tmp_path: Path, mesh: Mesh) -> None:
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, train_state(mesh))
    remove_description(tmp_path / "2")
    (tmp_path / "3.orbax-checkpoint-tmp-1").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1


def test_nothing_readable_is_an_error(tmp_path: Path, mesh: Mesh) -> None:
    state = train_state(mesh)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    damage(tmp_path / "1")
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(UserError, match="none of the checkpoints"):
            checkpoints.restore_latest(abstract(state))
        with pytest.raises(UserError, match=f"{tmp_path / '1'}: this checkpoint is damaged"):
            checkpoints.restore(1, abstract(state))
        assert (tmp_path / "1").is_dir()


def test_reading_leaves_the_folder_alone(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Checkpoints(tmp_path / "none", read_only=True)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, train_state(mesh))
    unfinished = tmp_path / "2.orbax-checkpoint-tmp-1"
    unfinished.mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.latest() == 1
        with pytest.raises(ValueError, match="read-only"):
            checkpoints.save(2, train_state(mesh))
    assert unfinished.is_dir()


def test_a_metric_that_is_no_number_is_never_the_best() -> None:
    """It would put the others in a wrong order, by which the best one was removed."""
    metrics = [0.3, 0.4, float("nan"), 0.5, float("nan")]
    saved = [types.SimpleNamespace(step=i, metrics={"best": x}) for i, x in enumerate(metrics)]
    kept = checkpoints_module._kept(1, 0, 1).should_preserve(saved, context=None)
    assert list(kept) == [True, False, False, False, True]
    kept = checkpoints_module._kept(1, 0, 1, highest=True).should_preserve(saved, context=None)
    assert list(kept) == [False, False, False, True, True]


def test_the_newest_the_best_and_every_fourth_are_kept(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, keep=1, keep_every=4, keep_best=1) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, {"x": np.zeros(2)}, best=None if step == 7 else abs(step - 3))
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [7, 4, 3]
