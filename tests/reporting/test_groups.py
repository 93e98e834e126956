"""What documents about one text are worth; coverage: the share of samples whose interval has the mean."""

import numpy as np
import pytest
from scipy.special import ndtr

from srpo_jax.reporting.comparison import compare
from srpo_jax.reporting.groups import effective_size, numbered, sums
from srpo_jax.reporting.interval import resample_spread, score_interval, score_intervals
from srpo_jax.reporting.length_control import length_controlled
from srpo_jax.reporting.winrate import difference, rate

WINS = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
THRICE = np.repeat(WINS, 3)  # each text has three documents, which say the same
OF_THREE = np.repeat(np.arange(8), 3)


def test_groups_are_numbered_as_they_appear_and_none_are_needed_where_all_differ():
    np.testing.assert_array_equal(numbered(["b", "a", "b"]), [0, 1, 0])
    assert numbered(["b", "a"]) is None


def test_a_sum_of_zero_has_no_sign():
    assert sums(np.array([0.3, -0.1, -0.2]), np.zeros(3, np.intp)).tolist() == [0.0]


def test_copies_of_a_document_tell_nothing_new():
    """The design effect has degrees of freedom: 8 texts of 24 documents are 8 * (7 / 8) * (24 / 23)."""
    assert effective_size(THRICE, OF_THREE) == pytest.approx(8 * 7 / 8 * 24 / 23)
    low, high = score_interval(THRICE, OF_THREE)
    once = score_interval(WINS)
    assert low < once[0]
    assert high > once[1]
    assert rate(THRICE, OF_THREE).low == low


@pytest.mark.parametrize("values", [np.ones(6), np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0])])
def test_where_nothing_shows_how_alike_documents_are_a_text_counts_as_one(values):
    groups = np.zeros(6, np.intp) if values.std() else np.repeat([0, 1], 3)
    assert effective_size(values, groups) == groups.max() + 1


def test_documents_unlike_by_chance_are_not_more_than_they_are():
    assert effective_size(np.tile([0.0, 1.0], 5), np.repeat(np.arange(5), 2)) == 10.0


def test_the_sign_test_has_one_sign_for_a_text():
    ours = np.array([1.0, 1.0, 0.0, 0.9, 0.1, 0.5])
    said = compare(ours, np.full(6, 0.5), np.array([0, 0, 0, 1, 1, 2]))
    assert (said.wins, said.ties, said.losses, said.n) == (1, 2, 0, 6)
    assert said.difference == pytest.approx(np.mean(ours) - 0.5)


def test_differences_and_spreads_are_of_whole_texts():
    a, b = THRICE, np.full(24, 0.5)
    assert difference(a, b, OF_THREE)[1] < difference(WINS, b[:8])[1]
    # The same draws, of texts in place of documents.
    assert resample_spread(THRICE, 20, 0, OF_THREE).spread == resample_spread(WINS, 20, 0).spread


def test_missing_verdicts_leave_their_text():
    holes = np.where(np.arange(24) % 3, np.nan, THRICE)
    assert rate(holes, OF_THREE).low == rate(WINS).low


def test_the_length_controlled_interval_is_of_texts():
    generator = np.random.default_rng(0)
    lengths = {"srpo": generator.normal(size=24)}
    apart = length_controlled({"srpo": THRICE}, lengths)["srpo"]
    together = length_controlled({"srpo": THRICE}, lengths, OF_THREE)["srpo"]
    assert together.rate == apart.rate
    assert together.high - together.low > 1.3 * (apart.high - apart.low)


@pytest.mark.slow
@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [[1] * 24 + [2] * 11 + [3] * 4, [3] * 40, [3] * 10])
def test_intervals_cover_however_alike_the_documents_of_a_text_are(sizes, alike):
    """Three standard errors of 2,000 reports below the table of `interval`."""
    groups, generator = np.repeat(np.arange(len(sizes)), sizes), np.random.default_rng(0)
    for p in (0.1, 0.3, 0.5, 0.9):
        texts = generator.normal(size=(2000, len(sizes)))[:, groups]
        own = generator.normal(size=texts.shape)
        u = ndtr(np.sqrt(alike) * texts + np.sqrt(1 - alike) * own)
        values = (u < p).astype(float)
        ends = [score_intervals(row[None], effective_size(row, groups)) for row in values]
        held = np.mean([low[0] <= p <= high[0] for low, high in ends])
        assert held > (0.895 if len(sizes) == 10 else 0.905)
