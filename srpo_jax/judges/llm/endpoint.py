"""Requests to an OpenAI-compatible endpoint: their parameters, their pace, and what may go wrong.

What concerns one question alone is a `Fault`, the pair's missing verdict; what concerns all of them is a
UserError, which ends the run and names the setting to change.
"""

from __future__ import annotations

import json
import os
import random
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from srpo_jax.judges import secrets
from srpo_jax.judges.llm.answer import (
    BROKEN,
    FAILED,
    FILTERED,
    LATE,
    LONG,
    REJECTED,
    Answer,
    Fault,
    read,
)
from srpo_jax.judges.llm.prompts import Messages
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime.errors import UserError

DEFAULT_URL = "https://api.openai.com/v1"
LONGEST_PAUSE = 60.0  # seconds
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_LONG = re.compile(
    r"context.?(?:length|window|size)|maximum context|too (?:long|many tokens)|max_model_len"
    r"|(?:input|prompt).{0,20}(?:length|exceeds)|above_max_length"
)
_FILTERED = re.compile(r"content.?filter|content management|moderation|flagged|safety|usage polic")


class Stopped(Exception):
    """Another request has ended the run."""


class Rejected(Exception):
    """The endpoint will not take this request (a status of 400 or above that does not pass)."""

    def __init__(self, status: int, body: str, parameter: str | None, address: str) -> None:
        super().__init__(f"{address} answered with status {status}: {_short(body)}")
        self.status, self.body, self.parameter = status, body, parameter


class Endpoint:
    """Asks; safe with threads.

    `requests` counts what was sent. `answered`: whether anything has been answered: from then on what is
    wrong with a request is taken to be of its question. ask: False for one that is never asked: it needs
    neither package nor key.

    Raises:
        UserError: `openai` is not installed, the key is not set, a setting cannot be read.
    """

    def __init__(self, settings: JudgeSettings, *, ask: bool = True) -> None:
        self._settings = settings
        self.url = (settings.base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip(
            "/"
        )
        secrets.check_url(self.url, "OPENAI_BASE_URL")
        self.parameters = parameters(settings)
        self._headers = _headers(settings.headers)
        self._client = _client(settings, self.url) if ask else None
        self.requests, self.answered = 0, False
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._free = 0.0  # when the next request may be sent, by time.monotonic

    def start(self) -> None:
        """Before a round of questions, after which `stop` may come."""
        self._stop.clear()

    def stop(self) -> None:
        """No request is sent any more; those under way are waited for by who sent them."""
        self._stop.set()

    def complete(
        self, messages: Messages, extra: Mapping[str, Any], *, probing: bool = False
    ) -> Answer:
        """The answer to one question. extra: further parameters.

        probing: they may be unknown to the endpoint: no patience with it, and no end of the run.
        Raises Fault, Rejected, Stopped and UserError.
        """
        limit = min(self._settings.retries, 1) if probing else self._settings.retries
        tried = 0
        while True:
            try:
                answer = read(self._send(messages, {**self.parameters, **extra}))
            except _Passing as error:
                if tried >= min(limit, error.retries):
                    error.give_up(self.answered or (probing and error.reason == FAILED))
                self._pause(
                    max(error.wait, self._settings.backoff * 2**tried * random.uniform(0.5, 1))
                )
            except Fault as fault:
                if fault.reason != BROKEN or tried >= min(limit, 1):
                    raise
                self._pause(self._settings.backoff)
            else:
                self.answered = True
                return answer
            tried += 1

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(min(seconds, LONGEST_PAUSE)):
            raise Stopped

    def _turn(self) -> None:
        """Waits until a request may be sent."""
        pace = self._settings.requests_per_minute
        with self._lock:
            now = time.monotonic()
            mine = max(now, self._free)
            self._free = mine + (60 / pace if pace else 0.0)
        if self._stop.wait(mine - now):
            raise Stopped
        with self._lock:
            self.requests += 1

    def _send(self, messages: Messages, parameters: Mapping[str, Any]) -> str:
        """The body of a reply with a status below 300."""
        import openai

        self._turn()
        if self._client is None:
            raise UserError("a judge that only estimates its cost was asked for a verdict")
        try:
            reply = self._client.chat.completions.with_raw_response.create(
                model=self._settings.model,
                messages=messages,
                extra_body=dict(parameters),
                extra_headers=self._headers,
            )
        except openai.APITimeoutError as error:
            raise _Passing(LATE, self._late(), 1) from error
        except openai.APIConnectionError as error:
            self._unreachable(error)
        except openai.APIStatusError as error:
            self._refused(error, parameters)
        text: str = reply.http_response.text
        return text

    def _late(self) -> str:
        return (
            f"config.judge.base_url={self.url} gave no answer within {self._settings.timeout:g} s: "
            "raise config.judge.timeout, or look at the endpoint"
        )

    def _unreachable(self, error: Exception) -> NoReturn:
        """No connection, which ends the run at once if there never was one; or one that broke off."""
        cause = error.__cause__ or error
        sentence = (
            f"no answer from config.judge.base_url={self.url} ({cause}): start the endpoint or correct "
            "the address"
        )
        if not type(cause).__name__.startswith("Connect"):
            raise _Passing(FAILED, sentence, 2) from error
        if not self.answered:
            raise UserError(sentence) from error
        raise _Passing("", sentence) from error

    def _refused(self, error: Any, parameters: Mapping[str, Any]) -> NoReturn:
        """A status of 400 or above."""
        status: int = error.status_code
        body = secrets.hidden(error.response.text or error.message, self._secrets())
        lower = body.lower()
        said = f"config.judge.base_url={self.url} answered with status {status}: {_short(body)}"
        if status in _PASSING and "insufficient_quota" not in lower:
            wait = _seconds(error.response.headers.get("retry-after"))
            if status == 429:
                hint = "lower config.judge.concurrency or set config.judge.requests_per_minute"
                raise _Passing("", f"{said}: {hint}", wait=wait) from error
            raise _Passing(FAILED, said, wait=wait) from error
        if status == 401:
            raise UserError(self._bad_key(status)) from error
        if status in (400, 403, 413, 422):
            if status == 413 or _LONG.search(lower):
                raise Fault(LONG, _short(body)) from error
            if _FILTERED.search(lower):
                raise Fault(FILTERED, _short(body)) from error
        parameter = _parameter(error, lower, parameters) if status in (400, 422) else None
        raise Rejected(status, body, parameter, f"config.judge.base_url={self.url}") from error

    def _secrets(self) -> list[str]:
        return [*self._headers.values(), os.environ.get(self._settings.api_key_env or "-", "")]

    def _bad_key(self, status: int) -> str:
        variable = self._settings.api_key_env
        if not variable:
            return (
                f"{self.url} wants a key (status {status}) and was sent none: put one in an environment "
                "variable and name that in config.judge.api_key_env"
            )
        return (
            f"{self.url} refused the key (status {status}): put a valid one in the environment variable "
            f"{variable}, which config.judge.api_key_env names, or name another"
        )

    def final(self, rejected: Rejected) -> Exception:
        """What a rejection means once no other form of the request is left: UserError or Fault."""
        status, detail = rejected.status, _short(rejected.body)
        if status == 403:
            return UserError(f"{self._bad_key(status)}; it says: {detail}")
        if status == 404:
            return UserError(
                f"{self.url} knows no model {self._settings.model!r} or no such address: correct "
                f"config.judge.model or config.judge.base_url (it often ends in /v1); it says: {detail}"
            )
        if status not in (400, 422):
            return UserError(str(rejected))
        if rejected.parameter and not self.answered:
            return UserError(f"{rejected}: {self._advice(rejected.parameter)}")
        return Fault(REJECTED, str(rejected))

    def _advice(self, parameter: str) -> str:
        """The setting by which a parameter that was refused is changed."""
        if parameter == self._settings.max_tokens_name:
            other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
            return (
                f"set config.judge.max_tokens_name={other[parameter]!r}, another config.judge.max_tokens "
                f"(now {self._settings.max_tokens}), or add {parameter!r} to config.judge.drop"
            )
        if parameter in ("logprobs", "top_logprobs"):
            return (
                "set config.judge.verdict to 'json' or 'text', or lower config.judge.top_logprobs"
            )
        if parameter == "response_format":
            return "set config.judge.verdict='text'"
        if parameter == "system":
            return "set config.judge.system=False"
        own = {p.split("=")[0].strip() for p in self._settings.parameters}
        key = "parameters" if parameter in own else parameter
        return f"change config.judge.{key}, or add {parameter!r} to config.judge.drop"


class _Passing(Exception):
    """A failure that may pass. reason: of the fault that it else becomes; "" if it concerns all."""

    def __init__(
        self, reason: str, sentence: str, retries: int = 1000, *, wait: float = 0.0
    ) -> None:
        super().__init__(sentence)
        self.reason, self.retries, self.wait = reason, retries, wait

    def give_up(self, answered: bool) -> NoReturn:
        if self.reason and answered:
            raise Fault(self.reason, str(self)) from self
        raise UserError(str(self)) from self


def parameters(settings: JudgeSettings) -> dict[str, Any]:
    """The parameters of every request, model and messages apart."""
    given: dict[str, Any] = {
        "temperature": settings.temperature,
        "seed": settings.seed,
        settings.max_tokens_name: settings.max_tokens,
    }
    if settings.top_p is not None:
        given["top_p"] = settings.top_p
    if settings.reasoning_effort:
        given["reasoning_effort"] = settings.reasoning_effort
    for entry in settings.parameters:
        name, equals, value = entry.partition("=")
        try:
            given[name.strip()] = json.loads(value)
        except ValueError as error:
            raise UserError(
                f'config.judge.parameters has {entry!r}: write NAME=JSON, for a text NAME="text"'
            ) from error
        if not equals or name.strip() in ("model", "messages", "stream", "n"):
            raise UserError(f"config.judge.parameters cannot have {entry!r}")
    dropped = set(settings.drop)
    if unknown := dropped - set(given) - {"logprobs", "top_logprobs", "response_format", "top_p"}:
        raise UserError(
            f"config.judge.drop has {', '.join(sorted(unknown))}, which is not sent: sent are "
            f"{', '.join(given)}"
        )
    return {name: value for name, value in given.items() if name not in dropped}


def _headers(entries: Sequence[str]) -> dict[str, str]:
    headers = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not equals or not name.strip():
            raise UserError(f"config.judge.headers has {entry!r}: write NAME=VALUE")
        filled = os.path.expandvars(value.strip())
        if "$" in filled and filled == value.strip():
            raise UserError(
                f"config.judge.headers has {entry!r}: that environment variable is not set"
            )
        headers[name.strip()] = filled
    return headers


def _client(settings: JudgeSettings, url: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(
            "the LLM judge needs the package openai: install srpo_jax with its extra `eval`, "
            'e.g. pip install -e ".[eval]"'
        ) from error
    variable = settings.api_key_env
    key = os.environ.get(variable) if variable else "none"  # many local servers need no key
    if not key:
        raise UserError(
            f"the environment variable {variable}, named by config.judge.api_key_env, is not "
            "set: put the endpoint's key there, or set config.judge.api_key_env='' if it needs none"
        )
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=settings.timeout)


def _parameter(error: Any, lower: str, parameters: Mapping[str, Any]) -> str | None:
    """The parameter that a refusal is about."""
    named = getattr(error, "param", None)
    sent = [*parameters]
    if named in sent:
        return str(named)
    if isinstance(named, str) and named.partition(".")[0] in sent:
        return named.partition(".")[0]
    # The longest first: "logprobs" is in "top_logprobs".
    for name in sorted(sent, key=len, reverse=True):
        if re.search(rf"(?<![a-z_]){re.escape(name.lower())}(?![a-z_])", lower):
            return name
    if re.search(r"system.{0,20}role|role.{0,20}system|roles must alternate", lower):
        return "system"
    return None


def _seconds(header: str | None) -> float:
    """Of a Retry-After header; a date, or none, is 0."""
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _short(text: str) -> str:
    return " ".join(text.split())[:300]
