"""Which pairs form a batch, and how full its rows are."""

import numpy as np
import pytest

from srpo_jax.trees import packing as packing_module
from srpo_jax.trees.packing import Packing, RowShape, balanced


def lognormal(rng, low, high, count):
    """Lengths between low and high, four standard deviations of their logarithm apart."""
    middle, spread = np.log(low * high) / 2, np.log(high / low) / 4
    values = np.exp(rng.normal(middle, spread, 2 * count))
    return values[(values >= low) & (values <= high)][:count].astype(int)


def tldr_like(count, seed=0):
    """Slots and targets of SRPO trees: prompts of 60 to 500 tokens, completions of 10 to 60."""
    rng = np.random.default_rng(seed)
    prompt, w, l = (lognormal(rng, *range_, count) for range_ in ((60, 500), (10, 60), (10, 60)))
    return prompt + 4 * (w + l) + 20, 3 * (w + l)


@pytest.mark.parametrize(
    ("batch_size", "parts"),
    [pytest.param(8, 1, marks=pytest.mark.slow), (64, 8), (64, 16), (256, 64)],
    ids=lambda n: str(n),
)
def test_rows_are_95_percent_full_in_a_handful_of_shapes(batch_size, parts):
    """Four pairs and more a row. 200 batches, beyond those that the shapes were chosen from."""
    packing = Packing(
        *tldr_like(6_000 if batch_size < 256 else 20_000), batch_size, seed=0, parts=parts
    )
    layouts = [packing.batch(step) for step in range(200)]
    assert len({layout.shape for layout in layouts} | set(packing.shapes)) <= packing_module.SHAPES
    assert np.mean([packing.fill(layout) for layout in layouts]) >= 0.95
    assert packing.rows == parts


def test_a_batch_is_always_the_same_number_of_pairs_each_in_one_row():
    slots, targets = tldr_like(500)
    packing = Packing(slots, targets, 32, seed=0, parts=4)
    for step in range(40):
        layout = packing.batch(step)
        pairs = [pair for row in layout.rows for pair in row]
        assert len(pairs) == 32
        assert len(layout.rows) == 4
        for row in layout.rows:
            need = RowShape(int(slots[row].sum()), int(targets[row].sum()), len(row))
            assert layout.shape.holds(need)


def test_every_batch_has_its_share_of_long_and_short():
    packing = Packing(*tldr_like(4_000), 32, seed=0)
    dealt = [packing.slots[packing.batch(step).rows[0]].sum() for step in range(125)]
    shuffled = Packing(*tldr_like(4_000), 32, seed=0, packed=False)
    drawn = [sum(shuffled.slots[row].sum() for row in shuffled.batch(s).rows) for s in range(125)]
    assert np.std(dealt) < np.std(drawn) / 3
    first_epoch = {tuple(packing.batch(step).rows[0]) for step in range(125)}
    second_epoch = {tuple(packing.batch(step).rows[0]) for step in range(125, 250)}
    assert not first_epoch & second_epoch, "batches should not come again in the next epoch"


def test_the_shape_of_a_step_does_not_depend_on_the_steps_before():
    """Resumed runs, workers and processes must agree; small data and batches, so that shapes vary."""
    make = lambda: Packing(*tldr_like(160), 4, seed=0)
    running = make()
    layouts = [running.batch(step) for step in range(400)]
    assert len({layout.shape for layout in layouts}) > 1
    for step in (399, 17, 250, 3):
        assert make().batch(step) == layouts[step]


def test_a_batch_that_fits_no_shape_gets_a_larger_one():
    packing = Packing(*tldr_like(160), 4, seed=0)
    packing.shapes = [RowShape(64, 64, 4)]
    layout = packing.batch(0)
    need = packing._needs(layout.rows)
    assert layout.shape.holds(need)
    assert layout.shape.length - need.length < 8 * packing_module.ROUND_LENGTH


def test_rows_of_a_chosen_length():
    slots, targets = tldr_like(2_000)
    packing = Packing(slots, targets, 64, seed=0, row_length=4096)
    assert {packing.batch(step).shape.length for step in range(30)} == {4096}
    assert packing.rows == -(-int(slots.mean() * 64) // 4096)


def test_a_long_batch_is_cut_into_several_rows():
    packing = Packing(np.full(512, 500), np.full(512, 90), 256, seed=0, parts=2)
    assert packing.rows == 8
    assert packing.shapes == [RowShape(16_000, 2880, 32)]


def test_without_packing_every_tree_has_a_row_of_its_own():
    slots, targets = tldr_like(50)
    packing = Packing(slots, targets, 8, seed=0, packed=False)
    layout = packing.batch(3)
    assert [len(row) for row in layout.rows] == [1] * 8
    assert packing.shapes == [layout.shape]
    assert 0 <= layout.shape.length - slots.max() < packing_module.ROUND_LENGTH
    *_, last = packing.once()
    assert [len(row) for row in last.rows] == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("packed", [True, False])
def test_the_pairs_of_the_first_steps_and_only_those_can_be_had_once(packed):
    slots, targets = tldr_like(50)
    packing = Packing(slots, targets, 8, seed=0, packed=packed)
    for steps in (1, 3, 9, 13):
        drawn = {i for step in range(steps) for row in packing.batch(step).rows for i in row}
        used = packing.used(steps)
        assert set(np.flatnonzero(used)) == drawn
        again = [
            i for layout in packing.once(np.flatnonzero(used)) for row in layout.rows for i in row
        ]
        assert sorted(again) == sorted(drawn)


def resized(pairs, sizes, packed=True):
    """The packings of a run whose batch size changes. sizes: (first step, batch size) of each."""
    found = []
    for step, size in sizes:
        after = (found[-1], step) if found else None
        found.append(Packing(*tldr_like(pairs), size, seed=0, packed=packed, after=after))
    return found


def pairs_of(layout):
    return [pair for row in layout.rows for pair in row]


def taken(packings, first, end):
    """The pairs of these steps, each from the packing that it belongs to."""
    found = []
    for step in range(first, end):
        *_, one = (packing for packing in packings if packing.start <= step)
        found += pairs_of(one.batch(step))
    return found


def test_after_a_change_of_size_come_the_pairs_that_the_epoch_has_left_and_then_the_next_epoch():
    packings = resized(48, [(0, 4), (5, 7)])
    assert taken(packings, 0, 5) == taken(resized(48, [(0, 4)]), 0, 5)
    assert len(pairs_of(packings[1].batch(5))) == 7
    # 28 pairs are left: 4 batches of 7. An epoch in batches of 7 is 6 of them, and 6 pairs come later.
    assert sorted(taken(packings, 0, 9)) == list(range(48))
    assert len(set(taken(packings, 9, 15))) == 42
    assert set(range(48)) - set(taken(packings, 9, 15)) <= set(taken(packings, 15, 21))
    again = resized(48, [(0, 4), (5, 7)])[-1]
    assert [again.batch(step) for step in (20, 6)] == [packings[1].batch(step) for step in (20, 6)]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    "sizes",
    [
        [(0, 4), (3, 6), (5, 16), (6, 5), (20, 8)],
        [(0, 8), (0, 3), (10, 4), (11, 4), (12, 60)],
        [(0, 6), (8, 3), (16, 64)],  # at the end of a window; more than there are
    ],
)
def test_however_often_the_size_changes_pairs_come_as_often_as_if_it_had_not(sizes, packed):
    """What was taken and what is put off for the next window is the beginning of the shuffled epochs."""
    pairs, steps = 50, 30
    packings = resized(pairs, sizes, packed)
    ahead, left, _ = packings[-1]._left(steps)
    order = ahead.order.take(0, ahead.begin)
    assert sorted([*taken(packings, 0, steps), *left, *ahead.head]) == sorted(order)
    assert len(left) + len(ahead.head) < 2 * pairs + packings[-1].batch_size
    for end in (1, 2, 7, 13, steps):
        *_, last = (one for one in packings if one.start < end)
        assert set(np.flatnonzero(last.used(end))) == set(taken(packings, 0, end))


@pytest.mark.parametrize("sizes", [[3, 4], [60, 90], [60, 90, 70, 80]])
def test_small_trees_of_which_each_has_a_row(sizes):
    """No whole number lies between the limits any more; the search for a smaller one went on for ever."""
    rows = balanced(np.array(sizes), len(sizes))
    assert sorted(row[0] for row in rows) == list(range(len(sizes)))


@pytest.mark.parametrize("per_row", [3, 4, 8])
def test_rows_are_balanced(per_row):
    """The largest row stays within 8 % of the mean, and every index is used once."""
    sizes, _ = tldr_like(16 * per_row)
    rows = balanced(sizes, 16)
    assert sorted(i for row in rows for i in row) == list(range(16 * per_row))
    assert max(sizes[row].sum() for row in rows) < 1.08 * sizes.sum() / 16
