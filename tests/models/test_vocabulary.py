"""Log-probabilities in parts of the vocabulary are those of the plain softmax, forward and backward."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.models.vocabulary import log_probabilities
from srpo_jax.runtime import mesh as mesh_module


def plain_logp(hidden, kernel, targets):
    logp = jax.nn.log_softmax(jnp.einsum("btd,vd->btv", hidden, kernel), -1)
    return jnp.take_along_axis(logp, targets[..., None], -1)[..., 0]


@pytest.fixture(scope="module")
def projection():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden, kernel = (
        jax.random.normal(k, s) for k, s in zip(keys, ((8, 7, 32), (24, 32)), strict=False)
    )
    targets = jax.random.randint(keys[2], (8, 7), 0, 24)
    return hidden, kernel, targets, jax.random.normal(keys[3], (8, 7))


@pytest.mark.parametrize("chunk", [1, 5, 7, 12, None])
def test_parts_of_the_vocabulary_change_nothing(projection, chunk):
    """5 and 7 do not divide the 24 entries. Forward and both gradients against log_softmax itself."""
    hidden, kernel, targets, cotangent = projection
    got, pull = jax.vjp(lambda h, k: log_probabilities(h, k, targets, chunk), hidden, kernel)
    want, expected = jax.vjp(lambda h, k: plain_logp(h, k, targets), hidden, kernel)
    for a, b in zip((got, *pull(cotangent)), (want, *expected(cotangent)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_logits_are_scaled_in_float32(projection, softcap):
    """As the decoder scales them: 5/6, as Command R+ has it, is .832 in bfloat16."""
    hidden, kernel, targets, cotangent = projection
    hidden, kernel = (4 * x.astype(jnp.bfloat16) for x in (hidden, kernel))
    scaled = lambda h, k: log_probabilities(h, k, targets, 5, softcap, 5 / 6)

    def plain(h, k):
        logits = jnp.einsum("btd,vd->btv", *(x.astype(jnp.float32) for x in (h, k))) * (5 / 6)
        logits = logits if softcap is None else softcap * jnp.tanh(logits / softcap)
        return jnp.take_along_axis(jax.nn.log_softmax(logits, -1), targets[..., None], -1)[..., 0]

    got, pull = jax.vjp(scaled, hidden, kernel)
    want, expected = jax.vjp(plain, hidden, kernel)
    np.testing.assert_allclose(got, want, atol=2e-4)
    for a, b in zip(pull(cotangent), expected(cotangent), strict=True):
        np.testing.assert_allclose(
            *(np.asarray(x, np.float32) for x in (a, b)), rtol=0.05, atol=0.1
        )


def test_a_sharded_vocabulary_is_never_gathered(projection):
    """On 4 x 2 devices no array has the whole vocabulary, and the numbers are those of one device."""
    hidden, kernel, targets, cotangent = projection
    mesh = mesh_module.make(fsdp=4, tensor=2)

    def both(hidden, kernel):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            logp, pull = jax.vjp(lambda h, k: log_probabilities(h, k, targets, 4), hidden, kernel)
            return logp, *pull(cotangent)

    rows = mesh_module.batch_sharding(mesh)
    table = mesh_module.sharding(mesh, ("vocab", "embed"))
    program = jax.jit(both, in_shardings=(rows, table), out_shardings=(rows, rows, table))
    text = program.lower(hidden, kernel).compile().as_text()
    gathered = re.findall(r"f32\[([\d,]+)\]\S* all-gather", text)
    assert gathered, "the part in use is gathered along fsdp"
    assert all(math.prod(map(int, shape.split(","))) <= 2 * 4 * 32 for shape in gathered), gathered
    want = plain_logp(hidden, kernel, targets)
    np.testing.assert_allclose(program(hidden, kernel)[0], want, atol=2e-5)
    expected = jax.vjp(lambda h, k: plain_logp(h, k, targets), hidden, kernel)[1](cotangent)
    for a, b in zip(program(hidden, kernel)[1:], expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_memory_is_that_of_one_part_of_the_logits():
    """Temporaries of forward and backward stay below two float32 parts plus the inputs' own sizes."""
    tokens, width, vocabulary, chunk = 512, 16, 1 << 15, 1 << 11
    shapes = (
        jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
    )
    targets = jnp.zeros((1, tokens), jnp.int32)
    loss = lambda h, k: log_probabilities(h, k, targets, chunk).sum()
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes).compile()
    part, inputs = 4 * tokens * chunk, 4 * width * (tokens + vocabulary)
    assert (
        compiled.memory_analysis().temp_size_in_bytes
        < 3 * part + 2 * inputs
        < 4 * tokens * vocabulary / 2
    )
