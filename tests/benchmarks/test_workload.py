"""What is compared computes the same: trees, packed trees and separate rows of the same pairs."""

import dataclasses

import jax
import numpy as np
import pytest

from benchmarks import steps, workload
from benchmarks.workload import Model, Workload
from srpo_jax import objectives
from srpo_jax.models import creation
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.runtime import mesh as mesh_module

CONFIG = DecoderConfig(
    vocab_size=97,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
    remat="none",
)
WORK = Workload(pairs=4, prompt=20, completion=6, vocabulary=97)


@pytest.fixture(scope="module")
def model():
    mesh = mesh_module.make(devices=jax.devices()[:1])
    _, trained, _ = creation.create(CONFIG, None, mesh, 0)
    from flax import nnx

    flat = nnx.to_flat_state(trained)
    return Model(CONFIG, {".".join(map(str, k)): np.asarray(v.get_value()) for k, v in flat})


@pytest.mark.parametrize(
    ("trees", "rows"), [("SRPO, trees", "SRPO, six rows"), ("DPO, trees", "DPO, two rows")]
)
def test_separate_rows_lose_what_trees_lose(model, trees, rows):
    first, second = steps.variant(trees, model, WORK), steps.variant(rows, model, WORK)
    np.testing.assert_allclose([first(), first()], [second(), second()], rtol=1e-4)


def test_padding_and_projecting_all_change_nothing(model):
    objective = objectives.get("srpo")
    plain = workload.separate_batch(WORK, objective.needs)
    usual = workload.separate_batch(WORK, objective.needs, row_length=40, score_all=True)
    assert usual["rows"].tokens.shape == (24, 40)
    losses = [steps.our_step(model, workload.by_rows("srpo"), batch)() for batch in (plain, usual)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize(("template", "per_completion"), [("paper", 8), ("chained", 6)])
def test_trees_have_the_slots_that_the_theory_says(template, per_completion):
    """|x| + 8 |y| tokens a pair, or + 6 |y|; the last token of a sequence takes no slot, separators do."""
    work = dataclasses.replace(WORK, pairs=1, prompt=100, completion=50, template=template)
    rows = workload.trees_batch(work, objectives.get("srpo").needs)["rows"]
    slots = int((rows.end > 0).sum())
    assert abs(slots - (100 + per_completion * 50)) <= 12
