"""Which mesh a model decodes on."""

from pathlib import Path

import jax
import pytest

from srpo_jax.models import decoding_mesh, loading
from srpo_jax.models.settings import LoraSettings, ModelSettings
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.mesh import MeshSettings

SHAPE = (
    Path(__file__).parents[2] / "configs/shapes/llama-3.1-8b"
)  # 32 heads, 8 key heads, 16 GB in bfloat16


@pytest.fixture(scope="module")
def config():
    model = ModelSettings(source=str(SHAPE))
    return loading.for_inference(loading.decoder_config(model, LoraSettings(rank=0)), "bfloat16")


@pytest.mark.parametrize(
    ("gigabytes", "copies", "each"), [(64, 8, 1), (33, 8, 1), (31, 4, 2), (16, 2, 4), (8, 1, 8)]
)
def test_the_fewest_devices_that_hold_it_in_half_of_their_memory(config, gigabytes, copies, each):
    mesh = decoding_mesh.choose(MeshSettings(), config, memory=gigabytes * 1e9)
    assert dict(mesh.shape) == {"replica": copies, "fsdp": 1, "tensor": each}


def test_a_model_that_no_group_holds_stays_on_the_mesh_of_training(config, capsys):
    mesh = decoding_mesh.choose(MeshSettings(tensor=2), config, memory=1e9)
    assert "no group of devices holds a copy" in capsys.readouterr().out
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}


def test_memory_that_is_not_known_is_enough(config):
    mesh = decoding_mesh.choose(MeshSettings(), config)
    assert dict(mesh.shape) == {"replica": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize("settings", [{"decode": -1}, {"rules": ("vocab=None",)}])
def test_the_users_own_word_is_obeyed(config, settings):
    mesh = decoding_mesh.choose(MeshSettings(fsdp=4, tensor=2, **settings), config, memory=1e12)
    assert [mesh.shape[axis] for axis in ("replica", "fsdp", "tensor")] == [1, 4, 2]


def test_a_group_of_the_users_own_size(config):
    mesh = decoding_mesh.choose(MeshSettings(decode=4), config, memory=1e12)
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 1, "tensor": 4}


def test_a_size_that_cannot_be_is_refused(config):
    with pytest.raises(UserError, match=r"config.mesh.tensor=3"):
        decoding_mesh.choose(MeshSettings(decode=3), config, jax.devices()[:4])
    with pytest.raises(
        UserError, match=r"config.mesh.decode=2 is not for a mesh with config.mesh.rules"
    ):
        decoding_mesh.choose(MeshSettings(decode=2, rules=("vocab=None",)), config)
    with pytest.raises(UserError, match="at least -1"):
        MeshSettings(decode=-2)


def test_the_mesh_that_it_decodes_on_is_said(capsys, monkeypatch):
    monkeypatch.setattr(decoding_mesh, "_memory", lambda: 3e5)
    model = decoding_mesh.load("tiny", "float32", MeshSettings())
    assert "config.mesh.decode=-1" in capsys.readouterr().out
    assert model.config.dtype == "float32"
