"""Order, completeness and shape of batches; nothing is ever cut silently."""

import collections
import dataclasses
import itertools
import re

import jax
import numpy as np
import pytest

from srpo_jax import prompts
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.objectives.losses import DIRECT_SCORES, IMPROVE_SCORES
from srpo_jax.prompts import Renderer
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.packing import RowShape

SRPO = DIRECT_SCORES + IMPROVE_SCORES
N = 13  # not a multiple of a batch: epochs end inside of batches
PAIRS = [Pair(f"text {i}", "yes" * (i % 3 + 1), "no", i / N, i + 1) for i in range(N)]


def prepare(pairs=PAIRS, template="plain", names=SRPO, tokenizer=None, **settings):
    renderer = Renderer(template, tokenizer or ByteTokenizer())
    return pipeline.prepare(pairs, renderer, names, **({"max_length": 512} | settings))


@pytest.fixture(scope="module")
def data():
    return prepare()


def take(data, count, batch_size=4, seed=0, start=0, parts=1, packed=True, **split):
    packing = data.packing(batch_size, seed, parts=parts, packed=packed)
    return list(itertools.islice(pipeline.batches(data, packing, start, **split), count))


def ids(batch):
    """The pairs of a batch, told by their labels, which are all different."""
    there = batch["rows"].pair >= 0
    pairs = [round(float(p) * N) for p in batch["label_prob"][there]]
    assert pairs == list(batch["rows"].pair[there])
    return pairs


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_order_is_a_function_of_seed_and_step(data):
    running = take(data, 9)
    for step in (0, 3, 8):
        assert_equal(take(data, 1, start=step)[0], running[step])
    assert_equal(take(data, 9), running)
    assert [ids(b) for b in take(data, 9, seed=1)] != [ids(b) for b in running]


@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_has_each_pair_once_and_is_shuffled_anew(data, packed):
    """Packing deals the pairs anew to the 3 batches of a window, so epochs are whole after N windows."""
    order = [i for batch in take(data, 3 * N, packed=packed) for i in ids(batch)]
    epochs = [order[n * N : (n + 1) * N] for n in range(12)]
    assert len({tuple(epoch) for epoch in epochs}) == 12
    if not packed:
        assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    for windows in range(1, N + 1):
        counts = np.bincount(order[: windows * 12], minlength=N)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_processes_share_out_the_rows_of_the_one_batch(data, processes, packed):
    layout = {"parts": 4, "packed": packed, "start": 2}
    whole = take(data, 6, batch_size=8, **layout)
    own = np.arange(len(whole[0]["rows"].tokens)).reshape(processes, -1)
    shares = [take(data, 6, batch_size=8, own=rows, **layout) for rows in own]
    for step, batch in enumerate(whole):
        for rows, share in zip(own, shares, strict=True):
            assert_equal(share[step], jax.tree.map(lambda x, rows=rows: x[rows], batch))


def test_the_pairs_of_a_step_do_not_depend_on_the_number_of_devices(data):
    """So a run may go on with other devices, where its batches are laid out in other rows."""
    one, other = (take(data, 6, batch_size=8, parts=parts) for parts in (1, 4))
    assert [b["rows"].tokens.shape[0] for b in (one[0], other[0])] == [1, 4]
    assert [sorted(ids(b)) for b in one] == [sorted(ids(b)) for b in other]


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_need_not_be_a_multiple_of_the_devices(data, packed):
    for batch_size, rows in ((6, 4 if packed else 8), (3, 4)):
        batch = take(data, 1, batch_size=batch_size, parts=4, packed=packed)[0]
        assert len(batch["rows"].tokens) == rows
        assert len(set(ids(batch))) == batch_size


def test_a_batch_may_be_larger_than_the_data():
    counts = collections.Counter(ids(take(prepare(PAIRS[:3]), 1, batch_size=8)[0]))
    assert sorted(counts.values()) == [2, 3, 3]


def test_examples_are_the_trees_of_their_pairs(data):
    data = dataclasses.replace(data)
    data.reference = {name: np.arange(N, dtype=np.float32) + i for i, name in enumerate(SRPO)}
    renderer = Renderer("plain", ByteTokenizer())
    for batch in take(data, 2, parts=2):
        for row, place in zip(*np.nonzero(batch["rows"].pair >= 0), strict=True):
            i = int(batch["rows"].pair[row, place])
            pair = PAIRS[i]
            chosen, rejected = map(renderer.completion, (pair.chosen, pair.rejected))
            sequences = prompts.sequences(renderer.prompt(pair.prompt), chosen, rejected, SRPO, 2)
            tree = prefix_tree.build(sequences)
            ends = np.flatnonzero(
                batch["rows"].positions[row] == 0
            )  # where trees, or padding, begin
            here = slice(ends[place], ends[place] + len(tree.tokens))
            np.testing.assert_array_equal(batch["rows"].tokens[row][here], tree.tokens)
            np.testing.assert_array_equal(batch["rows"].end[row][here] - ends[place], tree.end)
            assert batch["label_prob"][row, place] == np.float32(pair.label_prob)
            for k, name in enumerate(SRPO):
                text = pair.chosen if name[0] == "w" else pair.rejected
                assert batch["lengths"][name][row, place] == len(text) + 1  # bytes and the end
                assert batch["reference"][name][row, place] == i + k


def test_empty_places_are_finite(data):
    data = dataclasses.replace(data)
    data.reference = {name: np.ones(N, np.float32) for name in SRPO}
    row = data.row([3], RowShape(500, 100, 3))
    assert list(row["rows"].pair) == [3, -1, -1]
    assert list(row["label_prob"][1:]) == [0.5, 0.5]
    assert all(list(v[1:]) == [1.0, 1.0] for v in row["lengths"].values())
    assert all(list(v[1:]) == [0.0, 0.0] for v in row["reference"].values())


@pytest.mark.parametrize("packed", [False, True])
def test_once_visits_every_pair_once(data, packed):
    packing = data.packing(4, 0, parts=2, packed=packed)
    whole = list(pipeline.once(data, packing))
    pairs = np.concatenate([rows.pair.reshape(-1) for rows in whole])
    assert sorted(pairs[pairs >= 0]) == list(range(N))
    assert len(whole) == 4
    own = np.arange(packing.rows // 2, packing.rows)
    for rows, share in zip(whole, pipeline.once(data, packing, own=own), strict=True):
        assert_equal(share, jax.tree.map(lambda x: x[own], rows))


def test_separate_tokens_is_what_six_rows_would_hold(data):
    renderer = Renderer("plain", ByteTokenizer())
    total = 0
    for pair in PAIRS:
        w, rejected = renderer.completion(pair.chosen), renderer.completion(pair.rejected)
        parts = prompts.sequences(renderer.prompt(pair.prompt), w, rejected, SRPO, 2)
        total += sum(len(context) + len(completion) for context, completion in parts)
    assert data.separate_tokens == total
    assert data.tokens < total


LONG = [*PAIRS[:4], Pair("y" * 300, "a", "b", 1.0, 77), *PAIRS[4:]]


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_length": 200}, r"more than the model's 200"),
        ({"row_length": 256}, r"slots, more than config\.data\.row_length=256"),
    ],
)
def test_an_overlong_pair_is_an_error_or_counted(limits, said):
    with pytest.raises(UserError, match=rf"^my\.jsonl:77: .*{said}.*config\.data\.overlong=drop"):
        prepare(LONG, source="my.jsonl", **limits)
    kept = prepare(LONG, overlong="drop", **limits)
    assert (len(kept), kept.left_out.long) == (N, 1)
    assert kept.fingerprint == prepare().fingerprint


def test_a_limit_that_is_met_exactly_is_kept():
    longest = max(len(tree.tokens) for tree in prepare().trees)
    assert prepare(row_length=longest).left_out.long == 0
    with pytest.raises(UserError, match=f"row_length={longest - 1}"):
        prepare(row_length=longest - 1)


def test_no_pair_left_is_an_error():
    with pytest.raises(UserError, match=f"none of {N} pairs fits"):
        prepare(row_length=8, overlong="drop")


@pytest.mark.parametrize("which", ["overlong", "refused"])
def test_an_unknown_way_with_pairs_that_do_not_fit_is_an_error(which):
    with pytest.raises(UserError, match=rf"config\.data\.{which} is 'cut'"):
        prepare(**{which: "cut"})


class VowelTokenizer(ByteTokenizer):
    """Knows only some characters, as a vocabulary without byte fall-back does."""

    def encode(self, text, special=False, continued=False):
        return [i for i in super().encode(text, special) if chr(i - 3) in "aeiou"]


def test_a_pair_that_cannot_be_tokenised_is_an_error_or_counted():
    pairs = [Pair("a", "e", one, line=i) for i, one in enumerate(("i", "xyz", "z"), 1)]
    given = {"tokenizer": VowelTokenizer(), "source": "my.jsonl"}
    said = r"my\.jsonl:2: a completion is empty once tokenised"
    with pytest.raises(UserError, match=rf"^{said} \(--config\.data\.refused=drop leaves"):
        prepare(pairs, **given)
    kept = prepare(pairs, refused="drop", **given)
    assert kept.fingerprint == prepare(pairs[:1], **given).fingerprint
    assert re.fullmatch(
        rf"0 left out as too long, 2 refused \(the first: {said}\)", str(kept.left_out)
    )
    with pytest.raises(UserError, match=rf"none of 2 pairs .*, 2 refused \(the first: {said}"):
        prepare(pairs[1:], refused="drop", **given)


class OtherTokenizer(ByteTokenizer):
    def encode(self, text, special=False, continued=False):
        return [i if i < 3 else 3 + (i - 2) % 256 for i in super().encode(text, special)]


class OtherEnd(ByteTokenizer):
    eos_id = 0


def changed(**fields):
    return [*PAIRS[:5], dataclasses.replace(PAIRS[5], **fields), *PAIRS[6:]]


def test_the_fingerprint_tells_everything_apart(data):
    variants = [
        data,
        *(prepare(template=name) for name in ("chat", "tldr")),
        *(prepare(tokenizer=kind()) for kind in (OtherTokenizer, OtherEnd)),
        *(prepare(changed(**{name: "new"})) for name in ("prompt", "chosen", "rejected")),
        prepare(changed(label_prob=0.123)),
        prepare(PAIRS[::-1]),
        prepare(PAIRS[:-1]),
        prepare(names=SRPO[::-1]),
        prepare(names=DIRECT_SCORES),
    ]
    assert len({variant.fingerprint for variant in variants}) == len(variants)
    assert prepare(row_length=500).fingerprint == data.fingerprint == prepare().fingerprint


@pytest.mark.slow
def test_workers_yield_the_same_batches(data):
    """Each worker is a process of its own, which the data is sent to."""
    assert_equal(take(data, 5, start=2, workers=1), take(data, 5, start=2))
    assert_equal(take(data, 5, start=2, workers=2), take(data, 5, start=2))
