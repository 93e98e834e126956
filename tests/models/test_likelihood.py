"""Likelihoods of completions equal those of the plain softmax over all logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models import loading
from srpo_jax.models.likelihood import log_likelihood
from srpo_jax.runtime import mesh as mesh_module


@pytest.mark.parametrize("devices", [1, 2])
def test_log_likelihood_is_the_sum_over_the_completion(devices, compiled_once):
    mesh = mesh_module.make(devices=jax.devices()[:devices])
    model = loading.load("tiny", "float32", mesh)
    generator = np.random.default_rng(0)
    texts = [generator.integers(3, 260, (n, m)) for n, m in ((5, 40), (9, 3), (2, 1))]
    prompts = [generator.integers(3, 260, n).tolist() for n in (5, 9, 2)]
    completions = [text[0].tolist() for text in texts]
    found = log_likelihood(model, prompts, completions, batch_size=2)
    for i, (x, y) in enumerate(zip(prompts, completions, strict=True)):
        tokens = jnp.array([[*x, *y]])
        size = tokens.shape[1]
        mask = jnp.tril(jnp.ones((1, size, size), bool))
        logits = model.logits(model(tokens, jnp.arange(size)[None], mask))[0]
        logp = jax.nn.log_softmax(logits)[jnp.arange(len(x) - 1, size - 1), jnp.array(y)]
        np.testing.assert_allclose(found[i], logp.sum(), rtol=1e-5)
