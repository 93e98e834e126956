"""What the weights are, wherever they lie."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from srpo_jax import config as config_module
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models import creation, loading
from srpo_jax.models.digest import Digests
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.step import TrainState

pytestmark = pytest.mark.usefixtures("compiled_once")


def save(workdir, source="tiny", steps=(3, 4), alpha=16.0):
    """A run with an adapter, other values at each step."""
    config = config_module.default()
    changes = {"model.source": source, "lora.rank": 2, "lora.alpha": alpha}
    config_module.update(config, changes, "test")
    checked = config_module.checked(config)
    config_module.save(checked, workdir / "config.json")
    fingerprint = ByteTokenizer.fingerprint
    (workdir / "run.json").write_text(json.dumps({"tokenizer": fingerprint, "data": "0"}))
    architecture = loading.decoder_config(checked.model, checked.lora)
    mesh = mesh_module.make(devices=jax.devices()[:1])
    _, adapters, _ = creation.create(architecture, None, mesh, 0)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for step in steps:
            moved = jax.tree.map(lambda x, step=step: x + step, adapters)
            checkpoints.save(step, TrainState(moved, {"count": jnp.zeros(())}), force=True)
            checkpoints.wait()


def test_a_built_in_name_is_no_run_in_the_folder_of_that_name(tmp_path, monkeypatch):
    digests = Digests(tmp_path / "kept.json")
    save(tmp_path / "other")
    before = digests.of(f"{tmp_path / 'other'}@4")
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "tiny")
    assert loading.pinned("tiny") == "tiny"
    assert loading.pinned("./tiny") == "tiny@4"
    assert digests.of(f"{tmp_path / 'other'}@4") == before  # which began with the built-in model


def test_a_run_is_its_checkpoint_its_adapter_and_its_base(tmp_path):
    digests = Digests(tmp_path / "kept.json")
    save(tmp_path / "a")
    assert loading.pinned(str(tmp_path / "a")) == f"{tmp_path / 'a'}@4"
    assert loading.pinned(f"{tmp_path / 'a'}@3") == f"{tmp_path / 'a'}@3"
    with pytest.raises(UserError, match=r"there is no checkpoint of step 5; it has 3, 4"):
        loading.pinned(f"{tmp_path / 'a'}@5")
    first = digests.of(f"{tmp_path / 'a'}@4")
    assert digests.of(f"{tmp_path / 'a'}@3") != first
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert digests.of(f"{tmp_path / 'copy'}@4") == first
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    config["evaluate"]["count"] = 7  # nothing of the model
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert digests.of(f"{tmp_path / 'copy'}@4") == first
    config["lora"]["alpha"] = 8.0
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert digests.of(f"{tmp_path / 'copy'}@4") != first
    # The base of a second run is another when it is trained on.
    save(tmp_path / "b", source=str(tmp_path / "a"), steps=(1,))
    on_four = digests.of(f"{tmp_path / 'b'}@1")
    shutil.rmtree(tmp_path / "a" / "checkpoints" / "4")
    assert digests.of(f"{tmp_path / 'b'}@1") != on_four


def test_files_are_read_once_unless_they_change(tmp_path, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "README.md").write_text("not of the model")
    first = Digests(tmp_path / "kept.json").of(str(model))
    (model / "README.md").write_text("still not")
    with monkeypatch.context() as patched:
        patched.setattr("srpo_jax.models.digest._hash", lambda path: 1 / 0)
        assert Digests(tmp_path / "kept.json").of(str(model)) == first
    (model / "model.safetensors").write_bytes(b"other weights")
    assert Digests(tmp_path / "kept.json").of(str(model)) != first
