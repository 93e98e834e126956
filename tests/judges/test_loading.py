"""Which judges are made from the settings, and which of them are one and the same."""

import json

import pytest

from srpo_jax import judges
from srpo_jax.judges import JudgeSettings
from srpo_jax.runtime.errors import UserError
from tests.judges.endpoint import Endpoint, prefers_good


def names(settings):
    return [judge.name for judge in judges.load_all(settings)]


def test_members_judge_beside_their_ensemble_and_are_the_same_objects():
    settings = JudgeSettings(
        "longer", label="long", others=("ensemble",), members=("longer", "shorter")
    )
    long, ensemble, short = judges.load_all(settings)
    assert [long.name, ensemble.name, short.name] == ["long", "ensemble", "shorter"]
    assert ensemble.members == (long, short)
    assert judges.load(settings) is not long
    assert names(JudgeSettings("ensemble", members=("longer", "shorter"))) == [
        "ensemble",
        "longer",
        "shorter",
    ]


def test_names_are_those_of_the_judges_in_their_order(monkeypatch):
    monkeypatch.setattr("srpo_jax.judges.embedding.Embedder", lambda: None)
    settings = JudgeSettings("embedding", label="proxy", others=("shorter", "longer"))
    assert judges.names(settings) == ("proxy", "shorter", "longer")
    assert names(settings) == ["proxy", "shorter", "longer"]


def test_what_a_member_has_been_asked_is_not_asked_again():
    pytest.importorskip("openai")
    endpoint = Endpoint(prefers_good)
    there = {"base_url": endpoint.url, "model": "m", "api_key_env": "", "cache": ""}
    settings = JudgeSettings(
        "llm", verdict="text", others=("ensemble",), members=("llm", "longer"), **there
    )
    asked = (["x"], ["good"], ["bad one"])
    try:
        said = [judge.judge(*asked).probabilities[0] for judge in judges.load_all(settings)]
    finally:
        endpoint.close()
    assert said == [1.0, 0.5, 0.0]
    assert len(endpoint.asked) == 2  # both orders


def test_other_judges_have_the_settings_of_the_section_or_of_their_file(tmp_path):
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps({"name": "shannon", "source": "tiny", "label": "bytes"}))
    own = JudgeSettings("longer", source="tiny", others=("shannon", str(path)))
    assert names(own) == ["longer", "shannon", "bytes"]
    with pytest.raises(UserError, match=r"config\.judge\.source is empty"):
        names(JudgeSettings("longer", others=("shannon",)))
    assert names(JudgeSettings("ensemble", members=("shorter", str(path))))[1:] == [
        "shorter",
        "bytes",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "ensemble"}, "members names fewer than two judges"),
        ({"name": "ensemble", "members": ("longer",)}, "members names fewer than two judges"),
        ({"name": "ensemble", "members": ("longer", "ensemble")}, "members names an ensemble"),
        ({"name": "ensemble", "members": ("longer", "oracle")}, r"members: oracle: .*must be 'emb"),
        ({"name": "longer", "others": ("none.json",)}, r"others: none\.json cannot be read"),
        ({"name": "longer", "others": ("longer",)}, "2 judges are called 'longer'"),
    ],
)
def test_what_cannot_be_made_is_named(settings, said):
    with pytest.raises(UserError, match=said):
        judges.load_all(JudgeSettings(**settings))


def test_an_endpoint_is_seen_in_an_ensemble_too():
    assert judges.asks_endpoint(JudgeSettings("llm"))
    assert judges.asks_endpoint(JudgeSettings("ensemble", members=("longer", "llm")))
    assert not judges.asks_endpoint(JudgeSettings("ensemble", members=("longer", "shorter")))


@pytest.mark.parametrize("changes", [{"name": "llm"}, {"others": ("llm",)}])
def test_what_an_endpoint_lacks_is_said_before_there_is_anything_to_judge(changes, monkeypatch):
    """Completions were written for an hour, and then the key was not set."""
    monkeypatch.setenv("SOME_KEY", "k")
    given = {"model": "m", "api_key_env": "NOBODY_SET_IT"} | changes
    with pytest.raises(UserError, match="NOBODY_SET_IT"):
        judges.check(JudgeSettings(**given))
    judges.check(JudgeSettings(**given | {"api_key_env": "SOME_KEY"}))
    judges.check(JudgeSettings(name="shorter"))
