import numpy as np
import pytest

from srpo_jax.data import documents
from srpo_jax.judges import embedding, features
from srpo_jax.judges.embedding import FEATURES, WEIGHTS, EmbeddingJudge
from srpo_jax.judges.minilm import WIDTH, Embedder
from srpo_jax.judges.tricks import HELD_OUT, TRICKS
from srpo_jax.judges.validation import BEST_TRICK, DAMAGES, validate
from srpo_jax.runtime.errors import UserError

pytestmark = pytest.mark.assets

TEXT = (
    "The violet copper is a small butterfly of the family Lycaenidae. It lives in wet meadows of "
    "Europe, where its caterpillars feed on bistort, and has become rare as meadows were drained."
)
GOLD = "Rare European species of butterfly"
LANGUAGE = features.Language([GOLD.lower().split()])


@pytest.fixture(scope="module")
def judge() -> EmbeddingJudge:
    return EmbeddingJudge()


def test_weights_have_the_signs_they_are_meant_to_have():
    assert tuple(WEIGHTS) == FEATURES
    good = {"similarity", "fluency", "ending", "order", "grounded", "words"}
    near_nothing = {"weakest link", "too short"}
    signed = {name: weights for name, weights in WEIGHTS.items() if name not in near_nothing}
    assert {name for name, weights in signed.items() if min(weights) > 0} == good
    assert {name for name, weights in signed.items() if max(weights) > 0} == good


@pytest.mark.parametrize(
    "worse",
    [
        "",
        "This document is about something.",
        "The subject of this text is the violet copper.",
        "City in the north of France",
        "Species of butterfly, species of butterfly, species of butterfly",
        "The violet copper is a small",
        TEXT,
        "European butterfly rare of species",
        "Not rare European species of butterfly",
        "violet copper caterpillars bistort meadows drained Lycaenidae family Europe wet",
        "Species of violet copper",
        "Rare European species of",
        "butterfly " * 60,
        f"Here is a summary of the text:\n\n**{GOLD}**",
    ],
)
def test_a_concise_and_true_summary_wins(judge, worse):
    assert judge.probabilities([TEXT], [GOLD], [worse])[0] > 0.5


def test_is_antisymmetric_and_one_half_for_equals(judge):
    texts = ["", GOLD, "Small butterfly", TEXT]
    a, b = [x for x in texts for _ in texts], texts * len(texts)
    forth = judge.probabilities([TEXT] * 16, a, b)
    back = judge.probabilities([TEXT] * 16, b, a)
    assert (forth + back == 1).all()
    assert (back == 1 - forth).all()
    assert forth[::5].tolist() == [0.5] * 4
    assert forth.dtype == np.float64


def test_unequal_lengths_are_refused(judge):
    with pytest.raises(UserError, match=r"prompts \(1\) as completions a \(2\)"):
        judge.probabilities(["x"], ["a", "b"], ["c"])


def test_nothing_gives_nothing(judge):
    assert judge.probabilities([], [], []).shape == (0,)


@pytest.mark.parametrize("name", documents.BUILT_IN)
def test_prefers_the_gold_to_damages_and_tricks_on_documents_held_out(judge, name):
    checks = validate(judge, documents.load(name, "validation")[:20])
    not_seen = {"gold with another number of the text", "gold with other digits", BEST_TRICK}
    rates = {check.damage: check.rate for check in checks if check.damage not in not_seen}
    assert rates.keys() == (DAMAGES | TRICKS).keys() - not_seen
    assert {damage: rate for damage, rate in rates.items() if rate < 0.75} == {}
    assert {c.damage for c in checks if c.held_out} == HELD_OUT & {c.damage for c in checks}


def test_folds_have_other_texts_of_the_train_split():
    parts = [embedding.training_documents(f) for f in range(embedding.FOLDS)]
    assert {document.split for part in parts for document in part} == {"train"}
    texts = [{d.prompt.split("\n\nFocus")[0] for d in part} for part in parts]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_no_text_is_judged_by_what_was_fitted_to_it():
    for judged in range(embedding.FOLDS):
        texts = [d.prompt for d in embedding.training_documents(judged)[:5]]
        fitted = [d.prompt for d in embedding.training_documents(embedding.weights_fold(judged))]
        (language,) = {embedding.language_fold(text) for text in texts}
        assert len({judged, language, embedding.weights_fold(judged)}) == 3
        # And the weights' documents were measured with that language, which is not theirs either.
        assert {embedding.language_fold(text, step=2) for text in fitted} == {language}


def test_a_text_is_measured_with_the_language_of_another_fold(judge, monkeypatch):
    asked = []
    monkeypatch.setattr(embedding, "_language", lambda of: asked.append(of) or LANGUAGE)
    prompts = [
        d.prompt for f in range(embedding.FOLDS) for d in embedding.training_documents(f)[:2]
    ]
    judge.features(prompts, ["never measured before"] * len(prompts))
    assert asked == [embedding.language_fold(prompt) for prompt in prompts]
    assert asked == [1, 1, 2, 2, 0, 0]


def test_other_weights_and_features_are_another_version(monkeypatch):
    other = EmbeddingJudge(dict.fromkeys(FEATURES, (0.0, 0.0, 0.0))).description
    described = EmbeddingJudge().description
    assert described == EmbeddingJudge().description != other
    monkeypatch.setattr(features, "CHANGES", ("repetition counts trigrams",))
    assert EmbeddingJudge().description not in (described, other)


def test_embeddings_of_long_and_empty_texts():
    embed = Embedder()
    empty, short, long = embed(["", TEXT, f"{TEXT} " * 20])
    assert empty.tolist() == [0.0] * WIDTH
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    assert long @ short > 0.9
    beyond = embed([f"{TEXT} " * 20 + "Stock exchange of Tokyo. " * 200])[0]
    assert beyond @ long < 0.9  # what comes after the model's window is not cut off


def test_embedding_does_not_depend_on_the_company():
    alone, together = Embedder()([GOLD])[0], Embedder()([TEXT, GOLD, "A."])[1]
    assert alone.tolist() == together.tolist()
