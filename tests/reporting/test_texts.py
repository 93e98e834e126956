import random

import pytest

from srpo_jax.reporting.texts import edit_distance, edited, overlap, repetition, unchanged, words


def test_words_are_parted_by_white_space():
    assert words(" a  b\nc ") == 3
    assert words("") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b", 0.0), ("a b c d", 0.0), ("a b c a b c", 0.25), ("The the the THE", 0.5), ("", 0.0)],
)
def test_repetition_is_the_share_of_trigrams_had_before(text, expected):
    assert repetition(text) == pytest.approx(expected)


def test_a_revision_is_compared_with_the_one_before():
    assert [edited(("a b", "a b", "a c"), k) for k in range(3)] == [0.0, 0.0, 0.5]


def test_only_an_equal_revision_is_unchanged():
    assert [unchanged(("a", "a", "b"), k) for k in range(3)] == [False, True, False]


def test_overlap_is_f1_of_shared_words():
    # Three of "b c a" are in "a b c d": precision 3 / 3, recall 3 / 4.
    assert overlap("B, c; a", "a b-c d") == pytest.approx(2 * (1 * 0.75) / (1 + 0.75))
    assert overlap("a a", "a b") == pytest.approx(1 / 2)  # a word counts as often as both have it
    assert overlap("", "a") == overlap("…", "…") == 0.0
    assert overlap("Die Straße", "DIE STRASSE, die straße") == pytest.approx(2 * 2 / 6)


def slow_distance(a, b):
    """The textbook's recursion."""
    if not a or not b:
        return len(a) + len(b)
    replace = slow_distance(a[1:], b[1:]) + (a[0] != b[0])
    return min(replace, slow_distance(a[1:], b) + 1, slow_distance(a, b[1:]) + 1)


def test_the_edit_distance_is_the_textbooks():
    rng = random.Random(0)
    for _ in range(60):
        a, b = ([rng.choice("abc") for _ in range(rng.randint(0, 5))] for _ in range(2))
        expected = slow_distance(a, b) / max(len(a), len(b), 1)
        assert edit_distance(" ".join(a), " ".join(b)) == pytest.approx(expected)


def test_the_edit_distance_of_long_texts_is_the_tables():
    rng = random.Random(1)
    for length in (63, 64, 65, 150):
        a = [rng.choice("abcdef") for _ in range(length)]
        b = [word if rng.random() < 0.7 else rng.choice("abcg") for word in a[: length - 7]]
        costs = list(range(len(b) + 1))
        for i, word in enumerate(a, 1):
            before, costs[0] = costs[:], i
            for j, other in enumerate(b, 1):
                costs[j] = min(before[j - 1] + (word != other), before[j] + 1, costs[j - 1] + 1)
        assert edit_distance(" ".join(a), " ".join(b)) == costs[-1] / length
        assert edit_distance(" ".join(b), " ".join(a)) == costs[-1] / length
