"""Completions for learning: their log-probabilities against the scorer's, and what is compiled."""

import jax
import numpy as np
import pytest
from flax import nnx

from srpo_jax import revision
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.prompts import Prompt
from srpo_jax.revision import LocalRollout, Sampling, programs
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import scoring
from srpo_jax.trees import completions

CONFIG = DecoderConfig(
    vocab_size=16,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
    max_length=96,
)
STOPS = (2, 3)
PROMPTS = [[4, 5, 6], [4, 11, 12, 5, 6], [5, 6], [7], [8, 9, 9]]
SAMPLES, TOKENS = 4, 6
SAMPLING = Sampling(max_new_tokens=TOKENS, temperature=0.7, batch_size=8)


@pytest.fixture(scope="module")
def model():
    graphdef, state = nnx.split(Decoder(CONFIG, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: 2 * x, state))


def rollout(model, seed=1):
    return LocalRollout(model, SAMPLING, stops=STOPS, width=5, seed=seed)


@pytest.fixture(scope="module")
def written(model):
    return rollout(model).generate(PROMPTS, SAMPLES, draw=3)


def on_eight(model):
    graphdef, state = nnx.split(model)
    mesh = mesh_module.make(fsdp=4, tensor=2)
    return nnx.merge(graphdef, jax.device_put(state, mesh_module.parameter_shardings(mesh, state)))


@nnx.jit
def scored(model, batch):
    _, logp = scoring.targets(model, batch["rows"], temperature=SAMPLING.temperature)
    flat = batch["targets"].reshape(len(logp), -1)
    found = jax.numpy.take_along_axis(logp, flat, axis=1)
    return found.reshape(batch["targets"].shape)


def test_the_end_is_written_or_the_limit_met(written):
    assert written.tokens.shape == (len(PROMPTS), SAMPLES, TOKENS)
    assert 0.2 < written.ended.mean() < 1
    for i in range(len(PROMPTS)):
        for j in range(SAMPLES):
            ids = written.ids(i, j)
            assert (ids[-1] in STOPS) == written.ended[i, j]
            assert not set(ids[:-1]) & set(STOPS)
            assert written.ended[i, j] or len(ids) == TOKENS
    ends = {written.ids(i, j)[-1] for i in range(len(PROMPTS)) for j in range(SAMPLES)}
    assert ends >= set(STOPS), "each end is kept as it was drawn"
    assert np.all(written.log_probabilities[~written.valid] == 0)


@pytest.mark.parametrize("devices", [1, 8])
def test_log_probabilities_are_those_of_the_scorer(model, written, devices):
    policy = model if devices == 1 else on_eight(model)
    if devices == 8:
        found = rollout(policy).generate(PROMPTS, SAMPLES, draw=3)
        np.testing.assert_array_equal(found.tokens, written.tokens)
        written = found
    trees = [
        completions.build(prompt, [written.ids(i, j) for j in range(SAMPLES)])
        for i, prompt in enumerate(PROMPTS)
    ]
    layout = completions.Layout(rows=4, longest=5, samples=SAMPLES, tokens=TOKENS)
    batch = layout.batch(trees, np.arange(4), {})
    if devices == 8:
        placed = mesh_module.host_to_global(mesh_module.of(nnx.state(policy)), batch)
    found = np.asarray(scored(policy, batch if devices == 1 else placed))
    logps = completions.restored(layout.numbers(trees), found, len(PROMPTS))
    valid = written.valid
    np.testing.assert_allclose(logps[valid], written.log_probabilities[valid], atol=1e-4)


def test_the_same_completions_are_drawn_as_by_revision_of_no_step(model):
    """The loop of `revise_ids` draws revision 0 of row i from the same stream."""
    found = rollout(model).generate(PROMPTS[:2], 1, draw=0)
    prompts = [Prompt(tuple(ids), tuple(ids), ()) for ids in PROMPTS[:2]]
    want = revision.revise_ids(model, prompts, 0, SAMPLING, eos=STOPS, seed=1)
    assert [found.ids(i, 0)[: -1 if found.ended[i, 0] else None] for i in range(2)] == [
        ys[0] for ys in want
    ]


def test_an_update_compiles_nothing_and_changes_what_is_written(model, written):
    policy = rollout(model)
    policy.generate(PROMPTS, SAMPLES, draw=3)
    sizes = [p._cache_size() for p in (programs.prefill, programs.branch, programs.write)]
    graphdef, state = nnx.split(model)
    policy.update(nnx.merge(graphdef, jax.tree.map(lambda x: 0.5 * x, state)))
    changed = policy.generate(PROMPTS, SAMPLES, draw=4)
    assert [p._cache_size() for p in (programs.prefill, programs.branch, programs.write)] == sizes
    assert not np.array_equal(changed.tokens, written.tokens)
    policy.update(model)
    again = policy.generate(PROMPTS, SAMPLES, draw=3)
    np.testing.assert_array_equal(again.tokens, written.tokens)
    np.testing.assert_array_equal(again.log_probabilities, written.log_probabilities)


def test_the_prompt_is_stored_once_for_its_completions(written):
    tree = completions.build(PROMPTS[1], [written.ids(1, j) for j in range(SAMPLES)])
    assert len(tree.tokens) <= len(PROMPTS[1]) + SAMPLES * TOKENS
    assert tree.tokens[: len(PROMPTS[1])].tolist() == PROMPTS[1]
