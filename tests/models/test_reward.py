"""Reward models against `transformers` in float32: the same directory, the same score."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from srpo_jax.models import reward
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from tests.checkpoints import save, save_reward, save_tokenizer

NEEDS_DEV = "the yardstick is an extra: install srpo_jax[dev] to run this test"
torch = pytest.importorskip("torch", reason=NEEDS_DEV)
pytest.importorskip("transformers", reason=NEEDS_DEV)

rng = np.random.default_rng(0)
TEXTS = [rng.integers(3, 260, n).tolist() for n in (40, 23, 31)]
TEXTS.append([*TEXTS[1], 2])  # ends as sequences do


def ours(directory, devices=1, texts=TEXTS):
    mesh = mesh_module.make(devices=jax.devices()[:devices])
    model = reward.load(reward.open_source(directory), "float32", mesh)
    return model.scores(texts, batch_size=2)


def theirs(model, texts=TEXTS):
    pad = model.config.pad_token_id
    ids = [[*text, *[pad] * (40 - len(text))] for text in texts]
    mask = [[int(i < len(text)) for i in range(40)] for text in texts]
    with torch.no_grad():
        return model(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits[:, 0].numpy()


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma2"])
def test_scores_are_those_of_transformers(name, tmp_path):
    expected = theirs(save_reward(name, tmp_path, num_hidden_layers=2))
    assert expected.std() > 0.3
    found = ours(tmp_path)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, atol=2e-4, rtol=0)


def test_padding_that_ends_sequences_too_is_not_scored(tmp_path):
    """As in `transformers`, the score is that of the token before; a bias is added."""
    expected = theirs(save_reward("gpt-neox", tmp_path, pad_token_id=2, num_hidden_layers=1))
    assert expected[3] == pytest.approx(expected[1], abs=1e-5)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    safetensors.numpy.save_file(tensors | {"score.bias": np.array([1.5], np.float32)}, path)
    np.testing.assert_allclose(ours(tmp_path, devices=2), expected + 1.5, atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "describes LlamaForCausalLM, not a sequence cl"),
        ({"architectures": None}, "describes no architecture, not a sequence classifier"),
        ({"model_type": "bert"}, "holds a model of the kind 'bert'; known are llama"),
        ({"hidden_size": 64}, r"score\.weight is of width 48, not 64"),
    ],
)
def test_what_is_no_reward_model_is_named(config, said, tmp_path):
    save_reward("llama", tmp_path, num_hidden_layers=1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(UserError, match=said):
        reward.open_source(tmp_path)


def test_a_classifier_of_two_classes_is_none(tmp_path):
    save_tokenizer(tmp_path)
    kind = "AutoModelForSequenceClassification"
    save("llama", tmp_path, kind=kind, num_labels=2, num_hidden_layers=1)
    with pytest.raises(UserError, match="has num_labels=2: a reward model has one output"):
        reward.open_source(tmp_path)
    with pytest.raises(UserError, match=r"there is no directory .*nowhere: a reward model is one"):
        reward.open_source(tmp_path / "nowhere")
