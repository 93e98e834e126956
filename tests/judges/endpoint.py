"""A local stand-in for an OpenAI-compatible endpoint, which can misbehave."""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Body = dict[str, Any]


class Endpoint:
    """`answer` gets a request's body and returns a text, a message, or what `reply` or `raw` made."""

    def __init__(self, answer: Callable[[Body], Any] = lambda body: "tie") -> None:
        self.asked: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.answer = answer
        self.lock = threading.Lock()
        self.running = self.most = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.asked.append(body)
                    endpoint.headers.append(dict(self.headers))
                    endpoint.running += 1
                    endpoint.most = max(endpoint.most, endpoint.running)
                try:
                    said = endpoint.answer(body)
                finally:
                    with endpoint.lock:
                        endpoint.running -= 1
                status, kind, content = said if isinstance(said, tuple) else reply(said)
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", kind)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:  # nobody waits for it any more
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def question(self, i: int) -> str:
        """What request i asks."""
        return question(self.asked[i])


def question(body: Body) -> str:
    return next(m["content"] for m in body["messages"] if m["role"] == "user")


def reply(
    said: str | Body | None = None,
    *,
    finish: str = "stop",
    usage: bool = True,
    logprobs: list[Body] | None = None,
    status: int = 200,
) -> tuple[int, str, bytes]:
    """An answer; said: its content, or its whole message."""
    message = said if isinstance(said, dict) else {"role": "assistant", "content": said}
    choice: Body = {"index": 0, "finish_reason": finish, "message": message}
    if logprobs is not None:
        choice["logprobs"] = {"content": logprobs}
    whole: Body = {"id": "0", "object": "chat.completion", "created": 0, "model": "served"}
    whole["choices"] = [choice]
    if usage:
        whole["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return raw(json.dumps(whole), status=status)


def raw(text: str, *, status: int = 200, kind: str = "application/json") -> tuple[int, str, bytes]:
    return status, kind, text.encode()


def error(status: int, message: str, **more: Any) -> tuple[int, str, bytes]:
    return raw(json.dumps({"error": {"message": message, **more}}), status=status)


def prefers_good(body: Body) -> str:
    """A faithful judge: the summary that says "good" is better, wherever it stands."""
    first, _, second = question(body).partition("SUMMARY B")
    good = ("good" in first, "good" in second)
    return {(True, False): "A", (False, True): "B"}.get(good, "tie")


def slowly(answer: Callable[[Body], Any], seconds: float) -> Callable[[Body], Any]:
    def later(body: Body) -> Any:
        time.sleep(seconds)
        return answer(body)

    return later
