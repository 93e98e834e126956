"""The program `train_online` as a user sees it: it learns, resumes, refuses."""

import functools
import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from srpo_jax import config as config_module
from srpo_jax import recipe, train, train_online
from srpo_jax.config import Settings
from srpo_jax.config.alternate import as_recipe
from srpo_jax.config.programs import AlternateSettings
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models import loading
from srpo_jax.pairing import rounds as rounds_module
from srpo_jax.runtime import distributed, metrics
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build

pytestmark = pytest.mark.usefixtures("compiled_once")
make_mesh = mesh_module.make


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One of the eight virtual devices: compiles fastest."""
    one = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(mesh_module, "make", one)


@pytest.mark.parametrize("alternate", [False, True])
def test_phases_without_the_switch_are_told(alternate, monkeypatch, tmp_path, capsys):
    """configs/alternate_tiny.py without --alternate was 40 rounds of rloo, without a word."""
    for name in ("train", "train_in_phases", "keep_compiled"):
        monkeypatch.setattr(train_online, name, lambda *given: True)
    phases = build(AlternateSettings, {"phases": ({"objective": "copg"},)}, "config.alternate")
    train_online.main(Settings(alternate=phases), tmp_path, alternate)
    assert ("alternate.phases is not read" in capsys.readouterr().out) == (not alternate)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "documents.jsonl"
    lines = [json.dumps({"prompt": f"Say {i}.", "gold": "ok"}) for i in range(8)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def config(documents) -> ConfigDict:
    return small(documents)


def small(documents) -> ConfigDict:
    config = config_module.default()
    config.model.update({"source": "tiny", "dtype": "float32", "remat": "none"})
    config.data.template = "plain"
    config.judge.name = "shorter"
    config.sampling.update({"max_new_tokens": 4, "batch_size": 8})
    config.online.update({"documents": str(documents), "count": 8, "samples": 2})
    config.online.update({"objective": "ppo", "minibatches": 2, "epochs": 2, "kl_target": 1.0})
    config.train.update({"steps": 4, "batch_size": 4, "checkpoint_every": 100})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    return config


def attempt(config, workdir) -> bool:
    """As the command line does it: the settings are checked, then the run is made."""
    return train_online.train(config_module.checked(config), workdir)


def weights(workdir) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(loading.load(str(workdir), dtype="float32")))
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in flat}


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(config, tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert attempt(config, whole)
    asked = distributed.StopSignal.requested

    def requested(self, number):
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(distributed.StopSignal, "requested", requested)
        assert not attempt(config, parts)
    assert "stopped at round 2 of 4" in capsys.readouterr().out
    assert attempt(config, parts)
    assert "resuming at round 2 of 4" in capsys.readouterr().out
    one, other = (metrics.read(path / "metrics.jsonl") for path in (whole, parts))
    for a, b in zip(one, other, strict=True):
        numbers = [k for k in a if k != "time" and not k.startswith("seconds_")]
        assert {k: a[k] for k in numbers} == {k: b[k] for k in numbers}
    assert one[0]["beta"] != one[-1]["beta"], "the coefficient is adapted, and goes on where it was"
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(value, weights(parts)[name])
    assert attempt(config, parts)
    assert "is finished: round 4 of 4" in capsys.readouterr().out

    said = {
        *("reward", "reward_spread", "kl", "entropy", "ratio", "clip_fraction", "loss_value"),
        *("explained_variance", "length", "ended", "rollout_gap", "beta", "loss", "grad_norm"),
        *("unjudged", "seconds_write", "seconds_reward", "seconds_learn"),
    }
    assert set(one[-1]) == said | {"step", "time"}

    config.online.documents = str(tmp_path / "others.jsonl")
    (tmp_path / "others.jsonl").write_text(json.dumps({"prompt": "x"}) + "\n")
    config.online.count = 1
    with pytest.raises(UserError, match=r"holds a run with online\.documents="):
        attempt(config, parts)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"online.minibatches": 3}, r"train\.batch_size=4 prompts cannot be cut into .*=3 equal"),
        ({"lora.rank": 2, "lora.dropout": 0.1}, r"lora\.dropout=0\.1: the policy that learns"),
        (
            {"train.router_loss": 0.1},
            r"train\.router_loss=0\.1: train_online has no load-balancing",
        ),
        ({"train.keep_best": 1}, r"keep_best_by=held_out/loss, which nothing measures"),
        ({"objective.name": "reward"}, r"objective\.name=reward: train_online trains a policy"),
        ({"online.count": 9}, r"has 8 documents of at most .* fewer than the 9 asked for"),
        ({"sampling.max_new_tokens": 5000}, r"prompt 0 needs .* and 5000 to be written"),
        ({"online.objective": "grpo"}, r"config\.online\.objective='grpo' must be"),
        ({"online.samples": 1}, r"config\.online\.samples=1 must be at least 2"),
    ],
)
def test_what_cannot_be_done_is_said(config, tmp_path, changes, said):
    config_module.update(config, changes, "test")
    with pytest.raises(UserError, match=said):
        attempt(config, tmp_path)


def test_prompts_are_put_as_the_settings_say(config, tmp_path, monkeypatch):
    """Evaluation takes them from the run's config.json, so they must be those that it learned under."""
    tokenizer = ByteTokenizer()
    monkeypatch.setattr(
        type(tokenizer),
        "chat_template",
        "{{ day }}{% for m in messages %}{{ m.content }}{% endfor %}",
    )
    found = []
    for arguments in (("day=Monday",), ("day=Sunday",)):
        config.data.update({"template": "chat", "template_arguments": arguments})
        settings = config_module.checked(config)
        task = rounds_module.prepare_task(settings, tmp_path, loading.open_source("tiny"))
        found.append(tokenizer.decode(task.prompts[0]))
    assert [text[:6] for text in found] == ["Monday", "Sunday"]


@pytest.mark.slow
def test_what_a_run_keeps_and_what_it_goes_on_upon(config, tmp_path):
    config.train.update({"checkpoint_every": 1, "keep_checkpoints": 1, "keep_every": 2, "steps": 3})
    config.train.update({"keep_best": 1, "keep_best_by": "reward", "writers": ()})
    assert attempt(config, tmp_path / "first")
    kept = sorted(int(path.name) for path in (tmp_path / "first" / "checkpoints").iterdir())
    best = max(metrics.read(tmp_path / "first" / "metrics.jsonl"), key=lambda line: line["reward"])
    assert kept == sorted({2, 3, best["step"]})
    assert not (tmp_path / "first" / "tensorboard").exists()

    source = tmp_path / "first"
    config.model.source, config.lora.rank = str(source), 2
    asked = distributed.StopSignal.requested
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.StopSignal, "requested", lambda *_: True)
        assert not attempt(config, tmp_path / "second")
    assert distributed.StopSignal.requested is asked
    shutil.rmtree(source / "checkpoints" / "3")
    (source / "checkpoints" / "2").rename(source / "checkpoints" / "3")
    with pytest.raises(UserError, match="was begun with weights of its reference, or"):
        attempt(config, tmp_path / "second")


def test_a_loss_that_is_no_number_ends_the_run(config, tmp_path):
    config.optimizer.learning_rate = 1e30
    with pytest.raises(UserError, match=r"no number in round \d; the checkpoint of round 0"):
        attempt(config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["ppo"])
def test_the_tiny_task_reaches_its_optimum(documents, tmp_path, objective):
    """To end at once, for a reward of 0; over 10 rounds, as these are drawn."""
    from configs import online_tiny

    config = online_tiny.get_config()
    config.online.update({"documents": str(documents), "count": 8, "objective": objective})
    assert attempt(config, tmp_path)
    first, *rounds = metrics.read(tmp_path / "metrics.jsonl")
    assert first["ended"] < 0.2
    assert np.mean([line["reward"] for line in rounds[-10:]]) > -0.1
    assert np.mean([line["ended"] for line in rounds[-10:]]) > 0.99


def alternating(documents) -> ConfigDict:
    """Three steps of SRPO on pairs of the policy's own, and three rounds of CoPG."""
    config = small(documents)
    config.pairs.update({"documents": str(documents), "count": 6, "choose": "first"})
    config.online.update({"minibatches": 1, "epochs": 1, "kl_target": 0.0})
    # Enough of them that the completions of a prompt differ in words, and there is something to learn.
    config.online.samples = config.sampling.max_new_tokens = 8
    config.train.update({"steps": 3, "batch_size": 2, "checkpoint_every": 1})
    return config


def attempt_phases(config, workdir) -> bool:
    return train_online.train_in_phases(config_module.checked(config), workdir)


@pytest.fixture(scope="module")
def phases(documents, tmp_path_factory):
    """Phases that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("phases")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_module, "make", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert attempt_phases(alternating(documents), workdir)
    assert max(line["grad_norm"] for line in lines(workdir / "2-copg")) > 0
    return workdir


class Killed(BaseException):
    pass


def lines(path) -> list[dict]:
    """The metrics of a phase, those of the clock apart."""
    found = metrics.read(path / "metrics.jsonl")
    return [{k: v for k, v in x.items() if "second" not in k and k != "time"} for x in found]


@pytest.mark.slow
def test_phases_follow_each_other_and_go_on_where_they_were_killed(
    documents, phases, tmp_path, monkeypatch, capsys
):
    """In a step of SRPO and in a round of CoPG; then to the bit."""
    config = alternating(documents)

    def requested(self, number):
        if number == 2:
            raise Killed

    for last in ("1-srpo", "2-copg"):
        with monkeypatch.context() as patch:
            patch.setattr(distributed.StopSignal, "requested", requested)
            with pytest.raises(Killed):
                attempt_phases(config, tmp_path)
        if last == "1-srpo":
            assert recipe.run(as_recipe(config_module.checked(config)), tmp_path, until=last)
    assert [path.name for path in (tmp_path / "2-copg" / "checkpoints").iterdir()] == ["1"]
    assert attempt_phases(config, tmp_path)
    said = capsys.readouterr().out
    assert "resuming at round 1 of 3" in said
    assert f"the policy is in {tmp_path / '2-copg'}" in said
    for name in ("1-srpo", "2-copg"):
        assert lines(tmp_path / name) == lines(phases / name)
        expected = weights(phases / name)
        for key, value in weights(tmp_path / name).items():
            np.testing.assert_array_equal(value, expected[key], err_msg=key)
    written = [(path / "1-pairs" / "pairs.jsonl").read_text() for path in (phases, tmp_path)]
    assert written[0] == written[1]
    # CoPG begins with what SRPO left, which is its reference, too.
    assert lines(phases / "2-copg")[0]["kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.slow
def test_another_reference_than_the_policy_as_it_starts(documents, phases, tmp_path):
    config = alternating(documents)
    config.model.source = str(phases / "2-copg")
    config.reference.source = f"{phases / '1-srpo'}@2"
    config.train.steps = 1
    config.online.objective = "copg"
    config.data.pairs = str(phases / "1-pairs" / "pairs.jsonl")
    assert attempt(config, tmp_path / "online")
    assert train.train(config_module.checked(config), tmp_path / "pairs")
    for name, key in (("online", "kl"), ("pairs", "log_ratio")):
        (line,) = lines(tmp_path / name)
        assert abs(line[key]) > 1e-3, name  # 0 where the policy is its own reference
    for source, said in (("tiny", "has no weights: train it first"), ("none", "is neither 'tiny'")):
        config.reference.source = source
        with pytest.raises(UserError, match=rf"config\.reference\.source.*{said}"):
            attempt(config, tmp_path / source)
