"""Checkpoints in s3://, which Orbax does not write; the store is in this process (`tests.objects`)."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.runtime import mesh as mesh_lib
from srpo_jax.runtime import store_checkpoints
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from tests import objects

WHERE = "s3://bucket/run/checkpoints"
HELD = "bucket/run/checkpoints"
LIKE = {"x": np.zeros(4)}


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    with objects.serve("s3") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
        monkeypatch.setattr(store_checkpoints, "RETRIES", 1)
        yield objects.Objects.held


def save(*steps: int, **options: Any) -> None:
    with Checkpoints(WHERE, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, {"x": np.full(4, float(step))}, best=float(step))


def newest(**options: Any) -> Any:
    with Checkpoints(WHERE, **options) as checkpoints:
        return checkpoints.restore_latest(LIKE)


def state(sizes: tuple[int, int, int] = (1, 4, 2)) -> dict[str, Any]:
    mesh = mesh_lib.make(*sizes, devices=jax.devices()[: np.prod(sizes)])
    split = mesh_lib.sharding(mesh, ("embed", "mlp"))
    return {
        "kernel": jax.device_put(jnp.arange(128.0).reshape(8, 16), split),
        "half": jax.device_put(jnp.arange(16, dtype=jnp.bfloat16), mesh_lib.replicated(mesh)),
        "zeros": jax.device_put(jnp.zeros((8, 16)), split),
        "key": jax.random.key(4),
        "local": np.arange(3, dtype=np.int8),
        "scalar": np.float32(0.5),
        "step": 7,
    }


@pytest.mark.parametrize("sizes", [(1, 4, 2), (2, 2, 2), (1, 1, 1)])
def test_what_was_saved_is_read_onto_any_mesh(store, monkeypatch, sizes) -> None:
    monkeypatch.setattr(store_checkpoints, "OBJECT_BYTES", 32)
    saved, other = state(), state(sizes)
    with Checkpoints(WHERE, in_flight=600) as checkpoints:
        assert checkpoints.save(7, saved)
    assert sum(name.startswith(f"{HELD}/7/kernel/c/") for name in store) == 128 * 4 / 32
    like = {**jax.tree.map(lambda x: x * 0, {**other, "key": 0}), "key": other["key"]}
    with Checkpoints(WHERE, read_only=True) as checkpoints:
        found, restored = checkpoints.restore_latest(like)
        part = checkpoints.restore(7, {"half": other["half"]}, partial=True)
    assert found == 7
    assert restored["kernel"].sharding == other["kernel"].sharding
    assert part["half"].dtype == jnp.bfloat16
    assert type(restored["step"]) is int
    assert restored.pop("key") == saved.pop("key")
    jax.tree.map(np.testing.assert_array_equal, restored, saved)


def test_an_array_may_be_donated_while_it_is_saved(store) -> None:
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((256, 256))
    with Checkpoints(WHERE, keep=3) as checkpoints:
        for number in range(3):
            checkpoints.save(number, {"x": x})
            x = step(x)
        assert not checkpoints.save(2, {"x": x})
        checkpoints.wait()
        for number in range(3):
            assert (checkpoints.restore(number, {"x": x})["x"] == number).all()


def test_the_newest_the_best_and_every_fourth_are_kept(store) -> None:
    save(3, 4, 5, 6, 7, keep=1, keep_every=4, keep_best=1)
    with Checkpoints(WHERE, read_only=True) as checkpoints:
        assert checkpoints.steps() == [7, 4, 3]
    assert {name.split("/")[3] for name in store} == {"3", "4", "7"}


def test_a_save_that_was_cut_off_is_passed_over_and_cleared(store) -> None:
    save(1, 2)
    del store[f"{HELD}/2/{store_checkpoints.COMPLETE}"]
    assert newest(read_only=True)[0] == 1
    assert any(name.startswith(f"{HELD}/2/") for name in store)
    assert newest()[0] == 1
    assert not any(name.startswith(f"{HELD}/2/") for name in store)
    save(2)
    assert newest()[1]["x"].tolist() == [2.0] * 4


@pytest.mark.parametrize("part", ["x/c/0", "x/zarr.json", "checkpoint.json"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "gone"])
def test_what_is_damaged_is_set_aside_for_the_step_before(store, part, harm, capsys) -> None:
    if (part, harm) == ("checkpoint.json", "gone"):
        return  # then it was no checkpoint
    save(1, 2)
    name = f"{HELD}/2/{part}"
    whole = store.pop(name)
    if harm != "gone":
        store[name] = bytes([whole[0] ^ 1]) + whole[1:] if harm == "flipped" else whole[:-3]
    found, restored = newest()
    assert (found, restored["x"].tolist()) == (1, [1.0] * 4)
    assert f"{WHERE}/2: passed over, it is damaged: " in capsys.readouterr().out
    assert {name.split("/")[3] for name in store} == {"1", "2.damaged"}


def test_a_store_that_refuses_or_is_away_is_a_sentence_and_no_damage(store, monkeypatch) -> None:
    save(1)
    objects.Objects.refused.add(f"{HELD}/2")
    with pytest.raises(
        UserError, match=rf"^{WHERE}: a checkpoint could not be written: PERMISSION_"
    ):
        save(2)
    assert newest()[0] == 1
    objects.Objects.refused.add(HELD)
    with pytest.raises(UserError, match=r"^a checkpoint cannot be read now: PERMISSION_DENIED"):
        newest()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"could not be written: .*Could not connect to server"):
        save(2)
    with pytest.raises(UserError, match=r"cannot be read now: .*Could not connect to server"):
        newest()

    def denied(self, path, **_):
        raise PermissionError("403 Forbidden")

    monkeypatch.setattr(objects.Objects, "ls", denied)
    with pytest.raises(UserError, match=rf"^{WHERE} cannot be used: 403 Forbidden$"):
        newest()
