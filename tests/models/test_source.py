"""What a run keeps of the model that it starts from: enough to be read when that is gone."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest

from srpo_jax import config as config_module
from srpo_jax import convert
from srpo_jax.models import creation, loading
from srpo_jax.models.digest import Digests
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import storage
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.step import TrainState
from tests import objects
from tests.checkpoints import save, save_tokenizer
from tests.models.test_gguf import weights, write

pytestmark = pytest.mark.usefixtures("compiled_once")
SAID = r"holds only what was trained, and the rest is not where it was: there is no .*model\.gguf"


def begun(workdir, source, rank):
    """What `train` leaves in a workdir, as far as loading reads it."""
    config = config_module.default()
    changes = {"model.source": str(source), "model.dtype": "float32", "lora.rank": rank}
    config_module.update(config, changes, "test")
    checked = config_module.checked(config)
    opened = loading.open_source(str(source))
    architecture = loading.decoder_config(checked.model, checked.lora)
    mesh = mesh_module.make(devices=jax.devices()[:1])
    _, trained, _ = creation.create(architecture, opened.read_parameters(), mesh, 0)
    config_module.save(checked, workdir / "config.json")
    identity = {"tokenizer": opened.tokenizer.fingerprint, "data": "0"}
    (workdir / "run.json").write_text(json.dumps(identity))
    opened.keep(workdir / loading.KEPT)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(trained, {"count": jnp.zeros(())}), force=True)
    return opened


def exported(workdir, directory):
    convert.export_model(str(workdir), directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def directory(path):
    pytest.importorskip("torch", reason="a checkpoint to start from: install srpo_jax[dev]")
    save("llama", path)
    save_tokenizer(path)
    return path


@pytest.mark.parametrize(("kind", "rank"), [("gguf", 0), ("gguf", 2), ("directory", 0)])
def test_a_run_is_read_without_the_model_that_it_began_with(kind, rank, tmp_path):
    gguf = kind == "gguf"
    path = write(tmp_path / "model.gguf", weights()) if gguf else directory(tmp_path / "model")
    first = begun(tmp_path / "run", path, rank)
    given = exported(tmp_path / "run", tmp_path / "with")
    path.rename(tmp_path / "away")
    found = loading.open_source(str(tmp_path / "run"))
    assert found.config == first.config
    for name in ("fingerprint", "stop_ids", "bos_id", "begins_with_bos", "chat_template"):
        assert getattr(found.tokenizer, name) == getattr(first.tokenizer, name), name
    assert found.tokenizer.special_tokens == first.tokenizer.special_tokens
    pinned = loading.pinned(str(tmp_path / "run"))
    digests = Digests(tmp_path / "digests.json")
    if not rank:
        assert exported(tmp_path / "run", tmp_path / "without") == given
        assert len(digests.of(pinned)) == 64
        return
    for action in (
        lambda: exported(tmp_path / "run", tmp_path / "out"),
        lambda: digests.of(pinned),
    ):
        with pytest.raises(UserError, match=SAID) as error:
            action()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_a_run_in_a_store_keeps_is_read_from_there(tmp_path):
    opened = loading.open_source(str(write(tmp_path / "model.gguf", weights())))
    with objects.serve():
        workdir = storage.place("gs://bucket/of_a_gguf")
        config = config_module.default()
        config.model.source = "gone.gguf"
        config_module.save(config_module.checked(config), workdir / "config.json")
        opened.keep(workdir / loading.KEPT)
        found = loading.open_source(str(workdir))
    assert found.config == opened.config
    assert found.tokenizer.fingerprint == opened.tokenizer.fingerprint
    assert found.described() == dataclasses.replace(opened, read_parameters=None).described()
