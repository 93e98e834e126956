"""A reward model trained by `train`: it learns, judges, is exported, and is refused as a policy."""

import functools
import json
import shutil

import jax
import numpy as np
import pytest

from srpo_jax import config as config_module
from srpo_jax import convert, judges, train
from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.judges import JudgeSettings
from srpo_jax.models import loading, reward
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import metrics
from srpo_jax.runtime.errors import UserError
from tests.checkpoints import save, save_tokenizer

pytestmark = pytest.mark.usefixtures("compiled_once")
make_mesh = mesh_module.make
LEARNED = [Pair(f"{i:02}?", ("yes", "sure", "fine")[i % 3], "no way", 0.95) for i in range(12)]
HELD_OUT = [Pair(f"{i:02}?", ("sure", "yes")[i % 2], "no way", 0.95) for i in range(20, 25)]


@pytest.fixture(scope="module", autouse=True)
def one_device():
    one = functools.partial(make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_module, "make", one)
        patch.setattr(mesh_module, "local", lambda width: one())
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("data")
    records.write_pairs(made / "pairs.jsonl", LEARNED)
    records.write_pairs(made / "held_out.jsonl", HELD_OUT)
    return made


def run(folder, workdir, **changes):
    config = config_module.default()
    given = {
        "objective.name": "reward",
        "model.source": "tiny",
        "model.dtype": "float32",
        "model.remat": "none",
        "data.pairs": str(folder / "pairs.jsonl"),
        "data.held_out": str(folder / "held_out.jsonl"),
        "data.template": "plain",
        "train.steps": 20,
        "train.batch_size": 4,
        "train.checkpoint_every": 100,
        "train.evaluate_every": 100,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 0,
    }
    config_module.update(config, given | changes, "test")
    assert train.train(config_module.checked(config), workdir)
    return workdir


@pytest.fixture(scope="module")
def adapted(folder, tmp_path_factory):
    return run(folder, tmp_path_factory.mktemp("run"), **{"lora.rank": 2})


def judge(source, **more):
    return judges.load(JudgeSettings("reward", source=str(source), dtype="float32", **more))


def scores(one, pairs):
    """[2, n] of chosen and rejected ones."""
    texts = ([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])
    return np.stack([one.scores([pair.prompt for pair in pairs], ys) for ys in texts])


def held_out(workdir):
    found = metrics.read(workdir / "metrics.jsonl")
    return [line for line in found if "held_out/loss" in line]


def test_it_learns_with_adapters_and_is_the_judge_it_was_when_it_was_trained(adapted):
    before, after = held_out(adapted)
    assert after["held_out/loss"] < 0.7 * before["held_out/loss"]
    assert after["held_out/accuracy"] == 1
    assert {"held_out/calibration_error", "held_out/margin"} <= after.keys()
    assert not (adapted / "reference_scores.npz").exists()

    one = judge(adapted, normalise=False)
    assert "prompts put as plain, float32" in one.description
    chosen, rejected = scores(one, HELD_OUT)
    assert chosen.mean() == pytest.approx(after["held_out/reward_chosen"], abs=1e-4)
    assert rejected.mean() == pytest.approx(after["held_out/reward_rejected"], abs=1e-4)
    said = one.probabilities(["30?"], ["yes"], ["no way"])
    assert said[0] > 0.6
    assert f"{adapted}@20, prompts" in one.description


def test_its_scores_have_mean_0_and_deviation_1_over_what_its_pairs_prefer(adapted, tmp_path):
    """By the judge's own way through text and padded batches, not the trainer's trees; verdicts stay."""
    raw, one = judge(adapted, normalise=False), judge(adapted)
    preferred, _ = scores(one, LEARNED)
    assert preferred.mean() == pytest.approx(0, abs=1e-4)
    assert preferred.std() == pytest.approx(1, abs=1e-4)
    before, after = scores(raw, HELD_OUT), scores(one, HELD_OUT)
    chosen, _ = scores(raw, LEARNED)
    np.testing.assert_allclose(after, (before - chosen.mean()) / chosen.std(), atol=1e-3)
    asked = ["30?"], ["yes"], ["no way"]
    assert one.probabilities(*asked) == pytest.approx(raw.probabilities(*asked), abs=1e-6)

    other = shutil.copytree(adapted, tmp_path / "other")
    scale = json.loads((other / "reward_scale.json").read_text())
    assert (scale["checkpoint"], scale["completions"]) == (20, len(LEARNED))
    (other / "reward_scale.json").write_text(json.dumps(scale | {"checkpoint": 10}))
    np.testing.assert_allclose(scores(judge(other), HELD_OUT), before, atol=1e-6)
    (other / "reward_scale.json").write_text("{}")
    with pytest.raises(UserError, match="is no scale of rewards"):
        judge(other)


def test_it_is_refused_as_a_model_that_writes_and_others_as_judges(adapted, tmp_path):
    with pytest.raises(UserError, match="is the run of a reward model, which writes nothing"):
        loading.load(str(adapted))
    other = shutil.copytree(adapted, tmp_path / "other")
    content = json.loads((adapted / "config.json").read_text())
    content["objective"]["name"] = "dpo"
    (other / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"judge\.source: .* is the run of a language model: give"):
        judge(other)
    with pytest.raises(UserError, match="is a reward model, whose head is no part of an adapter"):
        convert.export_model(str(adapted), tmp_path / "adapter", adapter=True)


@pytest.mark.slow
def test_its_export_is_a_sequence_classifier_of_transformers(folder, tmp_path):
    torch = pytest.importorskip("torch", reason="install srpo_jax[dev] to run this test")
    transformers = pytest.importorskip("transformers")
    save("llama", tmp_path / "base", num_hidden_layers=1, tie_word_embeddings=False)
    save_tokenizer(tmp_path / "base")
    more = {"model.source": str(tmp_path / "base"), "train.steps": 2, "train.evaluate_every": 0}
    workdir = run(folder, tmp_path / "run", **more)
    convert.export_model(str(workdir), tmp_path / "out", "float32")

    raw = {"normalise": False}
    one, back = judge(workdir, **raw), judge(tmp_path / "out", reward_template="plain", **raw)
    prompts = [pair.prompt for pair in HELD_OUT]
    texts = ["yes", "no way", "", "sure, why not", "fine"]
    expected = one.scores(prompts, texts)
    assert expected.std() > 0.1
    np.testing.assert_allclose(back.scores(prompts, texts), expected, atol=1e-4, rtol=0)
    kept = [reward.open_source(path).scale for path in (workdir, tmp_path / "out")]
    assert kept[0] is not None
    assert kept[0] == kept[1]

    kind = transformers.AutoModelForSequenceClassification
    theirs, said = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    ids = [list(one._scorer.ids(x, y)) for x, y in zip(prompts, texts, strict=True)]
    size = max(map(len, ids))
    padded = torch.tensor([[*row, *[0] * (size - len(row))] for row in ids])
    mask = torch.tensor([[int(i < len(row)) for i in range(size)] for row in ids])
    with torch.no_grad():
        logits = theirs.eval()(padded, attention_mask=mask).logits
    np.testing.assert_allclose(logits[:, 0].numpy(), expected, atol=1e-4, rtol=0)
    assert reward.open_source(tmp_path / "out").pad == 0


@pytest.mark.slow
def test_one_device_and_eight_learn_the_same(folder, tmp_path, monkeypatch):
    more = {
        "train.steps": 3,
        "train.batch_size": 8,
        "lora.rank": 2,
        "optimizer.learning_rate": 1e-3,
    }
    run(folder, tmp_path / "one", **more)
    monkeypatch.setattr(mesh_module, "make", make_mesh)
    run(folder, tmp_path / "eight", **more | {"mesh.fsdp": 4, "mesh.tensor": 2})
    read = lambda name: metrics.read(tmp_path / name / "metrics.jsonl")
    for one, eight in zip(read("one"), read("eight"), strict=True):
        for key in one.keys() & {"loss", "grad_norm", "held_out/loss", "held_out/reward_chosen"}:
            assert float(eight[key]) == pytest.approx(float(one[key]), rel=1e-3, abs=1e-5), key
