"""Programs are lowered from shapes: nothing is there that they could read."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from srpo_jax.models.creation import abstract
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.models.lora import PROJECTIONS
from srpo_jax.planning import lowering, online
from srpo_jax.prompts import Prompt
from srpo_jax.revision import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training.online import OnlineStep
from srpo_jax.training.settings import OnlineSettings

CONFIG = DecoderConfig(
    vocab_size=16, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48
)


@pytest.mark.parametrize(
    ("revisions", "names"), [(2, "answer decode improve"), (0, "answer decode")]
)
def test_the_programs_of_revision(revisions, names):
    mesh = mesh_module.make(replica=2, fsdp=1, tensor=2, devices=jax.devices()[:4])
    prompts = [Prompt((3, 4, 5), (3, 4, 6), (7,))] * 8
    sampling = Sampling(5, batch_size=8, refill=0.5)
    made = list(lowering.revision(CONFIG, mesh, prompts, sampling, (2,), revisions))
    assert [program.name for program in made] == names.split()
    assert [program.executions for program in made] == [2, 1 + revisions, 2 * revisions][
        : len(made)
    ]
    assert all(np.ndim(program.trees.end) == 2 for program in made)


@pytest.mark.parametrize(
    ("changes", "apart", "copies"),
    [({}, False, 1), ({"lora_rank": 2}, False, 0), ({"lora_rank": 2}, True, 2), ({}, True, 1)],
)
def test_what_lies_beside_the_programs_of_a_round(changes, apart, copies):
    """The reference, none of its own with adapters; and the optimiser, which only the update is given."""
    config = dataclasses.replace(CONFIG, lora_targets=PROJECTIONS, **changes)
    mesh = mesh_module.make(fsdp=1, devices=jax.devices()[:1])
    graphdef, trained, frozen = abstract(config, mesh)
    step = OnlineStep(graphdef, optax.adam(1e-3), OnlineSettings(samples=2), mesh)
    given = online.Round([(3, 4, 5)] * 2, Sampling(4, batch_size=4), 1)
    (update, *others), held = online.lower(step, config, given, apart)
    assert [one.name for one in others] == ["score", "prefill", "write"]
    layers = mesh_module.held(nnx.merge_state(trained, frozen)["blocks"])  # a second copy on CPUs
    whole = mesh_module.held((trained, frozen))
    reference = {0: 0, 1: mesh_module.held(trained), 2: whole}[copies]
    assert update.beside == layers + reference
    assert {one.beside for one in others} == {layers + reference + held.optimizer}
    assert held.frozen == mesh_module.held(frozen) + reference
