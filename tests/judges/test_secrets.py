"""A key reaches the endpoint and nothing else: no setting, file, sentence or report."""

import json

import pytest

from srpo_jax.judges import JudgeSettings
from srpo_jax.judges.llm.judge import LlmJudge
from srpo_jax.runtime.errors import UserError
from tests.judges.endpoint import Endpoint, error

KEY = "sk-very-secret-1234"
pytest.importorskip("openai")


@pytest.fixture
def endpoint():
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


@pytest.mark.parametrize(
    "change",
    [
        {"base_url": f"https://me:{KEY}@host/v1"},
        {"base_url": f"https://{KEY}@host/v1"},
        {"base_url": f"https://host/v1?api-key={KEY}"},
        {"base_url": f"https://host/v1?version=2&access_token={KEY}"},
        {"headers": (f"Authorization=Bearer {KEY}",)},
        {"headers": (f"X-Api-Key={KEY}",)},
    ],
)
def test_a_key_in_a_setting_is_refused_and_not_repeated(change):
    with pytest.raises(UserError, match=r"would stand in config.json: put it in an") as raised:
        JudgeSettings(**change)
    assert KEY not in str(raised.value)


def test_addresses_and_headers_without_a_key_are_taken(monkeypatch):
    headers = ("X-Title=a run", "X-Key=$SOME_KEY")
    JudgeSettings(base_url="https://host:8000/v1?api-version=2024-06-01", headers=headers)
    monkeypatch.setenv("OPENAI_BASE_URL", f"https://me:{KEY}@host/v1")
    with pytest.raises(UserError, match=r"^OPENAI_BASE_URL holds a password"):
        LlmJudge(JudgeSettings(name="llm", model="m", api_key_env="", cache=""))


def test_nothing_that_is_written_or_said_holds_the_key(endpoint, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("SOME_KEY", KEY)
    settings = JudgeSettings(
        **{"name": "llm", "base_url": endpoint.url, "model": "m", "api_key_env": "SOME_KEY"},
        **{"verdict": "text", "backoff": 0.01, "headers": ("X-Key=$SOME_KEY",)},
    )
    judge = LlmJudge(settings, tmp_path)
    judge.judge(["x"], ["good"], ["bad"])
    assert f"Bearer {KEY}" in endpoint.headers[0].values()
    # An endpoint that repeats what it was sent
    endpoint.answer = lambda body: error(403, f"the key {KEY} may not do this")
    with pytest.raises(UserError, match="the key … may not do this") as raised:
        judge.judge(["y"], ["good"], ["bad"])
    said = [str(raised.value), judge.description, json.dumps(judge.facts), repr(settings)]
    assert not [text for text in [*said, *capfd.readouterr()] if KEY in text]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if KEY.encode() in path.read_bytes()]
