"""What a policy wrote as trees and batches: every token found again."""

import numpy as np
import pytest

from srpo_jax.trees import completions
from srpo_jax.trees.completions import Completions, Layout

PROMPTS = [[5, 6, 7], [8], [5, 6], [9, 9, 9, 9], [4]]
SAMPLES, TOKENS = 3, 4


@pytest.fixture(scope="module")
def written():
    """Some alike, some that go on where another one ends."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, (len(PROMPTS), SAMPLES, TOKENS)).astype(np.int32)
    tokens[0, 1] = tokens[0, 0]
    lengths = rng.integers(1, TOKENS + 1, (len(PROMPTS), SAMPLES)).astype(np.int32)
    lengths[0] = 4, 2, 1
    return Completions(tokens, lengths, np.zeros(tokens.shape, np.float32), lengths < TOKENS)


@pytest.fixture(scope="module")
def trees(written):
    return [
        completions.build(prompt, [written.ids(i, j) for j in range(SAMPLES)])
        for i, prompt in enumerate(PROMPTS)
    ]


def test_each_token_of_a_completion_is_a_target_behind_the_one_before(trees, written):
    for i, (prompt, tree) in enumerate(zip(PROMPTS, trees, strict=True)):
        targets = completions.token_targets(tree, TOKENS)
        for j in range(SAMPLES):
            ids, own = written.ids(i, j), targets[j, : written.lengths[i, j]]
            assert tree.target_token[own].tolist() == ids
            sources = tree.target_source[own]
            assert tree.tokens[sources].tolist() == [*prompt, *ids][len(prompt) - 1 : -1]
            assert tree.positions[sources].tolist() == list(
                range(len(prompt) - 1, len(prompt) - 1 + len(ids))
            )


@pytest.mark.parametrize("rows", [1, 2, 8])
def test_a_batch_has_every_token_once_whatever_its_rows(trees, written, rows):
    layout = Layout(rows, longest=4, samples=SAMPLES, tokens=TOKENS)
    numbers = layout.numbers(trees)
    assert sorted(numbers[numbers >= 0].tolist()) == list(range(len(trees)))
    used = np.array([True, False, True, True, True])
    batch = layout.batch(trees, np.arange(rows), {"x": np.arange(5) + 1}, used)
    assert set(batch["rows"].pair[batch["rows"].pair >= 0].tolist()) == {0, 2, 3, 4}
    tokens = np.take_along_axis(
        batch["rows"].target_token, batch["targets"].reshape(rows, -1), axis=1
    ).reshape(batch["targets"].shape)
    found = completions.restored(numbers, tokens, len(trees))
    np.testing.assert_array_equal(found[written.valid], written.tokens[written.valid])
    assert completions.restored(numbers, batch["x"], 5).tolist() == [1, 2, 3, 4, 5]


def test_rows_have_few_sizes(trees):
    layout = Layout(2, longest=4, samples=SAMPLES, tokens=TOKENS)
    places, worst = 3, 3 * (4 + SAMPLES * TOKENS)
    shape = layout.shape(trees)
    assert shape.places == places
    assert shape.length in {worst * quarters // 4 for quarters in (1, 2, 3, 4)}


def test_long_rows_are_cut_into_several():
    assert Layout.of(8, parts=2, longest=100, samples=2, tokens=50).rows == 2
    assert Layout.of(8, parts=2, longest=7900, samples=2, tokens=100).rows == 4
    assert Layout.of(8, parts=2, longest=20000, samples=2, tokens=100).rows == 8
