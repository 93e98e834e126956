"""A language model behind an OpenAI-compatible endpoint as the judge.

Each comparison is asked in both orders, because such judges favour a position, and the two verdicts
are averaged. Verdicts are kept on disk, so that a run that was stopped does not ask, or pay, twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np

from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime.errors import UserError

SYSTEM = (
    "You are shown a text and two summaries of it, A and B. Say which summary is better: the one "
    "that is both precise and concise. Precise: all it states is supported by the text, and it "
    "gets to the point of the text, or to the aspect that the text's last line asks for. Concise: "
    "no words are spent on anything else, nothing is repeated, and no sentence is left unfinished. "
    "The order in which the summaries are shown means nothing. "
    'Answer with "A", "B" or, if neither is better, "tie", and write nothing else.'
)
QUESTION = "TEXT\n{prompt}\n\nSUMMARY A\n{a}\n\nSUMMARY B\n{b}\n\nWhich is better: A, B or tie?"
REMINDER = 'That was not a verdict. Answer with exactly one of "A", "B" or "tie".'

_SCORES = {"A": 1.0, "B": 0.0, "tie": 0.5, "unparsable": 0.5}
_log = logging.getLogger(__name__)

Message = dict[str, str]


class LlmJudge:
    """P(a better than b | x): the mean verdict of both orders (A 1, tie 1/2, B 0).

    `base_url` is where the endpoint listens (None or "": the client's own default). `api_key_env`
    names the environment variable that holds the key (None: the endpoint needs none).
    `cache` is an SQLite file (made if missing; None: verdicts are remembered in memory only). The
    key of a verdict is the sha256 of all that determines it: endpoint, model, messages,
    temperature, seed, limit of tokens. An answer other than A, B or tie is asked for again once;
    then it counts as a tie, is counted in `unparsable`, and logged. `requests` counts the answers
    that were asked for. Rate limits and passing failures are retried by the client.

    Raises:
        UserError: `openai` is not installed, a setting is missing, the cache cannot be used; and,
            from `probabilities`, the endpoint cannot be reached or refuses.
    """

    name = "llm"

    def __init__(
        self,
        base_url: str | None,
        model: str,
        api_key_env: str | None = None,
        concurrency: int = 8,
        cache: str | Path | None = None,
        *,
        temperature: float = 0.0,
        seed: int = 0,
        max_tokens: int = 8,
        retries: int = 4,
    ) -> None:
        if not model:
            raise UserError("config.judge.model is empty: name a model of the endpoint")
        self.unparsable = self.requests = 0
        self._api_key_env, self._concurrency = api_key_env, concurrency
        self._settings = {
            "model": model,
            "temperature": temperature,
            "seed": seed,
            "max_tokens": max_tokens,
        }
        self._client = _client(base_url, api_key_env, retries)
        self._base_url = str(self._client.base_url).rstrip("/")
        self.description = f"{model} at {self._base_url}, each pair asked in both orders"
        self._verdicts = _Verdicts(cache)
        self._lock = threading.Lock()

    @classmethod
    def from_settings(cls, settings: JudgeSettings, folder: str | Path = ".") -> LlmJudge:
        """From `config.judge`; its cache is relative to `folder`."""
        return cls(
            base_url=settings.base_url,
            model=settings.model,
            api_key_env=settings.api_key_env or None,
            concurrency=settings.concurrency,
            cache=Path(folder) / settings.cache if settings.cache else None,
        )

    def probabilities(
        self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N], for N prompts and N completions each.

        Equal completions are not asked about: 1/2.
        """
        if not len(prompts) == len(a) == len(b):
            raise UserError(
                f"a judge needs as many prompts ({len(prompts)}) as completions a ({len(a)}) "
                f"and completions b ({len(b)})"
            )
        triples = list(zip(prompts, a, b, strict=True))
        questions = [
            question
            for prompt, first, second in triples
            if first != second
            for question in ((prompt, first, second), (prompt, second, first))
        ]
        score = self._scores(questions)
        return np.array(
            [
                0.5
                if first == second
                else (score[prompt, first, second] + 1 - score[prompt, second, first]) / 2
                for prompt, first, second in triples
            ],
            dtype=np.float64,
        )

    def _scores(
        self, questions: Iterable[tuple[str, str, str]]
    ) -> dict[tuple[str, str, str], float]:
        """The score (A 1, tie 1/2, B 0) of each question (prompt, A, B), asked if not known."""
        messages = {question: _messages(*question) for question in questions}
        keys = {question: self._key(asked) for question, asked in messages.items()}
        new = [question for question, key in keys.items() if self._verdicts.get(key) is None]
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = [pool.submit(self._ask, keys[q], messages[q]) for q in new]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)  # what is answered already has been kept
                raise
        verdicts = {question: self._verdicts.get(key) for question, key in keys.items()}
        unparsable = sum(verdict == "unparsable" for verdict in verdicts.values())
        if unparsable:
            self.unparsable += unparsable
            _log.warning(
                "%d of %d answers of %s were no verdict and count as ties",
                unparsable,
                len(verdicts),
                self._settings["model"],
            )
        return {question: _SCORES[verdict or ""] for question, verdict in verdicts.items()}

    def _key(self, messages: list[Message]) -> str:
        """The sha256 of all that a verdict depends on."""
        everything = {
            "base_url": self._base_url,
            "messages": messages,
            "reminder": REMINDER,
            **self._settings,
        }
        return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()

    def _ask(self, key: str, messages: list[Message]) -> None:
        """Ask one question, once more if the answer is no verdict, and keep the verdict."""
        answer = self._complete(messages)
        verdict = _parse(answer)
        if verdict is None:
            again = [
                {"role": "assistant", "content": answer},
                {"role": "user", "content": REMINDER},
            ]
            verdict = _parse(self._complete(messages + again))
        self._verdicts.put(key, verdict or "unparsable")

    def _complete(self, messages: list[Message]) -> str:
        import openai

        with self._lock:
            self.requests += 1
        try:
            reply = self._client.chat.completions.create(messages=messages, **self._settings)
        except openai.APIConnectionError as error:
            raise UserError(
                f"no answer from config.judge.base_url={self._base_url} ({error.__cause__ or error}"
                "): start the endpoint or correct the address"
            ) from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise UserError(
                f"{self._base_url} refused the key (status {error.status_code}): put a valid one "
                "in the environment variable that config.judge.api_key_env names "
                f"(now {self._api_key_env!r})"
            ) from error
        except openai.NotFoundError as error:
            raise UserError(
                f"{self._base_url} knows no model {self._settings['model']!r} or no such address: "
                "correct config.judge.model or config.judge.base_url (it often ends in /v1)"
            ) from error
        except openai.APIStatusError as error:
            raise UserError(
                f"config.judge.base_url={self._base_url} answered with status {error.status_code}: "
                f"{error.message}"
            ) from error
        return (reply.choices[0].message.content or "") if reply.choices else ""


def _messages(prompt: str, a: str, b: str) -> list[Message]:
    return [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION.format(prompt=prompt, a=a, b=b)},
    ]


def _parse(answer: str) -> str | None:
    """ "A", "B" or "tie", or None if `answer` is anything else, white space at its ends apart."""
    answer = answer.strip()
    return "tie" if answer.lower() == "tie" else answer if answer in ("A", "B") else None


def _client(base_url: str | None, api_key_env: str | None, retries: int) -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(
            "the LLM judge needs the package openai: install srpo_jax with its extra `eval`, "
            'e.g. pip install -e ".[eval]"'
        ) from error
    key = os.environ.get(api_key_env) if api_key_env else "none"  # many local servers need no key
    if not key:
        raise UserError(
            f"the environment variable {api_key_env}, named by config.judge.api_key_env, is not "
            "set: put the endpoint's key there, or set config.judge.api_key_env='' if it needs none"
        )
    return openai.OpenAI(base_url=base_url or None, api_key=key, max_retries=retries)


class _Verdicts:
    """Verdicts by key, in an SQLite file (or in memory); every `put` is on disk when it returns."""

    def __init__(self, path: str | Path | None) -> None:
        self._lock = threading.Lock()
        try:
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(
                path or ":memory:", check_same_thread=False, isolation_level=None
            )
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, verdict TEXT NOT NULL)"
            )
        except (OSError, sqlite3.Error) as error:
            raise UserError(
                f"config.judge.cache={path} cannot be used as the store of verdicts ({error}): "
                "name another file, or delete it"
            ) from error

    def get(self, key: str) -> str | None:
        with self._lock:
            found = self._file.execute("SELECT verdict FROM verdicts WHERE key = ?", (key,))
            row = found.fetchone()
        return row[0] if row else None

    def put(self, key: str, verdict: str) -> None:
        with self._lock:
            self._file.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (key, verdict))
