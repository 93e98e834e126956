"""Structure of the prefix tree; that its scores are right is shown in test_scoring.py."""

import numpy as np
import pytest

from srpo_jax.trees import prefix_tree


def paths(tree: prefix_tree.Tree) -> list[tuple[list[int], list[int]]]:
    """The sequences read back from the tree: per sequence, (all tokens on its path, those scored)."""
    found = []
    for i in range(len(tree.lengths)):
        chosen = tree.targets_of(i)
        scored = [int(t) for t in tree.target_token[chosen]]
        source = tree.target_source[chosen][-1]
        slots = np.arange(len(tree.tokens))
        seen = (slots <= source) & (source < tree.end)
        assert list(tree.positions[seen]) == list(range(seen.sum()))
        found.append(([*map(int, tree.tokens[seen]), scored[-1]], scored))
    return found


def members(tree: prefix_tree.Tree) -> list[set[int]]:
    """For each target the sequences that it counts for, as they were given."""
    given = np.argsort(tree.rank)
    ends = zip(tree.target_first, tree.target_last, strict=True)
    return [set(given[first:last].tolist()) for first, last in ends]


@pytest.mark.parametrize("seed", range(20))
def test_random_sequences_are_read_back(seed):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 3, 12)
    sequences = []
    for _ in range(6):
        prompt = np.concatenate(
            [base[: rng.integers(1, 12)], rng.integers(0, 3, rng.integers(0, 4))]
        )
        sequences.append((prompt, rng.integers(0, 3, rng.integers(1, 6))))
    tree = prefix_tree.build(sequences)
    assert paths(tree) == [([*p, *c], [*c]) for p, c in sequences]
    distinct = {tuple([*p, *c][: n + 1]) for p, c in sequences for n in range(len(p) + len(c))}
    assert len(tree.tokens) <= len(distinct)


def test_six_sequences_of_a_pair_cost_one_prompt_and_eight_completions():
    x, w, l = [*range(100, 500)], [*range(1000, 1040)], [*range(2000, 2040)]
    direct, shows_l, shows_w = [*x, 1], [*x, 2, *l, 3], [*x, 2, *w, 3]
    tree = prefix_tree.build([(p, c) for p in (direct, shows_l, shows_w) for c in (w, l)])
    # |x| + 8 |y| and four template tokens, less the six last tokens that predict nothing
    assert len(tree.tokens) == 400 + 8 * 40 + 4 - 6
    assert len(tree.target_token) == 6 * 40
    assert (
        len(prefix_tree.runs(tree)) == 2 + 1 + 2 + 2 * 3
    )  # x, improve; direct; its two; per shown one, three


def test_identical_completions_share_everything():
    tree = prefix_tree.build([([5, 6], [7, 8]), ([5, 6], [7, 8])])
    assert list(tree.tokens) == [5, 6, 7]
    assert members(tree) == [{0, 1}, {0, 1}]


def test_a_completion_that_is_a_prefix_of_another():
    tree = prefix_tree.build([([5], [7]), ([5], [7, 8])])
    assert list(tree.tokens) == [5, 7]
    assert members(tree) == [{0, 1}, {1}]


def test_a_prompt_that_runs_through_a_completion_is_scored_only_where_it_is_completion():
    tree = prefix_tree.build([([5], [6, 7]), ([5, 6], [7])])
    assert list(tree.target_token) == [6, 7]
    assert members(tree) == [{0}, {0, 1}]


@pytest.mark.parametrize("bad", [[([], [1])], [([1], [])]])
def test_empty_parts_are_refused(bad):
    with pytest.raises(ValueError, match="empty"):
        prefix_tree.build(bad)


def test_a_tree_that_does_not_fit_is_refused_not_cut():
    tree = prefix_tree.build([([1, 2, 3], [4, 5])])
    with pytest.raises(ValueError, match="4 slots"):
        prefix_tree.pad(tree, 3, 2)
    assert prefix_tree.pad(tree, 4, 2).tokens.shape == (4,)
