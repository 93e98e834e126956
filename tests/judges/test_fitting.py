import numpy as np
import pytest

from srpo_jax.data.documents import Document
from srpo_jax.judges import fitting
from srpo_jax.judges.embedding import FEATURES, WEIGHTS, EmbeddingJudge

TEXT = "The violet copper is a small butterfly. It lives in meadows. It is now rare in Europe."
DOCUMENTS = [
    Document("s/1", TEXT, "Rare European butterfly.", "train"),
    Document(
        "s/2", "Some other text about cities in France. And more.", "Cities of France", "train"
    ),
]


def test_fit_finds_the_weights_that_made_the_preferences():
    generator = np.random.default_rng(0)
    truth = np.array([1.5, -0.5, 0.0])
    rows = generator.normal(size=(20000, 3)) * [1, 10, 0.1]
    wins = generator.uniform(size=20000) < 1 / (1 + np.exp(-rows @ truth))
    found = fitting.fit([np.where(wins[:, None], rows, -rows)], [1.0], penalty=1e-9)
    assert found[:2] == pytest.approx(truth[:2], rel=0.1)
    assert abs(found[2]) < 0.7  # this feature is a hundredth as wide as the others


def test_fit_is_at_the_minimum_and_weighs_groups_alike():
    generator = np.random.default_rng(1)
    groups = [generator.normal(0.3, size=(n, 2)) for n in (10, 1000)]
    found = fitting.fit(groups, [1.0, 0.8], penalty=0)
    gradient = sum(
        ((1 / (1 + np.exp(-g @ found)) - label)[:, None] * g).mean(axis=0)
        for g, label in zip(groups, [1.0, 0.8], strict=True)
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-8)


def test_penalty_shrinks_and_a_constant_feature_gets_no_weight():
    rows = np.column_stack([np.random.default_rng(2).normal(0.5, size=200), np.zeros(200)])
    loose, tight = fitting.fit([rows], [1.0], 1e-3), fitting.fit([rows], [1.0], 1.0)
    assert 0 < tight[0] < loose[0]
    assert loose[1] == 0


def test_log_loss_of_a_coin():
    assert fitting.log_loss(np.ones((3, 2)), np.zeros(2)) == pytest.approx(np.log(2))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("gold in a loop", ", ".join(["Rare European butterfly"] * 3)),
        (
            "gold, then rambling",
            "Rare European butterfly. It lives in meadows. It is now rare in Europe.",
        ),
        ("nothing", ""),
        ("first sentence", "The violet copper is a small butterfly."),
        ("middle sentence", "It lives in meadows."),
    ],
)
def test_damage(damage, expected):
    assert fitting.FIT_DAMAGES[damage](DOCUMENTS, 0) == expected


def test_wrong_word_differs_in_one_word():
    damaged = fitting.wrong_word(DOCUMENTS, 0).split()
    original = DOCUMENTS[0].gold.split()
    assert sum(a != b for a, b in zip(damaged, original, strict=True)) == 1
    assert set(damaged) - set(original) <= {"Cities", "France"}


def test_dressed_up_still_has_the_gold():
    damaged = fitting.dressed_up(DOCUMENTS, 0)
    assert DOCUMENTS[0].gold in damaged
    assert len(damaged) > len(DOCUMENTS[0].gold) + 5


@pytest.mark.slow
@pytest.mark.assets
def test_weights_kept_in_the_module_are_those_of_the_fit():
    found = fitting.fitted_weights(EmbeddingJudge())
    assert tuple(found) == FEATURES
    # int8 arithmetic, and so a similarity, differs a little from processor to processor.
    np.testing.assert_allclose(list(found.values()), list(WEIGHTS.values()), rtol=0.05, atol=0.05)
