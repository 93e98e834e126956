"""Scores of a tree equal those of separate sequences, computed here without trees or chunks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.training import scoring
from srpo_jax.trees import prefix_tree

CONFIG = DecoderConfig(
    vocab_size=16,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
)
NAMES = ("w", "l", "w|l", "l|l", "w|w", "l|w")


@pytest.fixture(scope="module")
def model():
    # Larger weights than the initialisation's, so that distributions are far from uniform.
    model = Decoder(CONFIG, nnx.Rngs(0))
    graphdef, state = nnx.split(model)
    return nnx.merge(graphdef, jax.tree.map(lambda x: 2 * x, state))


@jax.jit
def causal_logp(model, ids):
    """log p(ids[t + 1] | ids[: t + 1]) for one sequence at the end of a padded row, no trees."""
    length = ids.shape[0]
    mask = jnp.tril(jnp.ones((1, length, length), bool))
    logits = model.logits(model(ids[None], jnp.arange(length)[None], mask))
    logp = jax.nn.log_softmax(logits, -1)[0, :-1]
    return logp[jnp.arange(length - 1), ids[1:]]


def separate(model, prompt, completion, padded=24):
    ids = np.zeros(padded, np.int32)  # one shape, one compilation; a causal row ignores its tail
    ids[: len(prompt) + len(completion)] = [*prompt, *completion]
    logp = causal_logp(model, jnp.array(ids))
    return logp[len(prompt) - 1 : len(prompt) + len(completion) - 1].sum()


def pair_sequences(x, w, l):
    return [([*x, *s], c) for s in ([1], [2, *l, 3], [2, *w, 3]) for c in (w, l)]


def random_pair(seed, prompt=6, completion=4):
    rng = np.random.default_rng(seed)
    part = lambda n: rng.integers(4, 8, n)  # few symbols: completions share beginnings often
    return pair_sequences(
        part(rng.integers(1, prompt + 1)),
        part(rng.integers(1, completion + 1)),
        part(rng.integers(1, completion + 1)),
    )


CASES = {
    **{f"random {seed}": random_pair(seed) for seed in range(8)},
    "identical": pair_sequences([4, 5], [6, 7, 6], [6, 7, 6]),
    "prefix": pair_sequences([4, 5], [6, 7], [6, 7, 6, 4]),
    "one token": pair_sequences([4], [5], [6]),
    "one token, identical": pair_sequences([4], [5], [5]),
    "shown completion begins as the direct prompt ends": pair_sequences([4, 2, 1], [1, 1], [1, 2]),
}


@jax.jit
def tree_scores(model, rows):
    return scoring.score(model, rows, NAMES, chunk=3)


@pytest.mark.parametrize("case", CASES)
def test_tree_equals_separate_sequences(model, case):
    sequences = CASES[case]
    tree = prefix_tree.build(sequences)
    # "maximum length": the row has not one slot to spare; then the same with padding
    want = [separate(model, p, c) for p, c in sequences]
    for size in ((len(tree.tokens), len(tree.target_token)), (56, 40)):
        rows = prefix_tree.stack([prefix_tree.pad(tree, *size)])
        got = tree_scores(model, rows)
        # float32: sums of up to 8 log-probabilities of size ~5, rounding 1e-7 relative each
        np.testing.assert_allclose([got[n][0] for n in NAMES], want, atol=1e-4)


def test_sixty_four_completions_of_one_prompt(model):
    """What an online method scores. The names' order is not the tree's."""
    rng = np.random.default_rng(0)
    prompt = rng.integers(4, 8, 6)
    sequences = [(prompt, rng.integers(4, 8, rng.integers(1, 5))) for _ in range(64)]
    tree = prefix_tree.build(sequences)
    assert list(tree.rank) != sorted(tree.rank)
    names = tuple(str(i) for i in range(64))
    rows = prefix_tree.stack([prefix_tree.pad(tree, len(tree.tokens), len(tree.target_token))])
    got = jax.jit(lambda model, rows: scoring.score(model, rows, names))(model, rows)
    want = [separate(model, p, c) for p, c in sequences]
    np.testing.assert_allclose([got[n][0] for n in names], want, atol=1e-4)


def test_a_batch_and_its_gradient_equal_separate_sequences(model):
    pairs = [random_pair(seed) for seed in range(100, 104)]
    trees = [prefix_tree.build(p) for p in pairs]
    size = max(len(t.tokens) for t in trees) + 2, max(len(t.target_token) for t in trees) + 2
    rows = prefix_tree.stack([prefix_tree.pad(t, *size) for t in trees])
    graphdef, state = nnx.split(model)
    weights = jnp.arange(1.0, 7.0)

    def by_tree(state):
        scores = scoring.score(nnx.merge(graphdef, state), rows, NAMES, chunk=5)
        return sum(w * scores[n].sum() for w, n in zip(weights, NAMES, strict=True))

    def by_sequence(state):
        model = nnx.merge(graphdef, state)
        return sum(
            w * separate(model, p, c) for s in pairs for w, (p, c) in zip(weights, s, strict=True)
        )

    (one, gradient), (other, expected) = map(
        lambda f: jax.value_and_grad(f)(state), (jax.jit(by_tree), by_sequence)
    )
    np.testing.assert_allclose(one, other, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * float(jnp.abs(b).max()))


def test_packed_rows_score_and_learn_as_rows_apart(model):
    """Float32 tolerances: the same sums in another order."""
    trees = [prefix_tree.build(random_pair(seed)) for seed in range(200, 205)]
    slots, targets = (sum(sizes) for sizes in zip(*map(size, trees), strict=True))
    rows = [prefix_tree.pack(trees[:3], slots, targets, 4, [7, 8, 9])]
    rows += [prefix_tree.pack(trees[3:], slots, targets, 4, [1, 2])]
    packed = prefix_tree.stack(rows)
    apart = prefix_tree.stack([prefix_tree.pad(tree, slots, targets) for tree in trees])
    graphdef, state = nnx.split(model)
    weights = jnp.arange(30.0).reshape(6, 5)

    def total(state, rows):
        scores = scoring.score(nnx.merge(graphdef, state), rows, NAMES)
        stacked = jnp.stack([scores[name] for name in NAMES])
        there = stacked[:, rows.pair.reshape(-1) >= 0]
        return jnp.sum(weights * there), stacked

    run = jax.value_and_grad(total, has_aux=True)
    (one, scores), gradient = run(state, packed)
    (other, _), expected = run(state, apart)
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert (scores[:, packed.pair.reshape(-1) < 0] == 0).all()
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def size(tree):
    return len(tree.tokens), len(tree.target_token)


def products(jaxpr):
    """The matrix products of a program, those of its loops and of the functions it calls among them."""
    for equation in jaxpr.eqns:
        if "dot_general" in equation.primitive.name:
            yield equation
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("attention", ["dense", "blockwise"])
def test_float32_is_multiplied_as_float32_on_every_machine(attention):
    """TPUs round float32 to bfloat16 before they multiply, unless a product says otherwise."""
    config = dataclasses.replace(
        CONFIG, attention=attention, lora_rank=2, lora_targets=("query", "down")
    )
    graphdef, state = nnx.split(Decoder(config, nnx.Rngs(0)))
    tree = prefix_tree.build(random_pair(0))
    rows = prefix_tree.stack([prefix_tree.pad(tree, 56, 40)])
    loss = lambda state: sum(scoring.score(nnx.merge(graphdef, state), rows, NAMES).values()).sum()
    found = list(products(jax.make_jaxpr(jax.grad(loss, allow_int=True))(state).jaxpr))
    wide = [each for each in found if all(x.aval.dtype == jnp.float32 for x in each.invars)]
    highest = jax.lax.Precision.HIGHEST
    rounded = [each for each in wide if each.params["precision"] not in ((highest,) * 2, highest)]
    assert len(wide) > 20
    assert not rounded
