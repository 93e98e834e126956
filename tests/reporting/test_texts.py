import pytest

from srpo_jax.reporting.texts import repetition, unchanged, words


def test_words_are_parted_by_white_space():
    assert words(" a  b\nc ") == 3
    assert words("") == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b", 0.0), ("a b c d", 0.0), ("a b c a b c", 0.25), ("The the the THE", 0.5), ("", 0.0)],
)
def test_repetition_is_the_share_of_trigrams_had_before(text, expected):
    assert repetition(text) == pytest.approx(expected)


def test_only_an_equal_revision_is_unchanged():
    assert [unchanged(("a", "a", "b"), k) for k in range(3)] == [False, True, False]
