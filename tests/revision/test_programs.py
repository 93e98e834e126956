"""How the programs of revision take a decoder."""

import types
from pathlib import Path

import jax
import pytest
from flax import nnx

from srpo_jax.models import loading
from srpo_jax.models.creation import abstract, create
from srpo_jax.models.settings import LoraSettings, ModelSettings
from srpo_jax.revision import programs
from srpo_jax.runtime import mesh as mesh_module
from tests.revision.test_loop import CONFIG

SHAPE = Path(__file__).parents[2] / "configs/shapes/llama-3.1-8b"


def test_shapes_are_those_of_the_decoder_itself():
    mesh = mesh_module.make(fsdp=2, tensor=2, devices=jax.devices()[:4])
    real = programs.Model.of(nnx.merge(*create(CONFIG, None, mesh, 0)))
    shaped = programs.Model.shaped(*nnx.split(nnx.merge(*abstract(CONFIG, mesh))), mesh)
    assert len(shaped.layers) == CONFIG.layers
    told = [jax.tree.leaves_with_path(model.layers) for model in (real, shaped)]
    for (path, x), (same, y) in zip(*told, strict=True):
        assert (path, x.shape, x.dtype) == (same, y.shape, y.dtype)
        assert x.sharding.is_equivalent_to(y.sharding, x.ndim), path


@pytest.mark.parametrize(
    ("kind", "platform", "devices", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "gpu", 1, True),  # 14 GB of layers beside 80
        ("NVIDIA H200", "gpu", 1, True),
        ("an unknown GPU", "gpu", 1, False),
        ("TPU v5p", "tpu", 1, False),  # reads slices of a stack where they lie
        ("TPU v5e", "tpu", 8, False),
        ("cpu", "cpu", 1, True),
    ],
)
def test_layers_stand_apart_where_that_is_faster_and_there_is_room(
    kind, platform, devices, expected
):
    model = ModelSettings(source=str(SHAPE))
    config = loading.for_inference(loading.decoder_config(model, LoraSettings(rank=0)), "bfloat16")
    mesh = mesh_module.make(fsdp=1, tensor=devices, devices=jax.devices()[:devices])
    _, *states = abstract(config, mesh)
    state = nnx.merge_state(*states)
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    assert programs.apart(state, device) is expected
    # 70B's layers are ten times as large.
    if platform == "gpu":
        large = nnx.State({"blocks": jax.tree.map(_ten_times, state["blocks"])})
        assert not programs.apart(large, device)


def _ten_times(x):
    return jax.ShapeDtypeStruct((10 * x.shape[0], *x.shape[1:]), x.dtype, sharding=x.sharding)
