"""A language model behind an OpenAI-compatible endpoint as the judge.

Each pair is asked in both orders, because such judges favour a position, and the two verdicts are
averaged. Answers are kept on disk, so that a run that was stopped does not ask, or pay, twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srpo_jax.judges.judge import Estimate, Prompt, Verdicts, require_equal
from srpo_jax.judges.llm import prompts as texts
from srpo_jax.judges.llm.interview import Interview, Question
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError

_ROUGH = {"logprobs": 2, "json": 10, "text": 4}  # tokens of an answer, if none is known


class LlmJudge:
    """P(a better than b | x): the mean verdict of both orders (A 1, tie 1/2, B 0, or between).

    What is no verdict is none: NaN, with a reason, kept as such and asked again by the next run. What it
    counts as (`settings.missing`) is for who makes numbers of the verdicts.
    folder: what `settings.cache` is relative to. ask: False for one that only estimates its cost: it
    needs neither package nor key. `template` is what is asked: its task, text and digest are for reports.

    Raises:
        UserError: `openai` is not installed, a setting is missing or at fault, the cache cannot be used;
            and, from `judge`, the endpoint cannot be used, or too many pairs have no verdict (what was
            answered is kept).
    """

    is_proxy = False

    def __init__(
        self, settings: JudgeSettings, folder: str | Path = ".", *, ask: bool = True
    ) -> None:
        if not settings.model:
            raise UserError("config.judge.model is empty: name a model of the endpoint")
        self.name = settings.label or "llm"
        self.template = texts.template(settings.template)
        self._settings = settings
        path = storage.place(folder) / settings.cache if settings.cache else None
        self._interview = Interview(settings, self.template, path, ask=ask)
        self.description = (
            f"{settings.model} at {self._interview.endpoint.url}, each pair asked in both orders "
            f"(template {self.template.task}, {self.template.digest})"
        )
        self._pairs: dict[frozenset[str], str] = {}  # its two keys -> why it has no verdict, or ""

    @property
    def facts(self) -> dict[str, str]:
        """What a report must say for the verdicts to be asked for again."""
        sent = ", ".join(
            f"{k} {json.dumps(v)}" for k, v in self._interview.endpoint.parameters.items()
        )
        return {
            "model": self._settings.model,
            "endpoint": self._interview.endpoint.url,
            "template": f"{self.template.task} ({self.template.digest})",
            "parameters": sent,
            "verdict": self._interview.mode,
            **_unusual(self._settings),
        }

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each. Equal completions are not asked about: 1/2."""
        require_equal(prompts, a, b)
        triples = [Question(*triple) for triple in zip(prompts, a, b, strict=True)]
        keys, records = self._interview.records(_both_orders(triples))
        probabilities = np.full(len(triples), 0.5)
        orders = np.full((2, len(triples)), np.nan)
        missing: dict[int, str] = {}
        for i, triple in enumerate(triples):
            if triple.first == triple.second:
                continue
            one, other = keys[triple], keys[triple.swapped]
            first, second = records[one].verdict, records[other].verdict
            orders[0, i] = np.nan if first is None else first
            orders[1, i] = np.nan if second is None else 1 - second
            probabilities[i] = orders[:, i].mean()
            reason = records[one].reason or records[other].reason
            self._pairs[frozenset((one, other))] = reason
            if reason:
                missing[i] = reason
        self._require_enough([key for key, record in records.items() if record.reason])
        return Verdicts(probabilities, orders, missing)

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N]; NaN where there is no verdict."""
        return self.judge(prompts, a, b).probabilities

    def cost(self) -> dict[str, float]:
        """So far, in this run.

        requests, prompt_tokens, completion_tokens, cached (answers that were there already), pairs,
        missing (pairs without verdict) and, where prices are set, price.
        """
        cost: dict[str, float] = {
            "requests": self._interview.endpoint.requests,
            **self._interview.spent,
        }
        cost |= {"pairs": len(self._pairs), "missing": sum(map(bool, self._pairs.values()))}
        price = self._price(cost["prompt_tokens"], cost["completion_tokens"])
        return cost if price is None else {**cost, "price": price}

    def estimate(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Estimate:
        """What judging these would cost; nothing is asked."""
        require_equal(prompts, a, b)
        triples = [Question(*triple) for triple in zip(prompts, a, b, strict=True)]
        own, mode = self._interview, self._interview.mode
        mode = "text" if mode == "auto" else mode
        keys = {question: own.key(question, mode) for question in _both_orders(triples)}
        known = own.known(keys, mode)
        new = [question for question, key in keys.items() if key not in known]
        characters = sum(len(m["content"]) for q in new for m in own.messages(q, mode))
        mean = own.store.mean_completion(own.identity)
        each = _ROUGH[mode] if mean is None else mean
        prompt_tokens, completion_tokens = characters // 4, round(each * len(new))
        at_most = len(new) * max(self._settings.max_tokens, round(each))
        return Estimate(
            requests=len(new),
            cached=len(keys) - len(new),
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            at_most=at_most,
            price=self._price(prompt_tokens, completion_tokens),
            price_at_most=self._price(prompt_tokens, at_most),
            how="a prompt's tokens taken as its characters / 4, an answer's as "
            + (f"{each}, without thinking" if mean is None else f"{each:.0f}, its mean so far"),
        )

    def _price(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        own = self._settings
        if not (own.prompt_price or own.completion_price):
            return None
        return (prompt_tokens * own.prompt_price + completion_tokens * own.completion_price) / 1e6

    def _require_enough(self, missing: Sequence[str]) -> None:
        """UserError if more pairs than allowed have no verdict. missing: keys of questions without."""
        reasons = Counter(filter(None, self._pairs.values()))
        allowed = self._settings.missing_share
        if not missing or sum(reasons.values()) <= allowed * len(self._pairs):
            return
        counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        record = self._interview.store.get(missing[:1])[missing[0]]
        raise UserError(
            f"{sum(reasons.values())} of {len(self._pairs)} pairs have no verdict of "
            f"{self._settings.model} ({counts}), more than config.judge.missing_share={allowed:g} allows: "
            f"{self._interview.example(record)}"
        )


def _unusual(settings: JudgeSettings) -> dict[str, str]:
    """How it is asked beside its parameters, where that is not the default: verdicts depend on it."""
    usual = JudgeSettings()
    named = ("system", "label_mass", "top_logprobs")
    own = {name: getattr(settings, name) for name in named}
    return {k: str(value) for k, value in own.items() if value != getattr(usual, k)}


def _both_orders(triples: Sequence[Question]) -> list[Question]:
    """What has to be asked, each question once."""
    unequal = (triple for triple in triples if triple.first != triple.second)
    return list(dict.fromkeys(q for triple in unequal for q in (triple, triple.swapped)))
