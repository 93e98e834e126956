"""What a run keeps of the model that it starts from: enough to be read when that is gone."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from srpo_jax import config as config_module
from srpo_jax import convert
from srpo_jax.config import attempt
from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.models import creation, loading
from srpo_jax.models.digest import Digests
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import storage
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.step import TrainState
from tests import objects
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
    base = attempt.base(checked, workdir)
    identity = attempt.identity_of(workdir, base, tokenizer=opened.tokenizer.fingerprint, data="0")
    (workdir / "run.json").write_text(json.dumps(identity))
    opened.keep(workdir / loading.KEPT)
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(trained, {"count": jnp.zeros(())}), force=True)
    return opened


def goes_on(workdir):
    """A later checkpoint of a run without adapters, with other weights."""
    opened = loading.open_source(str(workdir))
    mesh = mesh_module.make(devices=jax.devices()[:1])
    _, trained, _ = creation.create(opened.config, opened.read_parameters(), mesh, 0)
    moved = TrainState(jax.tree.map(lambda x: x + 1, trained), {"count": jnp.zeros(())})
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(2, moved, force=True)


def exported(workdir, directory):
    convert.export_model(str(workdir), directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_is_read_without_the_gguf_file_that_it_began_with(rank, tmp_path):
    path = write(tmp_path / "model.gguf", weights())
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


def test_an_adapter_belongs_to_the_checkpoint_that_its_run_began_with(tmp_path):
    path = write(tmp_path / "model.gguf", weights())
    begun(tmp_path / "first", path, 0)
    begun(tmp_path / "second", tmp_path / "first", 2)
    digests = Digests(tmp_path / "digests.json")
    run = f"{tmp_path / 'second'}@1"
    given, known = exported(run, tmp_path / "before"), digests.of(run)
    goes_on(tmp_path / "first")
    assert exported(run, tmp_path / "after") == given
    assert digests.of(run) == known
    config = config_module.read(tmp_path / "second" / "config.json")
    assert attempt.base(config, tmp_path / "second") == f"{tmp_path / 'first'}@1"


def test_a_run_that_kept_no_checkpoint_of_its_base_reads_the_newest(tmp_path):
    """As earlier versions began them."""
    begun(tmp_path / "first", write(tmp_path / "model.gguf", weights()), 0)
    begun(tmp_path / "second", tmp_path / "first", 2)
    kept = json.loads((tmp_path / "second" / "run.json").read_text())
    assert kept.pop("source") == f"{tmp_path / 'first'}@1"
    (tmp_path / "second" / "run.json").write_text(json.dumps(kept))
    given = exported(tmp_path / "second", tmp_path / "before")
    goes_on(tmp_path / "first")
    assert exported(tmp_path / "second", tmp_path / "after") != given
    assert "source" not in attempt.identity_of(tmp_path / "second", "x")


def test_the_adapter_of_one_checkpoint_is_exported(tmp_path):
    path = write(tmp_path / "model.gguf", weights())
    begun(tmp_path / "run", path, 2)
    for name, source in {"newest": tmp_path / "run", "named": f"{tmp_path / 'run'}@1"}.items():
        convert.export_model(str(source), tmp_path / name, adapter=True)
    newest, named = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("newest", "named")
    )
    assert newest == named
    begun(tmp_path / "second", f"{tmp_path / 'run'}@1", 2)
    with pytest.raises(UserError, match=r"its adapter belongs to the run .*@1, which is no model"):
        convert.export_model(str(tmp_path / "second"), tmp_path / "out", adapter=True)


def test_named_chat_templates_are_kept_and_exported(tmp_path):
    """A run that was trained with one of them could not be evaluated."""
    given = tmp_path / "given"
    convert.export_model(str(write(tmp_path / "model.gguf", weights())), given)
    (given / "additional_chat_templates").mkdir()
    (given / "additional_chat_templates" / "tool.jinja").write_text("{{ messages }}")
    opened = loading.open_source(str(given))
    assert opened.tokenizer.chat_templates == {"tool": "{{ messages }}"}
    opened.keep(tmp_path / "kept")
    convert.export_model(str(given), tmp_path / "exported")
    for name in ("kept", "exported"):
        assert read_tokenizer(tmp_path / name).chat_templates == opened.tokenizer.chat_templates


def test_an_export_may_go_to_the_folder_one_is_in(tmp_path, monkeypatch):
    path = write(tmp_path / "model.gguf", weights())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    convert.export_model(str(path), Path("."))
    assert (tmp_path / "here" / "config.json").is_file()


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
