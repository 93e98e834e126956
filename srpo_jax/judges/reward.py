"""A reward model as the judge: P(a better than b | x) = sigmoid(r(x, a) - r(x, b)), by Bradley and Terry.

What it is worth is what its training was; how it is asked must be how it was trained, which only a run of
this project says. See `models.reward` for what can be read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.judges.judge import Prompt, readable
from srpo_jax.judges.scores import ScoreJudge, require_readable
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.models import reward
from srpo_jax.models.reward import RewardModel
from srpo_jax.prompts import Arguments, Renderer
from srpo_jax.prompts.chat import Chat
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

PLAIN = "plain text"  # of a model without chat template


class RewardScorer:
    """r(x, y) of a sequence classifier; its weights are read when they are first needed.

    The model lies on this process's own devices: one process judges alone.

    Raises:
        UserError: settings.source is empty, or no reward model's directory (see `models.reward`); or there
            are several processes, and it is a run, whose checkpoint all of them would have to read.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        if not settings.source:
            raise UserError("config.judge.source is empty: name the directory of a reward model")
        require_readable(settings.source)
        try:
            self._source = reward.open_source(storage.here(settings.source, "the source"))
        except UserError as error:
            raise UserError(f"config.judge.source: {error}") from error
        self._settings, self.source = settings, self._source.name
        self.scale = self._source.scale if settings.normalise else None
        tokenizer, run = self._source.tokenizer, self._source.data
        own = "dialogue" if tokenizer.chat_template else PLAIN
        self.template = settings.reward_template or (run["template"] if run else own)
        self._renderer: Renderer | None = None
        if run and self.template == run["template"]:
            given = Arguments(tuple(run["template_arguments"]), run["template_date"])
            self._renderer = Renderer(self.template, tokenizer, given)
        elif self.template == "dialogue":
            self._chat = Chat(tokenizer)
        elif self.template != PLAIN:
            self._renderer = Renderer(self.template, tokenizer)
        asked = run and {key: run[key] for key in ("template_arguments", "template_date")}
        self.how = f"reward, {settings.dtype}, {self.template}, {asked}, {self.scale}"
        self.unscored = f"longer than the reward model's {self._source.config.max_length} tokens"

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """r(x, y), float64 [N]; NaN for a text that is longer than the model reads.

        On the model's scale, if it has one: 0 is the mean of its reference completions, 1 their deviation.
        """
        found = np.full(len(prompts), np.nan)
        texts = [self.ids(x, y) for x, y in zip(prompts, completions, strict=True)]
        fit = [i for i, ids in enumerate(texts) if len(ids) <= self._source.config.max_length]
        if fit:
            found[fit] = self._model.scores([texts[i] for i in fit], self._settings.batch_size)
        return self.scale.normalised(found) if self.scale else found

    def ids(self, x: Prompt, y: str) -> tuple[int, ...]:
        """x and y in token ids, as the model is asked."""
        tokenizer = self._source.tokenizer
        if self._renderer is not None:
            prompt = self._renderer.prompt(x)
            return (*prompt.direct, *self._renderer.completion(y), self._renderer.eos)
        if self.template == PLAIN:
            return _plain(tokenizer, x, y)
        turns = [{"role": "user", "content": x.strip()}] if isinstance(x, str) else []
        turns += [{"role": t.role, "content": t.content} for t in x if not isinstance(t, str)]
        turns.append({"role": "assistant", "content": y.strip()})
        return self._chat.ids(turns, begin_answer=False)

    @functools.cached_property
    def _model(self) -> RewardModel:
        status(f"reading the reward model {self.source}")
        mesh = mesh_module.local(self._source.config.width)
        return reward.load(self._source, self._settings.dtype, mesh)


def _plain(tokenizer: Tokenizer, x: Prompt, y: str) -> tuple[int, ...]:
    """x, an empty line, y, end of sequence."""
    begins = tokenizer.begins_with_bos and tokenizer.bos_id is not None
    return (
        *((tokenizer.bos_id,) if begins else ()),
        *tokenizer.encode(readable(x).strip()),
        *tokenizer.encode("\n\n", continued=True),
        *tokenizer.encode(y.strip(), continued=True),
        tokenizer.eos_id,
    )


def judge(settings: JudgeSettings) -> ScoreJudge:
    """The reward model in settings.source as a judge; UserError as `RewardScorer`.

    Its verdicts are those of the rewards as they were learned, whatever the scale of its scores is.
    """
    scorer = RewardScorer(settings)
    unit = scorer.scale.deviation if scorer.scale else 1.0
    description = (
        f"the reward model {scorer.source}, prompts put as {scorer.template}, {settings.dtype}; it is "
        "worth what it was trained on, which nobody has checked here"
    )
    return ScoreJudge(settings.label or settings.name, description, scorer, unit)
