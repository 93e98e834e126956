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


def walked(sequences):
    """(tokens and depths of the slots, the sequences) as a walk through nested dictionaries meets them."""
    root = {}
    for i, parts in enumerate(sequences):
        at = root
        for token in (int(token) for part in parts for token in part):
            at = at.setdefault(token, {"ends": []})
        at["ends"].append(i)
    slots, order = [], []

    def walk(node, depth):
        order.extend(node.get("ends", ()))
        for token, child in node.items():
            if token != "ends":
                if len(child) > 1:
                    slots.append((token, depth))
                walk(child, depth + 1)

    walk(root, 0)
    return slots, order


@pytest.mark.parametrize("seed", range(20))
def test_slots_and_sequences_are_numbered_as_a_walk_meets_them(seed):
    rng = np.random.default_rng(seed)
    draw = lambda most: rng.integers(0, 2, rng.integers(1, most))
    sequences = [(draw(4), draw(4), draw(3), draw(3)) for _ in range(8)]
    tree = prefix_tree.build(sequences)
    slots, order = walked(sequences)
    assert list(zip(tree.tokens, tree.positions, strict=True)) == slots
    assert list(np.argsort(tree.rank)) == order
    # The slots that descend from one are those behind it that lie deeper.
    for slot, (_, depth) in enumerate(slots):
        last = next((i for i in range(slot + 1, len(slots)) if slots[i][1] <= depth), len(slots))
        assert tree.end[slot] == last


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


def test_a_token_that_is_prompt_between_two_completions_is_two_targets():
    """Depth first the sequences stand as given; 6 is completion in the first and the last of them."""
    tree = prefix_tree.build([([5], [6, 7]), ([5, 6], [8]), ([5], [6, 9])])
    assert list(tree.target_token) == [6, 6, 7, 8, 9]
    assert members(tree) == [{0}, {2}, {0}, {1}, {2}]
    assert list(tree.lengths) == [2, 1, 2]


def test_sequences_are_numbered_depth_first():
    """The third sequence stands beside the first, whose prompt it shares."""
    tree = prefix_tree.build([([5, 6], [7]), ([4], [7]), ([5, 6], [8])])
    assert list(tree.rank) == [0, 2, 1]
    assert members(tree) == [{0}, {2}, {1}]


def test_sixty_four_completions_of_one_prompt():
    prompt, completions = [*range(100)], [[200 + i, 300 + i, 1] for i in range(64)]
    tree = prefix_tree.build([(prompt, completion) for completion in completions])
    assert len(tree.tokens) == 100 + 64 * 2
    assert paths(tree) == [(prompt + c, c) for c in completions]
    assert (tree.end[:100] == len(tree.tokens)).all()


def test_a_conversation_of_fifty_turns():
    segments = [[1000 + 3 * i, 1001 + 3 * i, 1002 + 3 * i] for i in range(100)]
    tree = prefix_tree.build([segments])
    learned = [token for segment in segments[1::2] for token in segment]
    assert paths(tree) == [([token for s in segments for token in s], learned)]
    assert list(tree.lengths) == [150]


def test_every_slot_sees_its_ancestors_and_no_other():
    """Against the definition, path by path, in a row of several trees with padding."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        made = []
        for _ in range(3):
            shared = rng.integers(0, 3, 8)
            parts = [(shared[: rng.integers(1, 8)], rng.integers(0, 3, 4)) for _ in range(5)]
            made.append(parts)
        trees = [prefix_tree.build(parts) for parts in made]
        row = prefix_tree.pack(trees, 128, 128)
        slots = np.arange(128)
        sees = (slots <= slots[:, None]) & (slots[:, None] < row.end)
        first = np.cumsum([0, *(len(tree.tokens) for tree in trees)])
        assert not sees[:, first[-1] :].any()
        for start, tree, parts in zip(first, trees, made, strict=False):
            beginnings = {
                tuple([*p, *c][: n + 1]) for p, c in parts for n in range(len(p) + len(c) - 1)
            }
            mine = slice(start, start + len(tree.tokens))
            for slot in range(*mine.indices(128)):
                above = np.flatnonzero(sees[slot])
                assert (above >= start).all()
                assert list(row.positions[above]) == list(range(len(above)))
                path = tuple(int(t) for t in row.tokens[above])
                beginnings.remove(path)  # each once, and none is left over
            assert not beginnings


@pytest.mark.parametrize("chosen", [[3, 0, 7], [5], []])
def test_a_row_holds_its_trees_one_after_the_other(chosen):
    rng = np.random.default_rng(1)
    draw = lambda most: rng.integers(0, 2, rng.integers(1, most))
    trees = [prefix_tree.build([(draw(6), draw(4)) for _ in range(6)]) for _ in range(8)]
    row = prefix_tree.pack([trees[i] for i in chosen], 200, 80, 4, chosen, 6)
    slot = target = 0
    for place, tree in enumerate(trees[i] for i in chosen):
        mine = slice(slot, slot + len(tree.tokens))
        scored = slice(target, target + len(tree.target_token))
        want = {
            "tokens": tree.tokens,
            "positions": tree.positions,
            "end": tree.end + slot,
            "target_source": tree.target_source + slot,
            "target_token": tree.target_token,
            "target_tree": np.full(len(tree.target_token), place),
            "target_first": tree.target_first,
            "target_last": tree.target_last,
        }
        for name, values in want.items():
            here = scored if name.startswith("target") else mine
            np.testing.assert_array_equal(getattr(row, name)[here], values)
        np.testing.assert_array_equal(row.rank[place], tree.rank)
        slot, target = mine.stop, scored.stop
    assert row.pair.tolist() == chosen + [-1] * (4 - len(chosen))
    assert not row.end[slot:].any()
    assert not row.target_last[target:].any()
    assert all(field.dtype == np.int32 for field in row)


@pytest.mark.parametrize("bad", [[([], [1])], [([1], [])]])
def test_empty_parts_are_refused(bad):
    with pytest.raises(ValueError, match="empty"):
        prefix_tree.build(bad)


def test_a_tree_that_does_not_fit_is_refused_not_cut():
    tree = prefix_tree.build([([1, 2, 3], [4, 5])])
    with pytest.raises(
        ValueError, match=r"1 trees of 4 slots .* do not fit a row of 1 trees, 3 slots"
    ):
        prefix_tree.pad(tree, 3, 2)
    assert prefix_tree.pad(tree, 4, 2).tokens.shape == (4,)
