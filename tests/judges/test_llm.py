"""The LLM judge against a local stand-in: what it asks, what it makes of it, what it keeps."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from srpo_jax import judges
from srpo_jax.data.records import Message
from srpo_jax.judges.llm import LlmJudge, prompts
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime.errors import UserError
from tests import processes
from tests.judges.endpoint import Endpoint, error, prefers_good, question, reply, slowly

pytest.importorskip("openai")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def make(endpoint: Endpoint, folder: Path | str = ".", **more) -> LlmJudge:
    settings = {
        **{"name": "llm", "base_url": endpoint.url, "model": "m", "api_key_env": "", "cache": ""},
        **{"verdict": "text", "backoff": 0.01, **more},
    }
    return LlmJudge(JudgeSettings(**settings), folder)


def numbered(n: int) -> tuple[list[str], list[str], list[str]]:
    """n prompts, each with a good completion and a bad one."""
    return [f"x{i}" for i in range(n)], ["good"] * n, ["bad"] * n


def test_both_orders_are_asked_and_agree(endpoint):
    endpoint.answer = prefers_good
    judge = make(endpoint)
    found = judge.judge(["x", "x", "x"], ["good", "bad", "poor"], ["bad", "good", "bad"])
    assert found.probabilities.tolist() == [1.0, 0.0, 0.5]
    assert found.orders.tolist() == [[1.0, 0.0, 0.5], [1.0, 0.0, 0.5]]
    assert found.missing == {}
    asked = {question(body) for body in endpoint.asked}
    for a, b in (("good", "bad"), ("bad", "good")):
        assert prompts.SUMMARY.question.format(prompt="x", a=a, b=b) in asked
    # The second pair is the first in the other order: nothing new to ask.
    assert len(endpoint.asked) == len(asked) == judge.cost()["requests"] == 4


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_favours_a_position_is_seen_in_the_orders(endpoint, letter):
    endpoint.answer = lambda body: letter
    found = make(endpoint).judge(*numbered(5))
    assert found.probabilities.tolist() == [0.5] * 5
    first = 1.0 if letter == "A" else 0.0
    assert found.orders.tolist() == [[first] * 5, [1 - first] * 5]


def test_equal_completions_are_not_asked_about(endpoint):
    found = make(endpoint).judge(["x"], ["a"], ["a"])
    assert found.probabilities.tolist() == [0.5]
    assert np.isnan(found.orders).all()  # nothing was said
    assert found.missing == {}
    assert endpoint.asked == []


def soft(body):
    """Verdicts that depend on the question in an irregular way."""
    p = (hash(question(body)) % 997 + 1) / 1000
    listed = [{"token": "A", "logprob": math.log(p)}, {"token": "B", "logprob": math.log(1 - p)}]
    said = "A" if p > 0.5 else "B"
    return reply(said, logprobs=[{"token": said, "logprob": -1.0, "top_logprobs": listed}])


def test_swapping_the_sides_gives_exactly_the_rest(endpoint):
    endpoint.answer = soft
    judge = make(endpoint, verdict="logprobs")
    xs, a, b = numbered(40)
    one, other = judge.judge(xs, a, b), judge.judge(xs, b, a)
    assert len(endpoint.asked) == 80
    assert len(set(one.probabilities)) > 30
    assert (other.probabilities == 1 - one.probabilities).all()
    assert (one.probabilities == 1 - other.probabilities).all()
    assert (other.probabilities + one.probabilities == 1).all()
    assert (other.orders == 1 - one.orders[::-1]).all()
    assert endpoint.asked[0]["logprobs"] is True
    assert endpoint.asked[0]["top_logprobs"] == 5


# Where verdicts are read.


def test_auto_takes_log_probabilities_where_they_are(endpoint):
    endpoint.answer = lambda body: soft(body) if body.get("logprobs") else "tie"
    judge = make(endpoint, verdict="auto")
    found = judge.judge(*numbered(3))
    assert len(set(found.orders.ravel())) > 2
    assert judge.facts["verdict"] == "logprobs"
    assert len(endpoint.asked) == 6


def test_auto_takes_structured_output_next(endpoint):
    def answer(body):
        if "logprobs" in body:
            return error(400, "logprobs are not supported", param="logprobs")
        assert body["response_format"]["json_schema"]["schema"]["properties"]["verdict"] == {
            "type": "string",
            "enum": ["A", "B", "tie"],
        }
        assert "Answer in JSON" in question(body)
        return json.dumps({"verdict": prefers_good(body)})

    endpoint.answer = answer
    judge = make(endpoint, verdict="auto")
    assert judge.probabilities(*numbered(3)).tolist() == [1.0] * 3
    assert judge.facts["verdict"] == "json"
    assert len(endpoint.asked) == 7


def test_what_verdicts_depend_on_is_told_where_it_is_not_the_default(endpoint):
    usual = make(endpoint, verdict="logprobs", label_mass=0.1, top_logprobs=5).facts
    other = make(endpoint, verdict="logprobs", label_mass=0.5, top_logprobs=20, system=False).facts
    assert other == usual | {"system": "False", "label_mass": "0.5", "top_logprobs": "20"}


@pytest.mark.parametrize("refuses", [True, False])
def test_auto_takes_the_text_last_and_remembers(endpoint, tmp_path, refuses):
    """Some endpoints refuse what they do not know, others overlook it."""

    def answer(body):
        if refuses and {"logprobs", "response_format"} & set(body):
            return error(422, "Unexpected fields in the request")
        return prefers_good(body)

    endpoint.answer = answer
    for _ in range(2):
        judge = make(endpoint, tmp_path, verdict="auto", cache="answers.sqlite")
        assert judge.probabilities(*numbered(3)).tolist() == [1.0] * 3
        assert judge.facts["verdict"] == "text"
        # What the endpoint overlooked was an answer: it is not asked for again.
        assert len(endpoint.asked) == (8 if refuses else 7)


def test_log_probabilities_that_were_asked_for_and_are_not_there(endpoint):
    with pytest.raises(UserError, match=r"no log-probabilities: set config\.judge\.verdict"):
        make(endpoint, verdict="logprobs").judge(*numbered(1))


def test_an_answer_that_is_no_verdict_is_asked_for_once_more(endpoint):
    said = iter(["Both have merits.", "A"])
    endpoint.answer = lambda body: next(said, "B")
    judge = make(endpoint, concurrency=1)
    assert judge.probabilities(["x"], ["a"], ["b"]).tolist() == [1.0]
    assert endpoint.asked[1]["messages"][2:] == prompts.reminder(
        prompts.SUMMARY, "Both have merits."
    )


# What is sent.


def test_parameters_are_sent_as_set(endpoint):
    make(endpoint).judge(*numbered(1))
    sent = {k: v for k, v in endpoint.asked[0].items() if k != "messages"}
    assert sent == {"model": "m", "temperature": 0.0, "seed": 0, "max_tokens": 4096}
    make(
        endpoint,
        **{"max_tokens_name": "max_completion_tokens", "max_tokens": 9, "top_p": 0.5},
        **{"reasoning_effort": "low", "drop": ("temperature", "seed")},
        parameters=('provider={"order": ["x"]}', "top_k=4", 'user="me"'),
    ).judge(*numbered(1))
    sent = {k: v for k, v in endpoint.asked[-1].items() if k not in ("messages", "model")}
    assert sent == {
        **{"max_completion_tokens": 9, "top_p": 0.5, "reasoning_effort": "low"},
        **{"provider": {"order": ["x"]}, "top_k": 4, "user": "me"},
    }


def test_key_and_headers(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    headers = ("X-Title=a run", "X-Key=$SOME_KEY")
    make(endpoint, api_key_env="SOME_KEY", headers=headers).judge(*numbered(1))
    sent = {name.lower(): value for name, value in endpoint.headers[0].items()}
    assert sent["authorization"] == "Bearer secret"
    assert sent["x-title"] == "a run"
    assert sent["x-key"] == "secret"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": ("top_k",)}, r"config\.judge\.parameters has 'top_k'"),
        ({"parameters": ("user=me",)}, "NAME=JSON"),
        ({"parameters": ('model="n"',)}, "cannot have"),
        ({"headers": ("X",)}, r"config\.judge\.headers"),
        ({"headers": ("X=$NO_SUCH_VARIABLE",)}, "not set"),
        ({"drop": ("temprature",)}, r"config\.judge\.drop has temprature.*temperature, seed"),
        ({"model": ""}, r"config\.judge\.model is empty"),
        ({"api_key_env": "NO_SUCH_KEY"}, r"NO_SUCH_KEY.*config\.judge\.api_key_env"),
        ({"template": "sumary"}, r"config\.judge\.template=sumary is none of summary, chat"),
    ],
)
def test_settings_at_fault_are_named(endpoint, change, said):
    with pytest.raises(UserError, match=said):
        make(endpoint, **change)


def test_missing_package_names_the_extra(endpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="extra `eval`"):
        make(endpoint)


def test_no_address_means_the_clients_default(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    judge = make(endpoint, base_url="")
    assert judge.probabilities(["x"], ["a"], ["b"]).tolist() == [0.5]
    assert endpoint.url in judge.description


def test_unequal_lengths_are_refused(endpoint):
    with pytest.raises(UserError, match=r"completions b \(2\)"):
        make(endpoint).probabilities(["x"], ["a"], ["b", "c"])


def test_no_more_requests_at_once_than_allowed(endpoint):
    endpoint.answer = slowly(prefers_good, 0.02)
    make(endpoint, concurrency=3).judge(*numbered(6))
    assert 1 < endpoint.most <= 3


def test_no_more_requests_a_minute_than_allowed(endpoint):
    began = time.monotonic()
    make(endpoint, requests_per_minute=600.0).judge(*numbered(3))
    assert time.monotonic() - began > 0.45


# Templates.


def test_a_conversation_is_rendered_readably(endpoint):
    x = (Message("system", "Be kind."), Message("user", "Hi {a}"), Message("assistant", "Hello"))
    make(endpoint, template="chat").judge([(*x, Message("user", "Why?"))], ["one"], ["two"])
    asked = endpoint.question(0)
    shown = (
        "[SYSTEM]\nBe kind.\n\n[USER]\nHi {a}\n\n[ASSISTANT]\nHello\n\n[USER]\nWhy?\n\nRESPONSE A\n"
    )
    assert shown in asked
    assert "{a}" in asked  # what a text holds is not filled in


def test_a_template_of_ones_own(endpoint, tmp_path):
    file = tmp_path / "law.txt"
    file.write_text('---\ntask: legal answers\ntie: C\n---\n{"q": "{prompt}"}\n1: {a}\n2: {b}\n')
    endpoint.answer = lambda body: "C"
    judge = make(endpoint, template=str(file))
    assert judge.probabilities(["x"], ["one"], ["two"]).tolist() == [0.5]
    assert {endpoint.question(0), endpoint.question(1)} == {
        '{"q": "x"}\n1: one\n2: two',
        '{"q": "x"}\n1: two\n2: one',
    }
    assert [m["role"] for m in endpoint.asked[0]["messages"]] == ["user"]
    assert judge.template.task == "legal answers"
    assert judge.facts["template"] == f"legal answers ({judge.template.digest})"
    assert judge.template.text == '{"q": "{prompt}"}\n1: {a}\n2: {b}'
    file.write_text("{prompt} {a} {b}")
    assert prompts.template(str(file)).task == "law"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{prompt} {a}", r"law\.txt has no place \{b\}"),
        ("---\nfoo: 1\n---\n{prompt} {a} {b}", "'foo: 1', not task, tie or system"),
        ("---\ntie: B\n---\n{prompt} {a} {b}", "tie: B"),
    ],
)
def test_a_template_at_fault_is_named(tmp_path, text, said):
    (tmp_path / "law.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        prompts.template(str(tmp_path / "law.txt"))


def test_instructions_without_a_system_message(endpoint):
    make(endpoint, system=False).judge(*numbered(1))
    (message,) = endpoint.asked[0]["messages"]
    assert message["role"] == "user"
    assert message["content"].startswith(prompts.SUMMARY.system)


# What is kept.


def test_answers_on_disk_are_not_asked_for_again(endpoint, tmp_path):
    endpoint.answer = prefers_good
    first = make(endpoint, tmp_path, cache="new/answers.sqlite").judge(*numbered(2))
    again = make(endpoint, tmp_path, cache="new/answers.sqlite")
    assert (again.judge(*numbered(2)).orders == first.orders).all()
    assert len(endpoint.asked) == 4
    assert again.cost()["requests"] == 0
    assert again.cost()["cached"] == 4


@pytest.mark.parametrize(
    "change",
    [
        *({"model": "n"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 9}, {"top_p": 0.5}),
        *(
            {"drop": ("seed",)},
            {"parameters": ("top_k=1",)},
            {"template": "chat"},
            {"system": False},
        ),
        *({"verdict": "json"}, {"max_tokens_name": "max_completion_tokens"}),
    ],
)
def test_whatever_determines_a_verdict_is_in_its_key(endpoint, tmp_path, change):
    endpoint.answer = lambda body: '{"verdict": "tie"}'
    make(endpoint, tmp_path, cache="c").judge(["x"], ["a"], ["b"])
    make(endpoint, tmp_path, **{"cache": "c", **change}).judge(["x"], ["a"], ["b"])
    assert len(endpoint.asked) == 4


@pytest.mark.parametrize("change", [{"timeout": 9.0}, {"concurrency": 2}, {"label": "other"}])
def test_what_determines_nothing_is_not_in_it(endpoint, tmp_path, change):
    make(endpoint, tmp_path, cache="c").judge(["x"], ["a"], ["b"])
    make(endpoint, tmp_path, **{"cache": "c", **change}).judge(["x"], ["a"], ["b"])
    assert len(endpoint.asked) == 2


def test_nothing_is_asked_twice_but_what_was_under_way_at_a_kill(endpoint, tmp_path):
    endpoint.answer = slowly(prefers_good, 0.02)
    concurrency, n = 4, 60
    program = f"""
        from srpo_jax.judges.llm import LlmJudge
        from srpo_jax.judges.settings import JudgeSettings
        LlmJudge(JudgeSettings(
            name="llm", base_url={endpoint.url!r}, model="m", api_key_env="", cache="answers.sqlite",
            verdict="text", concurrency={concurrency},
        ), {str(tmp_path)!r}).judge([f"x{{i}}" for i in range({n})], ["good"] * {n}, ["bad"] * {n})
    """
    asking = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], cwd=Path.cwd())
    with processes.within(120, asking) as child:
        while len(endpoint.asked) < n and child.poll() is None:
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
    time.sleep(0.1)
    assert n <= len(endpoint.asked) < 2 * n
    judge = make(endpoint, tmp_path, cache="answers.sqlite", concurrency=concurrency)
    assert judge.probabilities(*numbered(n)).tolist() == [1.0] * n
    times = Counter(question(body) for body in endpoint.asked)
    assert len(times) == 2 * n
    assert max(times.values()) <= 2
    assert sum(times.values()) - len(times) <= concurrency


def test_a_cache_that_is_no_database_is_refused(endpoint, tmp_path):
    (tmp_path / "verdicts").write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(UserError, match=r"config\.judge\.cache=.*verdicts"):
        make(endpoint, tmp_path, cache="verdicts")


def test_verdicts_of_the_older_format_count_but_its_ties_for_nothing_do_not(
    endpoint, tmp_path, capsys
):
    """As srpo_jax wrote it before: a table of key and verdict; "unparsable" was a tie for ever."""
    import hashlib
    import sqlite3

    def key(a, b):
        user = prompts.SUMMARY.question.format(prompt="x", a=a, b=b)
        everything = {
            "base_url": endpoint.url,
            "messages": [
                {"role": "system", "content": prompts.SUMMARY.system},
                {"role": "user", "content": user},
            ],
            "reminder": 'That was not a verdict. Answer with exactly one of "A", "B" or "tie".',
            **{"model": "m", "temperature": 0.0, "seed": 0, "max_tokens": 8},
        }
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()

    with sqlite3.connect(tmp_path / "old.sqlite") as file:
        file.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)")
        rows = [(key("a", "b"), "A"), (key("b", "a"), "B"), (key("a", "c"), "unparsable")]
        file.executemany("INSERT INTO verdicts VALUES (?, ?)", rows)
    file.close()
    endpoint.answer = lambda body: "B"
    judge = make(endpoint, tmp_path, cache="old.sqlite")
    assert "2 verdicts in an older format" in capsys.readouterr().out
    assert judge.judge(["x", "x"], ["a", "a"], ["b", "c"]).probabilities.tolist() == [1.0, 0.5]
    assert len(endpoint.asked) == 2
    with sqlite3.connect(tmp_path / "old.sqlite") as file:
        assert file.execute("SELECT COUNT(*) FROM verdicts").fetchone() == (3,)
    file.close()


# What it costs.


def test_cost(endpoint):
    judge = make(endpoint, prompt_price=2.0, completion_price=10.0)
    judge.judge(*numbered(2))
    assert judge.cost() == {
        **{"requests": 4, "cached": 0, "prompt_tokens": 400, "completion_tokens": 40},
        **{"pairs": 2, "missing": 0, "price": pytest.approx(0.0012)},
    }
    assert "price" not in make(endpoint).cost()


def test_the_estimate_says_what_would_be_asked_and_asks_nothing(endpoint, tmp_path):
    xs, a, b = numbered(3)
    settings = {"cache": "c", "prompt_price": 1.0, "completion_price": 1.0, "max_tokens": 50}
    # A dry run needs no key.
    wanted = JudgeSettings(name="llm", base_url=endpoint.url, model="m", api_key_env="NOT_SET")
    dry = judges.load(wanted, tmp_path, ask=False)
    assert judges.estimate(dry, xs, a, b).requests == 6
    assert list(tmp_path.iterdir()) == []
    judge = make(endpoint, tmp_path, **settings)
    before = judge.estimate(xs, a, b)
    assert endpoint.asked == []
    assert (before.requests, before.cached, before.at_most) == (6, 0, 300)
    assert before.completion_tokens == 24
    assert "characters / 4" in before.how
    judge.judge(xs[:1], a[:1], b[:1])
    characters = sum(len(m["content"]) for m in endpoint.asked[0]["messages"])
    after = judge.estimate(xs, a, b)
    assert (after.requests, after.cached, after.completion_tokens) == (4, 2, 40)
    assert after.prompt_tokens == pytest.approx(characters, abs=1)
    assert after.price == pytest.approx((after.prompt_tokens + 40) / 1e6)
    assert "its mean so far" in after.how
    assert "4 requests (2 answers stored)" in str(after)
    with pytest.raises(UserError, match="only estimates"):
        dry.judge(xs, a, b)


def test_several_judges(endpoint, tmp_path):
    other = tmp_path / "other.json"
    section = {"name": "llm", "model": "n", "base_url": endpoint.url, "api_key_env": ""}
    other.write_text(json.dumps(section))
    settings = JudgeSettings(**section, others=(str(other),), cache="")
    with pytest.raises(UserError, match="2 judges are called 'llm'"):
        judges.load_all(settings, tmp_path)
    other.write_text(json.dumps({**section, "label": "second"}))
    assert [judge.name for judge in judges.load_all(settings, tmp_path)] == ["llm", "second"]
    other.write_text(json.dumps({"modle": "n"}))
    with pytest.raises(UserError, match=r"other\.json: config\.judge\.modle='n' is not a setting"):
        judges.load_all(settings, tmp_path)
