"""Sources of weights: what is saved is what is loaded, and what does not fit is named."""

import dataclasses
import json
import pickle
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax import config as config_module
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models import creation, export, huggingface, loading, lora
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.step import TrainState
from tests.checkpoints import save_tokenizer

pytestmark = pytest.mark.usefixtures("compiled_once")

SMALL = DecoderConfig(
    vocab_size=264,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
)
TOKENS = jnp.array([[3, 50, 70, 90, 110, 130]])


@pytest.fixture(scope="module")
def mesh():
    return mesh_module.make(devices=jax.devices()[:1])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The source "tiny", even smaller."""
    monkeypatch.setattr(loading, "TINY", SMALL)


@pytest.fixture(scope="module")
def parameters(mesh):
    _, trained, _ = creation.create(SMALL, None, mesh, 5)
    return {".".join(map(str, p)): np.array(v.get_value()) for p, v in nnx.to_flat_state(trained)}


def logits(model):
    size = TOKENS.shape[1]
    mask = jnp.tril(jnp.ones((1, size, size), bool))
    return np.array(model.logits(model(TOKENS, jnp.arange(size)[None], mask)))


def settings(**changes):
    config = config_module.default()
    config.model.update({"source": "tiny", "dtype": "float32"})
    config_module.update(config, changes, "test")
    return config


def architecture(config):
    """What the settings make of their source."""
    checked = config_module.checked(config)
    return loading.decoder_config(checked.model, checked.lora, checked.train.frozen)


def save(workdir: Path, config, trained, step=3):
    """What `train` leaves in a workdir, as far as loading reads it."""
    config_module.save(config_module.checked(config), workdir / "config.json")
    fingerprint = ByteTokenizer.fingerprint
    (workdir / "run.json").write_text(json.dumps({"tokenizer": fingerprint, "data": "0"}))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        checkpoints.save(step, TrainState(trained, {"count": jnp.zeros(())}), force=True)


@pytest.mark.parametrize("rank", [0, 3])
def test_a_workdir_is_loaded_with_adapters_merged(tmp_path, mesh, rank):
    """float32 logits to 1e-4: the merged product is summed in another order."""
    config = settings(**{"lora.rank": rank, "lora.alpha": 5.0, "seed": 2})
    graphdef, trained, frozen = creation.create(architecture(config), None, mesh, 2)
    moved = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), trained)
    save(tmp_path, config, moved)
    model = loading.load(str(tmp_path), dtype="float32", mesh=mesh)
    np.testing.assert_allclose(logits(model), logits(nnx.merge(graphdef, moved, frozen)), atol=1e-4)
    assert np.abs(logits(model) - logits(nnx.merge(graphdef, trained, frozen))).max() > 0.01
    assert not any(isinstance(v, lora.Adapter) for _, v in nnx.to_flat_state(nnx.state(model)))


def test_a_run_with_tpu_kernels_is_loaded_without_tpus(tmp_path, mesh):
    config = settings()
    _, trained, _ = creation.create(architecture(config), None, mesh, 0)
    config.model.attention = "pallas"
    save(tmp_path, config, trained)
    assert loading.load(str(tmp_path), mesh=mesh).config.attention == "auto"


def test_a_workdir_may_start_another_one(tmp_path, mesh):
    first, second = settings(), settings(**{"model.source": str(tmp_path / "1"), "lora.rank": 2})
    _, trained, _ = creation.create(architecture(first), None, mesh, 1)
    save(tmp_path / "1", first, trained)
    source = loading.open_source(str(tmp_path / "1"))
    assert source.tokenizer.fingerprint == ByteTokenizer.fingerprint
    config = architecture(second)
    graphdef, adapters, base = creation.create(config, source.read_parameters(), mesh, 0)
    save(tmp_path / "2", second, jax.tree.map(lambda x: x + 0.1, adapters))
    model = loading.load(str(tmp_path / "2"), dtype="float32", mesh=mesh)
    moved = nnx.merge(graphdef, jax.tree.map(lambda x: x + 0.1, adapters), base)
    np.testing.assert_allclose(logits(model), logits(moved), atol=1e-4)


def test_the_newest_checkpoint_is_meant(tmp_path, mesh):
    config = settings()
    _, trained, _ = creation.create(SMALL, None, mesh, 1)
    save(tmp_path, config, trained, step=3)
    before = logits(loading.load(str(tmp_path), dtype="float32", mesh=mesh))
    save(tmp_path, config, jax.tree.map(lambda x: x * 1.1, trained), step=4)
    after = logits(loading.load(str(tmp_path), dtype="float32", mesh=mesh))
    assert np.abs(after - before).max() > 0.01


def test_random_weights_are_the_same_on_every_mesh(parameters):
    mesh = mesh_module.make(replica=2, fsdp=2, tensor=2)
    _, trained, _ = creation.create(SMALL, None, mesh, 5)
    for path, variable in nnx.to_flat_state(trained):
        here = np.array(variable.get_value())
        np.testing.assert_allclose(here, parameters[".".join(map(str, path))], atol=1e-6)


def test_given_weights_are_placed_and_frozen_ones_narrowed(parameters):
    mesh = mesh_module.make(fsdp=4, tensor=2)
    config = dataclasses.replace(SMALL, dtype="bfloat16", lora_rank=2, lora_targets=("query",))
    _, trained, frozen = creation.create(config, parameters, mesh, 0)
    assert all(v.get_value().dtype == jnp.float32 for _, v in nnx.to_flat_state(trained))
    for path, variable in nnx.to_flat_state(frozen):
        value, name = variable.get_value(), ".".join(map(str, path))
        assert value.dtype == (jnp.float32 if name.endswith("scale") else jnp.bfloat16)
        np.testing.assert_array_equal(value, parameters[name].astype(value.dtype))
        assert value.sharding.is_fully_replicated == name.endswith("scale")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks.mlp.up.kernel": np.zeros((2, 32, 40), np.float32)}, r"has shape \(2, 32, 40\)"),
        ({"final_norm.scale": None}, r"the weights lack final_norm\.scale"),
        ({"head.kernel": np.zeros((32, 264), np.float32)}, r"the weights have head\.kernel"),
    ],
)
def test_weights_of_another_architecture_are_named(parameters, mesh, change, said):
    given = {k: v for k, v in (parameters | change).items() if v is not None}
    with pytest.raises(UserError, match=said):
        creation.create(SMALL, given, mesh, 0)


def test_kernels_for_tpus_are_refused_elsewhere(mesh):
    config = dataclasses.replace(SMALL, attention="pallas")
    with pytest.raises(UserError, match=r"config\.model\.attention=pallas needs TPUs"):
        creation.create(config, None, mesh, 0)


def test_a_mesh_that_does_not_divide_the_model_is_named():
    mesh = mesh_module.make(fsdp=1, tensor=3, devices=jax.devices()[:3])
    with pytest.raises(UserError) as error:
        creation.create(SMALL, None, mesh, 0)
    assert "config.mesh.tensor = 3 equal parts" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (
            "model.source",
            "no such model",
            "'no such model' (config.model.source, --source) is neither",
        ),
        ("model.dtype", "float16", "config.model.dtype='float16'"),
        ("model.remat", "some", "config.model.remat='some'"),
        ("lora.rank", -1, "config.lora.rank=-1"),
        ("lora.alpha", 0.0, "config.lora.alpha=0.0"),
        ("lora.alpha", float("nan"), "config.lora.alpha=nan"),
        ("lora.targets", (), "config.lora.targets is empty"),
        ("lora.targets", ("qeury",), "config.lora.targets: 'qeury'"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(key, value, said):
    config = settings(**{"lora.rank": 2, key: value})
    with pytest.raises(UserError, match=re.escape(said)):
        architecture(config)


def test_adapters_that_are_off_need_no_good_settings():
    config = architecture(settings(**{"lora.alpha": 0.0, "lora.targets": ("none",)}))
    assert (config.lora_rank, config.lora_targets) == (0, ())
    assert creation.trainable(config) is nnx.Param


def test_load_names_what_is_wrong(tmp_path, mesh):
    with pytest.raises(UserError, match=r"'/no/such/run' .* is neither"):
        loading.load("/no/such/run")
    with pytest.raises(UserError, match=r"dtype='half'"):
        loading.load("tiny", dtype="half")
    with pytest.raises(UserError, match=r"config\.json is missing: not the workdir"):
        loading.load(str(tmp_path))
    for content, said in (
        ({"foo": 1}, "holds neither the settings of a training run nor a model's"),
        (
            {"model": {"sauce": "tiny"}, "lora": {}, "train": {}},
            r"config\.model\.sauce='tiny' is not",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=rf"config\.json.*{said}"):
            loading.load(str(tmp_path))
    config_module.save(config_module.checked(settings()), tmp_path / "config.json")
    with pytest.raises(UserError, match="no checkpoint"):
        loading.load(str(tmp_path), mesh=mesh)
    (tmp_path / "run.json").write_text(json.dumps({"tokenizer": "f" * 64, "data": "0"}))
    with pytest.raises(UserError, match=r"trained with another tokenizer \(ffffffffffff…"):
        loading.load(str(tmp_path))


def test_a_checkpoint_of_another_rank_is_named(tmp_path, mesh):
    config = settings(**{"lora.rank": 3})
    _, trained, _ = creation.create(architecture(config), None, mesh, 0)
    save(tmp_path, config, trained)
    config.lora.rank = 4
    config_module.save(config_module.checked(config), tmp_path / "config.json")
    with pytest.raises(UserError, match=r'shape of "model\..*lora_a" is .*3.*needs .*4'):
        loading.load(str(tmp_path), mesh=mesh)


def test_a_model_for_inference_holds_all_but_its_norms_in_the_compute_dtype():
    model = loading.load("tiny", "bfloat16", mesh_module.make(devices=jax.devices()[:1]))
    dtypes = {path[-1]: v.get_value().dtype for path, v in nnx.to_flat_state(nnx.state(model))}
    assert dtypes == {"embedding": jnp.bfloat16, "kernel": jnp.bfloat16, "scale": jnp.float32}


def test_a_text_with_a_token_beyond_the_embedding_is_refused_and_not_the_model(tmp_path):
    """As one published model of 1B has it: a token was added, and the embedding stayed as it was."""
    described = export.describe(dataclasses.replace(SMALL, vocab_size=263))
    (tmp_path / "config.json").write_text(json.dumps(described))
    save_tokenizer(tmp_path)
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    more = {**definition["added_tokens"][0], "id": 263, "content": "<extra>", "special": False}
    definition["added_tokens"].append(more)
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    tokenizer = loading.open_source(str(tmp_path)).tokenizer
    assert tokenizer.vocab_size == 263
    assert tokenizer.decode(tokenizer.encode("all is well")) == "all is well"
    again = pickle.loads(pickle.dumps(tokenizer))
    for text in ("an <extra> word", "<extra>"):
        with pytest.raises(
            UserError, match="holds the token '<extra>' of the id 263, and the model"
        ):
            again.encode(text)
    (tmp_path / "config.json").write_text(json.dumps(described | {"vocab_size": 2}))
    with pytest.raises(UserError, match="they do not belong together"):
        loading.open_source(str(tmp_path))


def test_weights_that_are_a_pickle_are_refused_by_name(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(
        UserError, match=r"as a pickle \(pytorch_model.bin\), which may run any code"
    ):
        huggingface._opened(tmp_path / huggingface.SINGLE)
