"""An endpoint that misbehaves: a counted miss, or one sentence; never a tie, never a traceback."""

import re
import sqlite3
import time
from collections.abc import Iterator

import numpy as np
import pytest

from srpo_jax.runtime.errors import UserError
from tests.judges.endpoint import Endpoint, error, prefers_good, question, raw, reply, slowly
from tests.judges.test_llm import make, numbered

pytest.importorskip("openai")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()


def on_one(fault, among=prefers_good):
    """An endpoint with a fault on one document of many."""
    return lambda body: fault if "x3\n" in question(body) else among(body)


REFUSAL = {"role": "assistant", "content": None, "refusal": "I will not."}
TOO_LONG = error(
    400,
    "This model's maximum context length is 8192 tokens.",
    code="context_length_exceeded",
    param="messages",
)
FAULTS = [
    (raw('{"choices": [{"mess'), "broken answer"),
    (raw('{"choices": [{"message": null}]}'), "broken answer"),
    (raw("<html>Sign in</html>", kind="text/html"), "broken answer"),
    (raw('{"error": {"message": "overloaded"}}'), "broken answer"),
    (raw('{"choices": []}'), "broken answer"),
    (reply(REFUSAL), "refused"),
    (reply("", finish="content_filter"), "filtered"),
    (reply("<think>Let me", finish="length"), "cut off"),
    (reply("Both."), "no verdict in the answer"),
    (reply(None), "no verdict in the answer"),
    (TOO_LONG, "too long"),
    (error(413, "Payload too large"), "too long"),
    (
        error(400, "The prompt triggered the content management policy", code="content_filter"),
        "filtered",
    ),
    (error(422, "this one I do not like"), "rejected"),
    (error(500, "boom"), "server error"),
]


@pytest.mark.parametrize(("fault", "reason"), FAULTS)
def test_a_fault_is_that_documents_missing_verdict_and_asked_again_by_the_next_run(
    endpoint, tmp_path, fault, reason
):
    endpoint.answer = on_one(fault)
    settings = {"cache": "c", "retries": 1, "concurrency": 1}
    judge = make(endpoint, tmp_path, **settings, missing_share=0.2)
    found = judge.judge(*numbered(8))
    assert found.missing == {3: reason}
    assert np.isnan(found.probabilities).tolist() == [i == 3 for i in range(8)]
    assert np.isnan(found.orders[:, 3]).all()
    assert judge.cost()["missing"] == 1
    asked = len(endpoint.asked)
    judge.judge(*numbered(8))
    assert len(endpoint.asked) == asked  # not again by the same run
    with sqlite3.connect(tmp_path / "c") as file:
        kept = file.execute("SELECT verdict, reason FROM answers WHERE reason != ''").fetchall()
    file.close()
    assert kept == [(None, reason)] * 2
    endpoint.answer = prefers_good
    again = make(endpoint, tmp_path, **settings)
    assert again.probabilities(*numbered(8)).tolist() == [1.0] * 8
    assert again.cost()["requests"] == 2


def test_one_order_without_verdict_is_no_verdict(endpoint):
    def answer(body):
        return reply("", finish="content_filter") if "SUMMARY A\nbad" in question(body) else "A"

    endpoint.answer = answer
    found = make(endpoint, missing_share=1.0).judge(*numbered(2))
    assert found.orders[0].tolist() == [1.0, 1.0]
    assert np.isnan(found.orders[1]).all()
    assert np.isnan(found.probabilities).all()


def test_missing_verdicts_are_none_whatever_they_count_as(endpoint):
    endpoint.answer = on_one(reply("Both."))
    found = make(endpoint, missing="tie", missing_share=0.2).judge(*numbered(8))
    np.testing.assert_array_equal(found.probabilities, [1, 1, 1, np.nan, 1, 1, 1, 1])
    assert found.missing == {3: "no verdict in the answer"}


def test_too_many_missing_verdicts_end_the_run_once_all_is_stored(endpoint, tmp_path):
    endpoint.answer = on_one(reply("<think>Well", finish="length"))
    said = (
        r"1 of 8 pairs have no verdict of m \(1 cut off\), more than config\.judge\.missing_share=0\.05 "
        r"allows: raise config\.judge\.max_tokens=4096; for example cut off: .*<think>Well"
    )
    with pytest.raises(UserError, match=said):
        make(endpoint, tmp_path, cache="c").judge(*numbered(8))
    endpoint.answer = prefers_good
    judge = make(endpoint, tmp_path, cache="c")
    assert judge.probabilities(*numbered(8)).tolist() == [1.0] * 8
    assert judge.cost()["requests"] == 2


def test_an_endpoint_that_never_gives_a_verdict_is_not_asked_for_ever(endpoint):
    endpoint.answer = lambda body: raw("<html>Sign in</html>", kind="text/html")
    with pytest.raises(UserError, match=r"32 answers one after the other .*no JSON: <html>Sign in"):
        make(endpoint, concurrency=2, missing_share=1.0, retries=0).judge(*numbered(100))
    assert len(endpoint.asked) < 45


def test_passing_failures_are_tried_again(endpoint):
    failures = iter([error(429, "slow down"), error(503, "busy"), raw("<html>", status=502)])
    endpoint.answer = lambda body: next(failures, None) or prefers_good(body)
    judge = make(endpoint, concurrency=1)
    assert judge.probabilities(*numbered(1)).tolist() == [1.0]
    assert len(endpoint.asked) == judge.cost()["requests"] == 5


def test_a_broken_answer_is_asked_for_once_more(endpoint):
    failures = iter([raw('{"choices": [')])
    endpoint.answer = lambda body: next(failures, None) or prefers_good(body)
    assert make(endpoint, concurrency=1).probabilities(*numbered(1)).tolist() == [1.0]


def test_a_hang_ends_soon(endpoint):
    endpoint.answer = slowly(prefers_good, 3.0)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0\.2 s: raise config\.judge\.timeout"):
        make(endpoint, timeout=0.2).judge(*numbered(1))
    assert time.monotonic() - began < 2.5


def test_one_question_that_hangs_is_a_missing_verdict(endpoint):
    hang = slowly(prefers_good, 1.0)
    endpoint.answer = lambda body: (hang if "x3\n" in question(body) else prefers_good)(body)
    settings = {"timeout": 0.4, "missing_share": 0.2, "concurrency": 2}
    assert make(endpoint, **settings).judge(*numbered(8)).missing == {3: "timed out"}


def test_an_unreachable_endpoint_is_named_at_once(endpoint):
    said = r"no answer from config\.judge\.base_url=http://127\.0\.0\.1:1/v1 .*start the endpoint"
    for verdict in ("text", "auto"):
        with pytest.raises(UserError, match=said):
            make(endpoint, base_url="http://127.0.0.1:1/v1", backoff=60.0, verdict=verdict).judge(
                *numbered(1)
            )


@pytest.mark.parametrize("verdict", ["text", "auto"])
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (error(401, "who are you"), r"wants a key \(status 401\) and was sent none.*api_key_env"),
        (error(404, "no such model"), r"knows no model 'm'.*config\.judge\.model.*ends in /v1"),
        (error(402, "pay first"), r"config\.judge\.base_url=.*status 402.*pay first"),
        (error(429, "x", code="insufficient_quota"), "insufficient_quota"),
        (
            error(400, "unsupported value", param="temperature"),
            r"add 'temperature' to config\.judge\.drop",
        ),
        (
            error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            r"set config\.judge\.max_tokens_name='max_completion_tokens'",
        ),
        (
            raw('{"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}', status=422),
            r"change config\.judge\.seed, or add 'seed' to config\.judge\.drop",
        ),
        (error(400, "System role not supported"), r"set config\.judge\.system=False"),
        (error(400, "nonsense"), r"config\.judge\.base_url=.*nonsense"),
        (error(500, "boom"), r"config\.judge\.base_url=.*status 500.*boom"),
        (error(429, "slow down"), r"requests_per_minute"),
    ],
)
def test_what_concerns_every_question_ends_the_run(endpoint, fault, said, verdict):
    endpoint.answer = lambda body: fault
    with pytest.raises(UserError, match=said) as caught:
        make(endpoint, verdict=verdict, retries=1).judge(*numbered(20))
    assert "\n" not in str(caught.value)
    assert len(endpoint.asked) <= 45


def test_a_key_that_is_refused_is_named(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "wrong")
    endpoint.answer = lambda body: error(401, "bad key")
    with pytest.raises(
        UserError, match=r"refused the key .*variable SOME_KEY, which config\.judge"
    ):
        make(endpoint, api_key_env="SOME_KEY").judge(*numbered(1))


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("verdict", error(400, "response_format of type json_schema is not supported")),
        ("parameters", error(400, "unknown field: top_k")),
    ],
)
def test_the_setting_behind_a_parameter_is_named(endpoint, key, fault):
    endpoint.answer = lambda body: fault
    with pytest.raises(UserError, match=rf"config\.judge\.{key}"):
        make(endpoint, verdict="json", parameters=("top_k=1",)).judge(*numbered(1))


def test_an_endpoint_that_goes_away_half_way_ends_the_run_and_keeps_what_it_said(
    endpoint, tmp_path
):
    def answer(body):
        if len(endpoint.asked) == 10:
            endpoint.server.socket.close()
        return prefers_good(body)

    endpoint.answer = answer
    settings = {"cache": "c", "retries": 1, "concurrency": 2}
    with pytest.raises(UserError, match="start the endpoint"):
        make(endpoint, tmp_path, **settings).judge(*numbered(20))
    with sqlite3.connect(tmp_path / "c") as file:
        (kept,) = file.execute("SELECT COUNT(*) FROM answers WHERE verdict IS NOT NULL").fetchone()
    file.close()
    assert kept >= 9


def test_a_fault_says_what_came(endpoint):
    endpoint.answer = lambda body: raw('{"error": {"message": "overloaded"}}')
    with pytest.raises(UserError) as caught:
        make(endpoint, retries=0).judge(*numbered(2))
    assert re.search("2 broken answer.*an error with status 200: .*overloaded", str(caught.value))
