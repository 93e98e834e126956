import numpy as np
import pytest

from srpo_jax.data import documents
from srpo_jax.judges import embedding
from srpo_jax.judges.embedding import FEATURES, WEIGHTS, EmbeddingJudge
from srpo_jax.judges.minilm import WIDTH, Embedder
from srpo_jax.judges.validation import validate
from srpo_jax.runtime.errors import UserError

pytestmark = pytest.mark.assets

TEXT = (
    "The violet copper is a small butterfly of the family Lycaenidae. It lives in wet meadows of "
    "Europe, where its caterpillars feed on bistort, and has become rare as meadows were drained."
)
GOLD = "Rare European species of butterfly"


@pytest.fixture(scope="module")
def judge() -> EmbeddingJudge:
    return EmbeddingJudge()


def test_weights_have_the_signs_they_are_meant_to_have():
    assert tuple(WEIGHTS) == FEATURES
    good = {"similarity", "fluency", "weakest link", "ending", "grounded", "words"}
    assert {name for name, weight in WEIGHTS.items() if weight > 0} == good


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


@pytest.mark.parametrize(("name", "count"), [("wikipedia", 50), ("aclsum", 50)])
def test_prefers_the_gold_on_documents_held_out(judge, name, count):
    checks = validate(judge, documents.load(name, "validation")[:count])
    assert {check.damage: check.rate for check in checks if check.rate < 0.75} == {}
    assert len(checks) == 4


def test_weights_and_language_are_learned_from_different_texts_of_the_train_split():
    weights = embedding.training_documents(for_weights=True)
    language = embedding.training_documents(for_weights=False)
    assert {document.split for document in weights + language} == {"train"}
    texts = [{d.prompt.split("\n\nFocus")[0] for d in part} for part in (weights, language)]
    assert not texts[0] & texts[1]


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
