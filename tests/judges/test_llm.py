import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from srpo_jax import judges
from srpo_jax.judges import llm
from srpo_jax.judges.llm import LlmJudge
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime.errors import UserError

pytest.importorskip("openai")


class Endpoint:
    """A local stand-in for an endpoint. `answer` is called with the user's first message."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.headers: list[str | None] = []
        self.status = 200
        self.answer: Callable[[str], str] = lambda question: "tie"
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.asked.append(body)
                endpoint.headers.append(self.headers["Authorization"])
                content = endpoint.answer(body["messages"][1]["content"])
                reply = {
                    "id": "0",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [
                        {
                            "index": 0,
                            "finish_reason": "stop",
                            "message": {"role": "assistant", "content": content},
                        }
                    ],
                }
                self.send_response(endpoint.status)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(reply).encode())

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    thread = threading.Thread(target=endpoint.server.serve_forever, args=(0.05,))
    thread.start()
    yield endpoint
    endpoint.server.shutdown()
    endpoint.server.server_close()
    thread.join()


def prefers_good(question: str) -> str:
    """A faithful judge: the summary that says "good" is better, wherever it stands."""
    first, second = question.split("SUMMARY B")
    good = ("good" in first, "good" in second)
    return {(True, False): "A", (False, True): "B"}.get(good, "tie")


def test_both_orders_are_asked_and_agree(endpoint):
    endpoint.answer = prefers_good
    judge = LlmJudge(endpoint.url, "m")
    found = judge.probabilities(["x", "x", "x"], ["good", "bad", "poor"], ["bad", "good", "bad"])
    assert found.tolist() == [1.0, 0.0, 0.5]
    questions = {body["messages"][1]["content"] for body in endpoint.asked}
    assert llm.QUESTION.format(prompt="x", a="good", b="bad") in questions
    assert llm.QUESTION.format(prompt="x", a="bad", b="good") in questions
    # The second pair is the first in the other order: nothing new to ask.
    assert len(endpoint.asked) == len(questions) == judge.requests == 4


@pytest.mark.parametrize("letter", ["A", "B"])
def test_a_judge_that_favours_a_position_gives_one_half(endpoint, letter):
    endpoint.answer = lambda question: letter
    assert LlmJudge(endpoint.url, "m").probabilities(["x"], ["a"], ["b"]).tolist() == [0.5]


def test_equal_completions_are_not_asked_about(endpoint):
    assert LlmJudge(endpoint.url, "m").probabilities(["x"], ["a"], ["a"]).tolist() == [0.5]
    assert endpoint.asked == []


def test_verdicts_on_disk_are_not_asked_for_again(endpoint, tmp_path):
    endpoint.answer = prefers_good
    cache = tmp_path / "new" / "verdicts.sqlite"
    first = LlmJudge(endpoint.url, "m", cache=cache).probabilities(["x"], ["good"], ["bad"])
    asked = len(endpoint.asked)
    again = LlmJudge(endpoint.url, "m", cache=cache)
    assert again.probabilities(["x"], ["good"], ["bad"]).tolist() == first.tolist() == [1.0]
    assert len(endpoint.asked) == asked == 2
    assert again.requests == 0


@pytest.mark.parametrize(
    "change", [{"model": "n"}, {"temperature": 0.5}, {"seed": 1}, {"max_tokens": 9}]
)
def test_whatever_determines_a_verdict_is_in_its_key(endpoint, tmp_path, change):
    settings = {"model": "m", "cache": tmp_path / "verdicts.sqlite"}
    LlmJudge(endpoint.url, **settings).probabilities(["x"], ["a"], ["b"])
    LlmJudge(endpoint.url, **{**settings, **change}).probabilities(["x"], ["a"], ["b"])
    assert len(endpoint.asked) == 4


def test_an_answer_that_is_no_verdict_is_asked_for_once_more(endpoint):
    answers = iter(["Summary A is better.", "A"])
    endpoint.answer = lambda question: next(answers, "B")
    judge = LlmJudge(endpoint.url, "m", concurrency=1)
    assert judge.probabilities(["x"], ["a"], ["b"]).tolist() == [1.0]
    assert endpoint.asked[1]["messages"][2:] == [
        {"role": "assistant", "content": "Summary A is better."},
        {"role": "user", "content": llm.REMINDER},
    ]
    assert judge.unparsable == 0


def test_answers_that_never_are_verdicts_count_as_ties_and_are_reported(endpoint, caplog):
    endpoint.answer = lambda question: "AB"
    judge = LlmJudge(endpoint.url, "m")
    assert judge.probabilities(["x"], ["a"], ["b"]).tolist() == [0.5]
    assert judge.unparsable == 2
    assert len(endpoint.asked) == 4
    assert "2 of 2 answers of m were no verdict" in caplog.text


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [("A", "A"), (" B\n", "B"), ("Tie", "tie"), ("a", None), ("A.", None), ("", None)],
)
def test_parse(answer, verdict):
    assert llm._parse(answer) == verdict


def test_no_more_requests_at_once_than_allowed(endpoint):
    barrier, running, most = threading.Lock(), [0], [0]
    pause = threading.Event()

    def answer(question: str) -> str:
        with barrier:
            running[0] += 1
            most[0] = max(most[0], running[0])
        pause.wait(0.02)
        with barrier:
            running[0] -= 1
        return "tie"

    endpoint.answer = answer
    prompts = [str(i) for i in range(10)]
    LlmJudge(endpoint.url, "m", concurrency=3).probabilities(prompts, ["a"] * 10, ["b"] * 10)
    assert 1 < most[0] <= 3


def test_key_comes_from_the_named_variable(endpoint, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    settings = JudgeSettings(
        name="llm",
        base_url=endpoint.url,
        model="m",
        api_key_env="SOME_KEY",
        concurrency=2,
        cache="",
    )
    judges.load(settings).probabilities(["x"], ["a"], ["b"])
    assert endpoint.headers == ["Bearer secret"] * 2


def test_missing_key_is_named(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(UserError, match=r"SOME_KEY.*config\.judge\.api_key_env"):
        LlmJudge("http://127.0.0.1:1/v1", "m", "SOME_KEY")


def test_missing_model_is_named():
    with pytest.raises(UserError, match=r"config\.judge\.model is empty"):
        LlmJudge("http://127.0.0.1:1/v1", "")


def test_no_address_means_the_clients_default(endpoint, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", endpoint.url)
    judge = LlmJudge("", "m")
    assert judge.probabilities(["x"], ["a"], ["b"]).tolist() == [0.5]
    assert endpoint.url in judge.description


def test_unreachable_endpoint_is_named():
    judge = LlmJudge("http://127.0.0.1:1/v1", "m", retries=0)
    with pytest.raises(UserError, match=r"config\.judge\.base_url=http://127\.0\.0\.1:1/v1"):
        judge.probabilities(["x"], ["a"], ["b"])


@pytest.mark.parametrize(
    ("status", "key"), [(401, "api_key_env"), (404, "model"), (400, "base_url"), (500, "base_url")]
)
def test_refusals_name_the_setting(endpoint, status, key):
    endpoint.status = status
    with pytest.raises(UserError, match=f"config.judge.{key}"):
        LlmJudge(endpoint.url, "m", retries=0).probabilities(["x"], ["a"], ["b"])


def test_a_cache_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "verdicts").write_text("not a database, but long enough to be read as one" * 20)
    with pytest.raises(UserError, match=r"config\.judge\.cache=.*verdicts"):
        LlmJudge("http://127.0.0.1:1/v1", "m", cache=tmp_path / "verdicts")


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match="extra `eval`"):
        LlmJudge("http://127.0.0.1:1/v1", "m")


def test_unequal_lengths_are_refused(endpoint):
    with pytest.raises(UserError, match=r"completions b \(2\)"):
        LlmJudge(endpoint.url, "m").probabilities(["x"], ["a"], ["b", "c"])
