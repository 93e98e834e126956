"""Questions to a judging model: which have to be asked, how, and what is kept of the answers."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from srpo_jax.judges.judge import Prompt
from srpo_jax.judges.llm import prompts as texts
from srpo_jax.judges.llm import verdict
from srpo_jax.judges.llm.answer import FILTERED, LONG, REFUSED, REJECTED, UNPARSABLE, Answer, Fault
from srpo_jax.judges.llm.endpoint import Endpoint, Rejected
from srpo_jax.judges.llm.store import Record, Store
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

HOPELESS = 32  # answers without verdict, one after the other, that end the run
PROBES = 3  # questions by which it is found out where verdicts can be read
_NEEDS = {"logprobs": "logprobs", "json": "response_format"}  # parameter
_OF_THE_PAIR = (LONG, FILTERED, REFUSED, REJECTED)


class Question(NamedTuple):
    """Which of two is better, in one order."""

    prompt: Prompt
    first: str
    second: str

    @property
    def swapped(self) -> Question:
        """The same two in the other order."""
        return Question(self.prompt, self.second, self.first)


class Interview:
    """The endpoint, and the answers it has given: asks what is not known. Safe with threads.

    path: of the store; None keeps answers in memory only. ask: see `Endpoint`. `spent` counts tokens, and
    the questions whose answer was there already.
    """

    def __init__(
        self, settings: JudgeSettings, template: texts.Template, path: Path | None, *, ask: bool
    ) -> None:
        self._settings, self._template, self._path = settings, template, path
        self.endpoint = Endpoint(settings, ask=ask)
        self.store = Store(path if path and (ask or path.exists()) else None)
        self.identity = _digest(
            {
                "base_url": self.endpoint.url,
                "model": settings.model,
                "parameters": self.endpoint.parameters,
                "template": [template.text, template.labels],
                "system": settings.system,
            }
        )
        # Whether the older format asked the same: all of it but how long an answer may be.
        limit = {settings.max_tokens_name: 0}
        self._as_before = (
            self.store.old > 0
            and template == texts.SUMMARY
            and settings.system
            and {**self.endpoint.parameters, **limit} == {"temperature": 0, "seed": 0, **limit}
        )
        if self.store.old:
            status(
                f"{path} holds {self.store.old} verdicts in an older format: they count where the same "
                "question is asked and the verdict is read from the text, and stay in the file"
            )
        self._lock = threading.Lock()
        self.spent: Counter[str] = Counter(cached=0, prompt_tokens=0, completion_tokens=0)
        self._asked: set[str] = set()

    @property
    def mode(self) -> str:
        """Where verdicts are read; "auto" until it is known."""
        wanted = self._settings.verdict
        return (self.store.mode(self.identity) or wanted) if wanted == "auto" else wanted

    def records(self, questions: list[Question]) -> tuple[dict[Question, str], dict[str, Record]]:
        """The key of each question, and the record of each key; new ones are asked."""
        if not questions:
            return {}, {}
        self.endpoint.start()
        mode = self.mode
        if mode == "auto":
            mode = self._find_mode(questions[:PROBES])
        keys = {question: self.key(question, mode) for question in questions}
        known = self.known(keys, mode)
        self.spent["cached"] += len(known)
        new = [question for question, key in keys.items() if key not in known]
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            futures = [pool.submit(self._ask, keys[question], question, mode) for question in new]
            try:
                in_a_row = 0
                for future in as_completed(futures):
                    record = future.result()
                    ours = record.reason in _OF_THE_PAIR and self.endpoint.answered
                    in_a_row = in_a_row + 1 if record.reason and not ours else 0
                    if in_a_row == HOPELESS:
                        raise UserError(
                            f"{HOPELESS} answers one after the other were no verdict: "
                            f"{self.example(record)}"
                        )
            except BaseException:
                self.endpoint.stop()
                pool.shutdown(cancel_futures=True)  # what is still answered is kept
                raise
            finally:
                self.store.flush()
        return keys, self.store.get(keys.values())

    def known(self, keys: Mapping[Question, str], mode: str) -> dict[str, Record]:
        """The records that need not be asked for: verdicts, and what this run has asked already."""
        found = self.store.get(keys.values())
        known = {k: r for k, r in found.items() if r.verdict is not None or k in self._asked}
        if self._as_before and mode == "text":
            for question, key in keys.items():
                old = None if key in known else self.store.get_old(self._old_key(question))
                if old is not None:
                    known[key] = Record(old, answer="kept in the older format", mode=mode)
                    self.store.put(key, self.identity, known[key])
        return known

    def _find_mode(self, questions: Sequence[Question]) -> str:
        """The first mode that the endpoint takes; "text" where that cannot be found out."""
        for question in questions:
            for mode in ("logprobs", "json"):
                taken = self._takes(question, mode)
                if taken:
                    return mode
                if taken is None:
                    break
            else:
                return "text"
        return "text"

    def _takes(self, question: Question, mode: str) -> bool | None:
        """Whether the endpoint gives verdicts in this mode; None: this question does not tell."""
        if _NEEDS[mode] in self._settings.drop:
            return False
        messages = self.messages(question, mode)
        try:
            answer = self.endpoint.complete(messages, self._extra(mode), probing=True)
        except Rejected:
            return False
        except Fault:
            return None
        self._pay(answer)
        if not answer.content.strip():
            return None
        if mode == "logprobs" and not answer.tokens:
            # Nothing came of the parameter: this is what the question without it would have brought.
            record = self._record(answer, "text")
            if record.verdict is not None:
                self.store.put(self.key(question, "text"), self.identity, record)
            return False
        if mode == "json" and not verdict.is_json(answer.content, self._template):
            return False
        record = self._record(answer, mode)
        if record.verdict is not None:
            self._keep(self.key(question, mode), record)
        return True

    def _ask(self, key: str, question: Question, mode: str) -> Record:
        """Asks one question, once more if the answer is no verdict, and keeps what was said."""
        messages, extra = self.messages(question, mode), self._extra(mode)
        record = self._answered(messages, extra, mode)
        if record.reason == UNPARSABLE and record.answer.strip():
            reminder = texts.reminder(self._template, record.answer)
            again = self._answered([*messages, *reminder], extra, mode)
            if again.verdict is not None:
                record = again
        self._keep(key, record)
        return record

    def _answered(self, messages: texts.Messages, extra: Mapping[str, Any], mode: str) -> Record:
        try:
            answer = self.endpoint.complete(messages, extra)
        except Rejected as rejected:
            final = self.endpoint.final(rejected)
            if not isinstance(final, Fault):
                raise final from rejected
            return _miss(final, mode)
        except Fault as fault:
            self._count(*fault.tokens)
            return _miss(fault, mode)
        self._pay(answer)
        if mode == "logprobs" and self._settings.verdict == mode and not answer.tokens:
            raise UserError(
                f"{self.endpoint.url} gives no log-probabilities: set config.judge.verdict to 'auto', "
                "'json' or 'text'"
            )
        return self._record(answer, mode)

    def _record(self, answer: Answer, mode: str) -> Record:
        preference, fault = None, None
        try:
            preference = verdict.read(answer, self._template, mode, self._settings.label_mass)
        except Fault as error:
            fault = error
        return Record(
            verdict=preference,
            reason=fault.reason if fault else "",
            answer=answer.raw or answer.reasoning,
            mode=mode,
            prompt_tokens=answer.prompt_tokens or 0,
            completion_tokens=answer.completion_tokens or 0,
            model=answer.model,
        )

    def _keep(self, key: str, record: Record) -> None:
        self.store.put(key, self.identity, record)
        with self._lock:
            self._asked.add(key)
        if self._settings.verdict == "auto" and record.verdict is not None and self.mode == "auto":
            self.store.put_mode(self.identity, record.mode)

    def _pay(self, answer: Answer) -> None:
        self._count(answer.prompt_tokens or 0, answer.completion_tokens or 0)

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        with self._lock:
            self.spent["prompt_tokens"] += prompt_tokens
            self.spent["completion_tokens"] += completion_tokens

    def messages(self, question: Question, mode: str) -> texts.Messages:
        """What is asked."""
        return texts.messages(
            self._template, *question, json_answer=mode == "json", system=self._settings.system
        )

    def _extra(self, mode: str) -> dict[str, Any]:
        extra: dict[str, Any] = {}
        if mode == "logprobs":
            extra = {"logprobs": True, "top_logprobs": self._settings.top_logprobs}
        elif mode == "json":
            extra = {"response_format": texts.schema(self._template)}
        return {name: value for name, value in extra.items() if name not in self._settings.drop}

    def key(self, question: Question, mode: str) -> str:
        """A hash of all that a verdict depends on."""
        mass = self._settings.label_mass if mode == "logprobs" else None
        extra = [self._extra(mode), mode, mass]
        return _digest([self.identity, self.messages(question, mode), extra])

    def _old_key(self, question: Question) -> str:
        """The key in the older format, in which less could be set."""
        system, user = texts.messages(texts.SUMMARY, *question, json_answer=False, system=True)
        return _digest(
            {
                "base_url": self.endpoint.url,
                "messages": [system, user],
                "reminder": texts.reminder(texts.SUMMARY, "")[1]["content"],
                "model": self._settings.model,
                "temperature": 0.0,
                "seed": 0,
                "max_tokens": 8,
            }
        )

    def example(self, record: Record) -> str:
        """One answer that was no verdict, and what to change."""
        advice = {
            "cut off": f"raise config.judge.max_tokens={self._settings.max_tokens}; ",
            "too long": "give a model with a longer context, or lower config.judge.max_tokens; ",
            "timed out": f"raise config.judge.timeout={self._settings.timeout:g}; ",
        }.get(record.reason, "")
        kept = f" (all answers: {self._path})" if self._path else ""
        said = " ".join(record.answer.split())[:300]
        return f"{advice}for example {record.reason}: {said or 'the answer is empty'}{kept}"


def _miss(fault: Fault, mode: str) -> Record:
    prompt_tokens, completion_tokens = fault.tokens
    return Record(None, fault.reason, fault.detail, mode, prompt_tokens, completion_tokens)


def _digest(everything: Any) -> str:
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
