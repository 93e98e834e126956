"""Models here, small and on one device: the eight virtual ones only make two cores busy."""

import jax
import pytest

from srpo_jax.runtime import mesh as mesh_module
from tests.checkpoints import save_reward


@pytest.fixture
def one_device(monkeypatch):
    one = mesh_module.make(devices=jax.devices()[:1])
    monkeypatch.setattr(mesh_module, "local", lambda width: one)


@pytest.fixture(scope="session")
def reward_model(tmp_path_factory):
    """A directory with a random reward model that reads 256 bytes."""
    pytest.importorskip("torch", reason="writing it needs an extra: install srpo_jax[dev]")
    directory = tmp_path_factory.mktemp("reward")
    save_reward("llama", directory, num_hidden_layers=1)
    return directory
