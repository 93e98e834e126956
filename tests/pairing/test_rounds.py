"""What a run of rounds says and refuses, and leaves in its workdir, before the first one."""

import dataclasses
import json
import types

import numpy as np
import pytest

from srpo_jax.config import Settings
from srpo_jax.judges import JudgeSettings
from srpo_jax.models import loading
from srpo_jax.objectives import ObjectiveSettings
from srpo_jax.pairing import rounds
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.optimizer import OptimizerSettings
from srpo_jax.training.settings import DataSettings, OnlineSettings, TrainSettings
from srpo_jax.trees.order import EARLIER, RULE, Order
from tests.models.test_gguf import weights, write


def test_a_run_keeps_what_says_its_model(tmp_path):
    """One that trains all weights is read without its source, as those of `train` are."""
    path = str(write(tmp_path / "model.gguf", weights()))
    source, task = loading.open_source(path), types.SimpleNamespace(prompts=[(1, 2)])
    rounds.own(Settings(), tmp_path / "run", source, path, task)
    kept = loading.open_source(str(tmp_path / "run" / loading.KEPT))
    assert kept.config == source.config
    assert json.loads((tmp_path / "run" / "run.json").read_text())["source"] == path


def settings(**sections):
    return dataclasses.replace(Settings(), train=TrainSettings(steps=5, batch_size=8), **sections)


def test_an_objective_of_pairs_is_said_not_to_be_read(capsys):
    """`train_online --config.objective.name=copg` learned by RLOO without a word."""
    rounds.report(settings(objective=ObjectiveSettings("copg", beta=0.3)))
    said = capsys.readouterr().out
    assert "objective rloo: beta=0.05, samples=4 (config.objective is of `train`" in said
    rounds.report(settings())
    assert "config.objective" not in capsys.readouterr().out


@pytest.mark.parametrize("unjudged", [0.75, 1.0])
def test_a_round_of_which_nothing_is_judged_is_told(unjudged, capsys):
    """A judge that never speaks let a run come to its end, having learned nothing, without a word."""
    lessons = types.SimpleNamespace(metrics={"unjudged": unjudged, "kl": 0.0})
    learner = types.SimpleNamespace(
        step=types.SimpleNamespace(policy=lambda model, frozen: model),
        frozen=None,
        experience=lambda *given: lessons,
        learn=lambda state, lessons, seed: (state, {}),
    )
    rollout = types.SimpleNamespace(
        update=lambda policy: None, generate=lambda prompts, samples, draw: None
    )
    task = types.SimpleNamespace(
        prompts=[(1,), (2,)],
        drawn=lambda number, count: [0, 1],
        rewards=lambda chosen, written: None,
    )
    state = rounds.OnlineState("model", "optimizer", np.array(0.05))
    _, said = rounds.one_round(settings(), 3, task, rollout, learner, state)
    assert said["unjudged"] == unjudged
    told = "warning: round 3 taught nothing" in capsys.readouterr().out
    assert told == (unjudged == 1)


def test_the_schedule_is_of_all_updates_and_refused_before_the_first_round(capsys):
    online = OnlineSettings(epochs=2, minibatches=4)
    assert rounds.updates(settings(online=online)) == 40
    rounds.report(settings(online=online))
    assert "warmup" not in capsys.readouterr().out
    rounds.report(settings())
    assert "warmup_steps=10 leave nothing of the 5 updates" in capsys.readouterr().out
    decaying = OptimizerSettings(schedule="wsd", decay_steps=31)
    with pytest.raises(UserError, match=r"decay_steps=31 are more than the 30 steps"):
        rounds.check(settings(online=online, optimizer=decaying))


def test_documents_without_gold_are_told_before_the_first_round(tmp_path):
    """A run came to the round that draws such a document, and could go no further."""
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "a text", "gold": "gold"}\n{"prompt": "another"}\n')
    given = settings(
        online=OnlineSettings(documents=str(path), count=2, reward="gold"),
        judge=JudgeSettings("shorter"),
        data=DataSettings(template="plain"),
    )
    with pytest.raises(UserError, match=r"reward=gold, and 1 of 2 documents have no gold"):
        rounds.prepare_task(given, tmp_path, loading.open_source("tiny"))


@pytest.mark.parametrize("rule", [EARLIER, RULE])
def test_rounds_draw_in_the_order_of_their_run(rule):
    order = Order(5, 1, rule)
    task = rounds.Task([None] * 5, order, [], None, None, "score")
    drawn = [task.drawn(number, 3) for number in range(1, 5)]
    assert [i for some in drawn for i in some] == order.take(0, 12).tolist()
