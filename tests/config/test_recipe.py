"""Recipes: each stage's settings in full, what it reads of earlier ones, and mistakes by name."""

import dataclasses
import json

import pytest

from srpo_jax import config as config_module
from srpo_jax.config import Settings
from srpo_jax.config.programs import RecipeSettings
from srpo_jax.config.recipe import resolve
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build

STAGES = (
    {"name": "golds", "program": "pairs", "set": {"pairs.goal": "gold", "pairs.count": 7}},
    {"name": "sft", "program": "train", "set": {"objective.name": "sft", "data.pairs": "{golds}"}},
    {"name": "srpo", "set": {"model.source": "{sft}@4", "objective": {"beta": 1}}},
    {
        "name": "report",
        "program": "evaluate",
        "set": {
            "evaluate.models": ["sft={sft}", "srpo={srpo}"],
            "evaluate.documents": [{"source": "x.jsonl", "name": "x", "fields": ["prompt=a"]}],
        },
    },
)


def recipe(stages=STAGES, **changes):
    return build(Settings, {"seed": 3, "recipe": {"stages": stages}, **changes}, "config")


def test_each_stage_has_its_own_settings_and_reads_what_earlier_ones_made(tmp_path):
    golds, sft, srpo, report = resolve(recipe(lora={"rank": 2}), tmp_path)
    assert [s.program for s in (golds, sft, srpo, report)] == [
        "pairs",
        "train",
        "train",
        "evaluate",
    ]
    assert golds.settings.pairs.count == 7
    assert sft.settings.pairs.count == Settings().pairs.count  # what one stage sets is its own
    assert sft.settings.data.pairs == str(tmp_path / "golds" / "pairs.jsonl")
    assert srpo.settings.model.source == f"{tmp_path / 'sft'}@4"
    assert srpo.settings.objective.beta == 1.0
    expected = (f"sft={tmp_path / 'sft'}", f"srpo={tmp_path / 'srpo'}")
    assert report.settings.evaluate.models == expected
    (documents,) = report.settings.evaluate.documents
    assert (documents.source, documents.fields) == ("x.jsonl", ("prompt=a",))
    assert [s.reads for s in (golds, sft, srpo, report)] == [
        set(),
        {"golds"},
        {"sft"},
        {"sft", "srpo"},
    ]
    for stage in (golds, sft, srpo, report):
        assert stage.folder == tmp_path / stage.name
        assert (stage.settings.seed, stage.settings.lora.rank) == (3, 2)
        # A stage's workdir is as its program alone would have made it.
        assert stage.settings.recipe == RecipeSettings()


def test_a_recipe_goes_through_a_dictionary_and_json_unchanged(tmp_path):
    settings = recipe()
    assert config_module.checked(config_module.config_dict(settings)) == settings
    config_module.save(settings, tmp_path / "config.json")
    assert config_module.read(tmp_path / "config.json") == settings


def test_a_stage_is_finished_with_the_settings_it_was_finished_with(tmp_path):
    stage = resolve(recipe(), tmp_path)[1]
    assert not stage.is_finished()
    stage.finish()
    assert stage.is_finished()
    kept = json.loads((tmp_path / "sft" / "finished.json").read_text())
    assert kept["objective.name"] == "sft"
    older = {key: value for key, value in kept.items() if key != "reference.source"}
    older["model.remat"] = "dots"  # earlier versions kept it
    (tmp_path / "sft" / "finished.json").write_text(json.dumps(older))
    assert stage.is_finished()  # there was one reference then
    assert not resolve(recipe(reference={"source": "x"}), tmp_path)[1].is_finished()
    how = {"model": {"remat": "none"}, "train": {"log_every": 7}}
    for other in (
        {"mesh": {"fsdp": 1}},
        how,
        {"judge": {"name": "longer"}},
    ):  # which it does not read
        assert resolve(recipe(**other), tmp_path)[1].is_finished()
    moved = dataclasses.replace(stage.settings.data, cache="elsewhere")
    settings = dataclasses.replace(stage.settings, data=moved)
    assert dataclasses.replace(stage, settings=settings).is_finished()
    assert not resolve(recipe(seed=4), tmp_path)[1].is_finished()
    assert not dataclasses.replace(stage, program="pairs").is_finished()


def test_a_temperature_that_a_program_has_of_its_own_is_none_of_its_settings(tmp_path):
    """Pairs are drawn at config.pairs.temperature, whatever answers are evaluated at."""
    online = {"name": "rounds", "program": "train_online", "set": {}}
    stages = resolve(recipe((*STAGES, online)), tmp_path)
    golds, report, rounds = stages[0], stages[3], stages[4]
    for stage in (golds, report):
        made = stage.made if stage is golds else stage.folder / "report" / "results.json"
        made.parent.mkdir(parents=True)
        made.write_text("")
    for stage in stages:
        stage.finish()
    warm = resolve(recipe((*STAGES, online), sampling={"temperature": 0.7, "top_p": 0.9}), tmp_path)
    assert [stage.is_finished() for stage in warm] == [True, True, True, False, True]
    assert rounds.is_finished()
    assert report.is_finished()


def test_what_was_deleted_to_be_made_anew_is_not_finished(tmp_path):
    golds, _, _, report = resolve(recipe(), tmp_path)
    for stage, made in ((golds, golds.made), (report, report.folder / "report/results.json")):
        made.parent.mkdir(parents=True)
        made.write_text("")
        stage.finish()
        assert stage.is_finished()
        made.unlink()
        assert not stage.is_finished()


def test_braces_that_name_nothing_are_left_alone(tmp_path):
    given = 'chat_template_kwargs={"enable_thinking": false, "of": {}}'
    own = {"name": "last", "set": {"judge.parameters": (given,), "data.pairs": "{golds}"}}
    *_, last = resolve(recipe((*STAGES, own)), tmp_path)
    assert last.settings.judge.parameters == (given,)
    assert last.reads == {"golds"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "sft"}, "two stages are called 'sft'"),
        ({"name": "a/b"}, r"\.name='a/b' must be a name of letters"),
        ({"program": "tune"}, r"\.program='tune' must be 'pairs', 'train', 'train_online' or"),
        ({"set": "x=1"}, r"\.set='x=1' must be a dictionary of texts"),
        ({"setting": {}}, r"setting=\{\} is not a setting"),
        ({"set": {"train.stepps": 1}}, "stage 'last': set: train.stepps=1 is not a setting"),
        ({"set": {"train.steps": "many"}}, "stage 'last': set: train.steps='many'"),
        ({"set": {"train.steps": 0}}, "stage 'last': config.train.steps=0 must be at least 1"),
        (
            {"set": {"data.pairs": "{gold}"}},
            r"stage 'last': \{gold\} names no earlier stage: golds",
        ),
        ({"set": {"data.pairs": "{last}"}}, r"\{last\} names no earlier stage"),
        ({"program": "evaluate"}, "stage 'last': nothing is evaluated: set evaluate.models"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change, said, tmp_path):
    with pytest.raises(UserError, match=said):
        resolve(recipe((*STAGES, {"name": "last", **change})), tmp_path)


def test_a_file_without_stages_is_no_recipe(tmp_path):
    with pytest.raises(UserError, match=r"config\.recipe\.stages is empty"):
        resolve(Settings(), tmp_path)
