"""Programs are lowered from shapes: nothing is there that they could read."""

import jax
import numpy as np
import pytest

from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.planning import lowering
from srpo_jax.prompts import Prompt
from srpo_jax.revision import Sampling
from srpo_jax.runtime import mesh as mesh_module

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
