"""Trees come out of a forest as they went in."""

import dataclasses

import numpy as np
import pytest

from srpo_jax.trees import forest, prefix_tree
from srpo_jax.trees.forest import Forest, Shares


def sequences(rng, prompt=6, completion=4, few=2):
    draw = lambda most: rng.integers(0, few, rng.integers(1, most))
    return [(draw(prompt), draw(completion), draw(3), draw(3)) for _ in range(6)]


def assert_equal(one, other):
    for field in dataclasses.fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        assert mine.dtype == its.dtype == np.int32, field.name
        np.testing.assert_array_equal(mine, its, err_msg=field.name)


@pytest.mark.parametrize("chunk", [4, 64])
def test_trees_come_out_as_they_went_in(monkeypatch, chunk):
    monkeypatch.setattr(forest, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    given = [sequences(rng) for _ in range(30)]
    trees = [prefix_tree.build(parts) for parts in given]
    kept = Forest.of(iter(trees))
    assert len(kept) == 30
    for one, other in zip(kept, trees, strict=True):
        assert_equal(one, other)
    assert_equal(kept[-1], trees[-1])
    assert [len(tree.tokens) for tree in kept[3:5]] == [len(tree.tokens) for tree in trees[3:5]]
    with pytest.raises(IndexError):
        kept[30]
    np.testing.assert_array_equal(kept.slots, [len(tree.tokens) for tree in trees])
    np.testing.assert_array_equal(kept.targets, [len(tree.target_token) for tree in trees])
    np.testing.assert_array_equal(
        kept.depths, [[sum(map(len, parts)) for parts in one] for one in given]
    )


def test_the_digest_is_of_the_trees_and_not_of_how_they_came():
    rng = np.random.default_rng(0)
    trees = [prefix_tree.build(sequences(rng)) for _ in range(3)]
    assert Forest.of(trees).digest() == Forest.of(iter(trees)).digest()
    assert Forest.of(trees).digest() != Forest.of(trees[::-1]).digest()
    changed = dataclasses.replace(trees[2], tokens=trees[2].tokens + 1)
    assert Forest.of(trees).digest() != Forest.of([*trees[:2], changed]).digest()


def test_a_pairs_tree_takes_little_more_than_a_third_of_its_arrays():
    rng = np.random.default_rng(0)
    x, w, l = (list(rng.integers(0, 30_000, n)) for n in (400, 40, 40))
    direct, shows_l, shows_w = [*x, 1], [*x, 2, *l, 3], [*x, 2, *w, 3]
    tree = prefix_tree.build([(p, c) for p in (direct, shows_l, shows_w) for c in (w, l)])
    kept = Forest.of([tree] * 100)
    size = sum(getattr(kept, field.name).nbytes for field in dataclasses.fields(kept))
    assert size / 100 < 0.38 * (3 * tree.tokens.nbytes + 4 * tree.target_token.nbytes)


def test_trees_of_shares_are_those_of_their_numbers():
    rng = np.random.default_rng(0)
    trees = [prefix_tree.build(sequences(rng)) for _ in range(12)]
    shared = Shares(
        [Forest.of(trees[i::3]) for i in range(3)], [np.arange(i, 12, 3) for i in range(3)]
    )
    for one, other in zip(shared, trees, strict=True):
        assert_equal(one, other)
    np.testing.assert_array_equal(shared.lengths, [tree.lengths for tree in trees])
