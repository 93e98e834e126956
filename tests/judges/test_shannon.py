"""The Shannon judge: its score is a likelihood, computed here without batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax import judges
from srpo_jax.judges import JudgeSettings
from srpo_jax.judges.shannon import BEFORE, BEHIND, ShannonScorer
from srpo_jax.models import loading
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError

SETTINGS = JudgeSettings("shannon", source="tiny", dtype="float32", scale=3.0, batch_size=3)


def plain(model, x, y):
    """log p(x | y) a byte."""
    tokenizer = loading.load_tokenizer("tiny")
    before, text = tokenizer.encode(f"{BEFORE}{y}{BEHIND}"), tokenizer.encode(x)
    ids = jnp.array([[*before, *text]])
    mask = jnp.tril(jnp.ones((1, ids.size, ids.size), bool))
    logits = model.logits(model(ids, jnp.arange(ids.size)[None], mask))[0]
    logp = jax.nn.log_softmax(logits)[jnp.arange(len(before) - 1, ids.size - 1), jnp.array(text)]
    return float(logp.mean())


@pytest.mark.usefixtures("one_device")
def test_the_preference_is_that_of_the_likelihoods_of_the_text():
    x, ys = "Wet meadows are rare.", ["", "on meadows", "of something else"]
    scores = ShannonScorer(SETTINGS).scores([x] * 3, ys)
    model = loading.load("tiny", "float32", mesh_module.local(64))
    np.testing.assert_allclose(scores, [plain(model, x, y) for y in ys], rtol=1e-5)
    said = judges.load(SETTINGS).judge([x, x], ys[:2], ys[1:])
    expected = 1 / (1 + np.exp(-3.0 * (scores[:2] - scores[1:])))
    np.testing.assert_allclose(said.probabilities, expected, rtol=1e-5)


def test_what_is_too_long_or_empty_is_cut_by_nobody():
    said = judges.load(SETTINGS).judge(["x" * 2100, " "], ["a", "a"], ["b", "b"])
    assert np.isnan(said.probabilities).all()
    assert set(said.missing.values()) == {
        "empty, or longer with its summary than the model's 2048 tokens"
    }


def test_a_model_that_is_compared_is_refused(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    twice = f"{tmp_path}/run/../run@20"
    for source, name in (("tiny", "start"), (twice, "srpo")):
        settings = JudgeSettings("shannon", source=source)
        models = {"start": "tiny", "srpo": f"{run}@40"}
        with pytest.raises(UserError, match=f"is the model '{name}', which is compared"):
            judges.require_apart(settings, models)
    in_an_ensemble = JudgeSettings("ensemble", source="tiny", members=("longer", "shannon"))
    with pytest.raises(UserError, match="cannot judge itself by its own likelihood"):
        judges.require_apart(in_an_ensemble, {"start": "tiny"})
    judges.require_apart(JudgeSettings("shannon", source=str(tmp_path)), models)
    judges.require_apart(JudgeSettings("reward", source="tiny"), models)


def test_a_source_at_fault_is_named(monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"config\.judge\.source is empty: name a model"):
        ShannonScorer(JudgeSettings("shannon"))
    with pytest.raises(UserError, match=r"config\.judge\.source: the model source 'nowhere'"):
        ShannonScorer(JudgeSettings("shannon", source="nowhere"))
