"""The recipe program: which stages run, and when none does again. Their programs have tests of their own;
.ci/run runs a whole recipe."""

import pytest

from srpo_jax import recipe
from srpo_jax.config import Settings
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build

STAGES = (
    {"name": "golds", "program": "pairs", "set": {"pairs.goal": "gold"}},
    {"name": "sft", "set": {"objective.name": "sft", "data.pairs": "{golds}", "train.steps": 7}},
    {"name": "report", "program": "evaluate", "set": {"evaluate.models": ("sft={sft}",)}},
)


@pytest.fixture
def ran(monkeypatch):
    """What has run, (program, folder's name, settings); training ends early while `stopping` is set."""

    class Ran(list):
        stopping = False

    calls = Ran()

    def train(settings, folder):
        calls.append(("train", folder.name, settings))
        return not calls.stopping

    def make_pairs(settings, folder, output):
        assert output == folder / "pairs.jsonl"
        folder.mkdir(exist_ok=True)
        output.touch()
        calls.append(("pairs", folder.name, settings))

    def evaluate(settings, folder, models, *, title, facts):
        assert not models
        (folder / "report").mkdir(parents=True, exist_ok=True)
        (folder / "report" / "results.json").touch()
        calls.append(("evaluate", folder.name, (title, facts)))

    for name, stub in (("train", train), ("make_pairs", make_pairs), ("evaluate", evaluate)):
        monkeypatch.setattr(recipe, name, stub)
    return calls


def settings(**changes):
    return build(Settings, {"recipe": {"stages": STAGES}, **changes}, "config")


def order(calls):
    return [name for _, name, _ in calls]


def test_stages_run_in_order_once(ran, tmp_path, capsys):
    assert recipe.run(settings(), tmp_path)
    assert order(ran) == ["golds", "sft", "report"]
    assert ran[1][2].data.pairs == str(tmp_path / "golds" / "pairs.jsonl")
    assert "2 of 3. sft (train)" in capsys.readouterr().out
    assert recipe.run(settings(), tmp_path)
    assert len(ran) == 3
    assert f"{tmp_path / 'sft'} is finished" in capsys.readouterr().out


def test_the_report_says_how_its_models_were_trained(ran, tmp_path):
    recipe.run(settings(evaluate={"title": "A title"}, lora={"rank": 4}), tmp_path)
    title, facts = ran[-1][2]
    assert title == "A title"
    assert facts == [("sft", "sft, learning rate 0.0001, LoRA rank 4, 7 steps of 8")]


def test_a_stopped_stage_goes_on_and_a_changed_one_runs_again(ran, tmp_path):
    ran.stopping = True
    assert not recipe.run(settings(), tmp_path)
    assert order(ran) == ["golds", "sft"]
    ran.stopping = False
    ran.clear()
    assert recipe.run(settings(), tmp_path)
    assert order(ran) == ["sft", "report"]
    ran.clear()
    assert recipe.run(settings(evaluate={"count": 9}), tmp_path)
    assert order(ran) == ["report"]
    ran.clear()
    (tmp_path / "golds" / "finished.json").unlink()
    assert recipe.run(settings(evaluate={"count": 9}), tmp_path)
    assert order(ran) == ["golds", "sft", "report"]  # what reads it, and what reads that


def test_what_reads_a_stage_that_ran_again_runs_again_in_a_later_command_too(ran, tmp_path):
    assert recipe.run(settings(), tmp_path)
    ran.clear()
    assert recipe.run(settings(optimizer={"learning_rate": 1.0}), tmp_path, until="sft")
    assert order(ran) == ["sft"]
    assert recipe.run(settings(optimizer={"learning_rate": 1.0}), tmp_path)
    assert order(ran) == ["sft", "report"]


def test_what_reads_it_in_another_list_of_stages_runs_again_too(ran, tmp_path):
    """As configs/real_text.py has its test behind the stages of its validation: its report stayed as it
    was when a model was trained anew in between."""
    other = {"name": "test", "program": "evaluate", "set": {"evaluate.models": ("sft={sft}",)}}
    with_test = {"recipe": {"stages": (*STAGES[:2], other)}}
    assert recipe.run(settings(**with_test), tmp_path)
    ran.clear()
    faster = {"optimizer": {"learning_rate": 1.0}}
    assert recipe.run(settings(**faster), tmp_path)
    assert order(ran) == ["sft", "report"]
    ran.clear()
    assert recipe.run(settings(**faster, **with_test), tmp_path)
    assert order(ran) == ["test"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"schedule": "wsd"}}, r"stage 'sft': config\.optimizer\.schedule=wsd"),
        ({"train": {"keep_best": 1}}, r"stage 'sft': .*keep_best=1 .*which nothing measures"),
        ({"judge": {"name": "llm"}}, r"stage 'report': config\.judge\.model is empty"),
        ({"judge": {"name": "overlap"}}, r"stage 'report': the judge overlap .*leave gold out"),
        ({"evaluate": {"against": ["baseline:dpo"]}}, r"stage 'report': .*no model 'dpo'"),
    ],
)
def test_what_a_later_stage_would_refuse_is_said_before_the_first(ran, tmp_path, changes, said):
    """It was said when the stages before had run, a night later."""
    with pytest.raises(UserError, match=said):
        recipe.run(settings(**changes), tmp_path)
    assert not ran


def test_until_ends_behind_a_stage(ran, tmp_path):
    assert recipe.run(settings(), tmp_path, until="sft")
    assert order(ran) == ["golds", "sft"]
    with pytest.raises(UserError, match="--until=dpo is no stage: golds, sft, report"):
        recipe.run(settings(), tmp_path, until="dpo")
