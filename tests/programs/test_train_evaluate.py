"""Evaluation during training: what it says is so, and the training does not notice it."""

import functools
import json
from pathlib import Path
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx

from srpo_jax import config as config_module
from srpo_jax import objectives, revision, train
from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.evaluation import during
from srpo_jax.judges import Verdicts
from srpo_jax.models import loading
from srpo_jax.models.lora import Adapter, Projection
from srpo_jax.runtime import distributed, metrics
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline, step
from srpo_jax.training.optimizer import make_optimizer
from srpo_jax.training.reference import Reference

pytestmark = pytest.mark.usefixtures("compiled_once")
make_mesh = mesh_module.make
STEPS = 5


class Longer:
    """Prefers the longer text; remembers what it was shown."""

    name, description, is_proxy = "longer", "", False
    shown: ClassVar[list[tuple[str, ...]]] = []

    def judge(self, prompts, a, b):
        self.shown.append(tuple(a))
        margins = [np.sign(len(x) - len(y)) for x, y in zip(a, b, strict=True)]
        return Verdicts(0.5 + 0.5 * np.array(margins, np.float64))


@pytest.fixture(scope="module", autouse=True)
def one_device_and_a_judge():
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(make_mesh, devices=jax.devices()[:1])
        patch.setattr(mesh_module, "make", one)
        patch.setattr(during.judges, "load", lambda *_, **__: Longer())
        yield


@pytest.fixture(autouse=True)
def nothing_shown():
    Longer.shown.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pairs of one size, so that one shape is compiled, and documents."""
    made = tmp_path_factory.mktemp("data")
    pairs = [Pair(f"{i:02}?", ("yes", "yep", "yay")[i % 3], "no way", 0.9) for i in range(17)]
    records.write_pairs(made / "pairs.jsonl", pairs)
    documents = [{"prompt": f"text {i}", "gold": "gold" * i} for i in range(1, 4)]
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (made / "documents.jsonl").write_text(lines)
    return made


def settings(folder):
    config = config_module.default()
    changes = {
        "model.source": "tiny",
        "model.dtype": "float32",
        "model.remat": "none",
        "data.pairs": str(folder / "pairs.jsonl"),
        "data.template": "plain",
        "data.held_out_count": 5,
        "train.steps": STEPS,
        "train.batch_size": 4,
        "train.checkpoint_every": 100,
        "train.evaluate_every": 2,
        "train.evaluate_documents": 3,
        "evaluate.documents": (str(folder / "documents.jsonl"),),
        "evaluate.revisions": 1,
        "sampling.max_new_tokens": 6,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 0,
    }
    config_module.update(config, changes, "test")
    return config


@pytest.fixture
def config(folder):
    return settings(folder)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """A run that evaluates."""
    workdir = tmp_path_factory.mktemp("whole")
    assert attempt(settings(folder), workdir)
    return workdir


def attempt(config, workdir: Path) -> bool:
    return train.train(config_module.checked(config), workdir)


def lines(workdir: Path) -> list[dict]:
    """Without the time that things took."""
    timed = ("time", "_per_second", "seconds", "seconds_90", "data_wait")
    found = metrics.read(workdir / "metrics.jsonl")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in found]


def evaluations(workdir: Path) -> list[dict]:
    return [line for line in lines(workdir) if "held_out/loss" in line]


def test_the_training_does_not_notice_it(config, whole, tmp_path):
    config.train.evaluate_every = 0
    assert attempt(config, tmp_path)
    assert lines(tmp_path) == [line for line in lines(whole) if "loss" in line]
    assert not (tmp_path / "held_out_scores.npz").exists()


def test_the_policy_starts_as_its_reference_and_what_is_held_out_is_learned_too(whole):
    found = evaluations(whole)
    assert [line["step"] for line in found] == [0, 2, 4, 5]
    assert found[0]["held_out/loss"] == pytest.approx(0.5 * 0.8**2 + 0.5 * 2 * 0.4**2)
    assert found[0]["held_out/margin"] == 0
    assert found[0]["held_out/accuracy_improve"] == 0.5
    assert found[-1]["held_out/loss"] < 0.8 * found[0]["held_out/loss"]
    assert {"reference/copy_advantage", "reference/beyond_copy"} <= found[0].keys()
    assert "revision/win_rate_own_1" in found[-1]


def test_a_run_that_stops_says_what_a_whole_one_says(config, whole, tmp_path, monkeypatch):
    asked = distributed.StopSignal.requested
    with monkeypatch.context() as patch:
        stop = lambda self, number: number == 3 or asked(self, number)
        patch.setattr(distributed.StopSignal, "requested", stop)
        assert not attempt(config, tmp_path)
    assert [line["step"] for line in evaluations(tmp_path)] == [0, 2]
    assert attempt(config, tmp_path)
    assert lines(tmp_path) == lines(whole)


def make(config, workdir: Path, mesh: jax.sharding.Mesh) -> tuple[during.Evaluation, nnx.State]:
    """An evaluation without a run, and parameters for it that are not the reference's."""
    given = config_module.checked(config)
    source = loading.open_source("tiny")
    objective = objectives.get(given.objective.name)
    hyper = {"beta": 0.1, "alpha": 0.5} if objective.name == "srpo" else {}
    _, held = train.prepare_data(given, workdir, source, objective)
    architecture = loading.decoder_config(given.model, given.lora)
    graphdef, trained, frozen = train.prepare_model(architecture, source, mesh, 0)
    optimizer, _ = make_optimizer(given.optimizer, STEPS)
    one = step.TrainStep(graphdef, optimizer, objective, hyper, mesh)
    programs = one.compile(trained)
    policy = Reference(programs.reference, (trained, frozen), architecture)
    asked = during.asked(given, workdir, source)
    evaluation = during.prepare(given, workdir, one, programs, frozen, policy, held, asked, {})
    moved = jax.tree.map(lambda x: x + 0.05 * np.cos(np.arange(x.size)).reshape(x.shape), trained)
    return evaluation, moved


def untimed(values: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in values.items() if not name.endswith("/seconds")}


@pytest.fixture
def adapted(config, tmp_path):
    """Adapters, on one device."""
    config.lora.rank = 2
    return make(config, tmp_path / "one", mesh_module.make())


@pytest.mark.parametrize("documents", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_eight_devices_say_what_one_says(config, adapted, tmp_path, documents):
    """Slow: with revisions; test_evaluate_hosts.py shows that their texts are the same everywhere."""
    one, trained = adapted
    expected = untimed(one(trained))
    if not documents:
        expected = {k: v for k, v in expected.items() if k.startswith("held_out/")}
    config.train.update({"batch_size": 16, "accumulate": 2, "evaluate_documents": documents})
    eight, trained = make(config, tmp_path / "eight", make_mesh(fsdp=4, tensor=2))
    found = untimed(eight(trained))
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # float32 sums of another order
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_numbers_are_those_of_the_train_steps_loss_and_of_a_merged_model(config, adapted):
    """A pair a row, by `TrainStep.loss`; the adapters added to the weights here; texts revised anew."""
    evaluation, trained = adapted
    found = evaluation(trained)
    one, data = evaluation.step, evaluation.data
    model = nnx.merge(one.graphdef, trained, evaluation.frozen)
    for _, part in nnx.iter_modules(model):
        if isinstance(part, Projection) and part.lora_a is not None:
            a, b, kernel = part.lora_a[...], part.lora_b[...], part.kernel[...]
            layers, rank = kernel.shape[0], a.shape[-1]
            more = a.reshape(layers, -1, rank) @ b.reshape(layers, rank, -1)
            part.kernel[...] = kernel + part.scale * more.reshape(kernel.shape)
            part.lora_b[...] = jax.numpy.zeros_like(b)
    _, none, merged = nnx.split(model, Adapter, ...)
    shape = data.packing(1, 0, packed=False).shapes[-1]
    batch = pipeline.collate([data.row([i], shape) for i in range(len(data))])
    loss, metrics = jax.jit(one.loss)(none, merged, batch, len(data), jax.random.key(0))
    for name, value in {"loss": loss, **metrics}.items():
        assert found[f"held_out/{name}"] == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    assert abs(found["held_out/loss"] - 0.48) > 0.01  # what it is when nothing was learned

    renderer = evaluation.asked.renderer
    prompts = [renderer.prompt(f"text {i}") for i in range(1, 4)]
    sampling = evaluation.settings.sampling
    written = revision.revise(model, renderer.tokenizer, prompts, 1, sampling)
    assert Longer.shown[0] == tuple(ys[0] for ys in written)
    assert Longer.shown[1] == tuple(ys[1] for ys in written)


def test_an_objective_without_reference_is_evaluated_too(config, tmp_path):
    config.objective.name = "sft"
    config.train.evaluate_documents = 0
    evaluation, trained = make(config, tmp_path, mesh_module.make())
    found = evaluation(trained)
    assert found["held_out/loss"] > 0
    assert all(name.startswith("held_out/") for name in found)
    assert not (tmp_path / "held_out_scores.npz").exists()


def test_an_endpoint_is_not_asked(config, tmp_path):
    config.judge.name = "llm"
    with pytest.raises(UserError, match=r"config\.judge\.name='llm' asks an endpoint.*documents=0"):
        attempt(config, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_documents_must_be_enough(config, tmp_path):
    config.train.evaluate_documents = 4
    with pytest.raises(UserError, match=r"evaluate_documents: documents \(validation\) has 3 doc"):
        attempt(config, tmp_path)
