"""Order, completeness and shape of batches; nothing is ever cut silently."""

import collections
import dataclasses
import itertools

import jax
import numpy as np
import pytest

from srpo_jax import prefix_tree, prompts
from srpo_jax.data import pipeline
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.errors import UserError
from srpo_jax.losses import DIRECT_SCORES, IMPROVE_SCORES
from srpo_jax.prompts import Renderer

SRPO = DIRECT_SCORES + IMPROVE_SCORES
N = 13  # not a multiple of a batch: epochs end inside of batches
PAIRS = [Pair(f"text {i}", "yes" * (i % 3 + 1), "no", i / N, i + 1) for i in range(N)]


def prepare(pairs=PAIRS, template="plain", names=SRPO, tokenizer=None, **settings):
    renderer = Renderer(template, tokenizer or ByteTokenizer())
    return pipeline.prepare(pairs, renderer, names, **({"max_length": 512} | settings))


@pytest.fixture(scope="module")
def data():
    return prepare()


def take(data, count, batch_size=4, seed=0, start=0, **split):
    stream = pipeline.batches(data, batch_size, seed, start, **split)
    return list(itertools.islice(stream, count))


def ids(batch):
    """The pairs of a batch, told by their labels, which are all different."""
    return [round(float(p) * N) for p in batch["label_prob"]]


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_the_order_is_a_function_of_seed_and_step(data):
    running = take(data, 9)
    for step in (0, 3, 8):
        assert_equal(take(data, 1, start=step)[0], running[step])
    assert_equal(take(data, 9), running)
    assert [ids(b) for b in take(data, 9, seed=1)] != [ids(b) for b in running]


def test_an_epoch_has_each_pair_once_and_is_shuffled_anew(data):
    order = [i for batch in take(data, 3 * N) for i in ids(batch)]
    epochs = [order[n * N : (n + 1) * N] for n in range(12)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 12


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_one_batch(data, processes):
    whole = take(data, 6, start=2)
    shares = [take(data, 6, start=2, process=i, processes=processes) for i in range(processes)]
    for step, batch in enumerate(whole):
        for i in range(processes):
            assert_equal(shares[i][step], jax.tree.map(lambda x, i=i: x[i::processes], batch))


def test_a_batch_that_cannot_be_shared_out_is_refused(data):
    with pytest.raises(UserError, match=r"config\.train\.batch_size=4 .* 3 processes"):
        take(data, 1, processes=3)


def test_a_batch_may_be_larger_than_the_data():
    counts = collections.Counter(ids(take(prepare(PAIRS[:3]), 1, batch_size=8)[0]))
    assert sorted(counts.values()) == [2, 3, 3]


def test_examples_are_the_trees_of_their_pairs(data):
    data = dataclasses.replace(data)
    data.reference = {name: np.arange(N, dtype=np.float32) + i for i, name in enumerate(SRPO)}
    renderer = Renderer("plain", ByteTokenizer())
    for batch in take(data, 2):
        for row, i in enumerate(ids(batch)):
            pair = PAIRS[i]
            chosen, rejected = map(renderer.completion, (pair.chosen, pair.rejected))
            sequences = prompts.sequences(renderer.prompt(pair.prompt), chosen, rejected, SRPO, 2)
            rows = prefix_tree.pad(prefix_tree.build(sequences), data.row_length, data.targets)
            assert_equal(jax.tree.map(lambda x, row=row: x[row], batch["rows"]), rows)
            for k, name in enumerate(SRPO):
                text = pair.chosen if name[0] == "w" else pair.rejected
                assert batch["lengths"][name][row] == len(text) + 1  # bytes and the end
                assert batch["reference"][name][row] == i + k


def test_in_order_visits_every_pair_once_and_fills_the_last_batch(data):
    batches = list(pipeline.in_order(data, 4))
    index = np.concatenate([batch["index"] for batch in batches])
    assert list(index) == [*range(N), N - 1, N - 1, N - 1]
    assert [i for batch in batches for i in ids(batch)] == list(index)


def test_rows_are_as_long_as_the_longest_pair_rounded_up(data):
    longest = max(len(tree.tokens) for tree in data.trees)
    assert 0 <= data.row_length - longest < pipeline.ROUND
    assert data.row_length % pipeline.ROUND == data.targets % pipeline.ROUND == 0
    rows = data[0]["rows"]
    used = len(data.trees[0].tokens)
    assert rows.tokens.shape == (data.row_length,)
    assert (rows.ancestors[:used] > 0).all()
    assert (rows.ancestors[used:] == 0).all()
    scored = len(data.trees[0].target_token)
    assert rows.target_members.shape == (data.targets,)
    assert (rows.target_members[scored:] == 0).all()
    assert prepare(row_length=500).row_length == 500


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
    assert (len(kept), kept.dropped) == (N, 1)
    assert kept.fingerprint == prepare().fingerprint


def test_a_limit_that_is_met_exactly_is_kept():
    longest = max(len(tree.tokens) for tree in prepare().trees)
    assert prepare(row_length=longest).dropped == 0
    with pytest.raises(UserError, match=f"row_length={longest - 1}"):
        prepare(row_length=longest - 1)


def test_no_pair_left_is_an_error():
    with pytest.raises(UserError, match=f"none of {N} pairs fits"):
        prepare(row_length=8, overlong="drop")


def test_an_unknown_way_with_overlong_pairs_is_an_error():
    with pytest.raises(UserError, match=r"config\.data\.overlong is 'cut'"):
        prepare(overlong="cut")


class VowelTokenizer(ByteTokenizer):
    """Knows only some characters, as a vocabulary without byte fall-back does."""

    def encode(self, text, special=False):
        return [i for i in super().encode(text, special) if chr(i - 3) in "aeiou"]


def test_a_completion_without_a_token_is_an_error():
    pairs = [Pair("a", "e", "i", line=1), Pair("a", "e", "xyz", line=2)]
    with pytest.raises(UserError, match=r"^my\.jsonl:2: a completion is empty once tokenised"):
        prepare(pairs, tokenizer=VowelTokenizer(), source="my.jsonl")


class OtherTokenizer(ByteTokenizer):
    def encode(self, text, special=False):
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
