"""The Shannon game as the judge: the better a completion, the better the text can be guessed behind it.

The score of a summary y of a text x is what it tells a language model about x, in nats a token of x:

    s(x, y) = (log p(x | y) - log p(x)) / |x|

(Hovy and Lin's test of summaries, asked of a model.) Two summaries of one text share log p(x), so their
difference needs log p(x | y) alone, and only that is computed. It is taken a token, not in all: a
difference then means the same for long texts as for short ones. The model must be none of those compared:
a policy finds likely what it writes itself. Nothing tells as much of a text as its own words: copying wins.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.judges.judge import Prompt, readable
from srpo_jax.judges.scores import ScoreJudge, require_readable
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.models import Decoder, loading
from srpo_jax.models.likelihood import log_likelihood
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

BEFORE, BEHIND = "A summary of the text below: ", "\n\nText:\n"  # around the summary

Tokens = tuple[int, ...]


class ShannonScorer:
    """log p(x | y) / |x| under settings.source; its weights are read when they are first needed.

    The text of a conversation is all of its turns. The model is asked in plain text, its chat template or
    not, and lies on this process's own devices: one process judges alone.

    Raises:
        UserError: settings.source is empty or cannot be opened (see `models.loading`); or there are
            several processes, and it is a checkpoint that all of them would have to read.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        if not settings.source:
            raise UserError(
                "config.judge.source is empty: name a model that is none of those compared"
            )
        try:
            self._source = loading.open_source(settings.source)
        except UserError as error:
            raise UserError(f"config.judge.source: {error}") from error
        require_readable(settings.source)
        self._settings, self.source = settings, loading.pinned(settings.source)
        self.how = f"shannon, {settings.dtype}, {BEFORE!r}, {BEHIND!r}"
        limit = self._source.config.max_length
        self.unscored = f"empty, or longer with its summary than the model's {limit} tokens"

    def scores(self, prompts: Sequence[Prompt], completions: Sequence[str]) -> np.ndarray:
        """s(x, y) less what is the same for all y, float64 [N]; NaN for an empty or too long text."""
        found = np.full(len(prompts), np.nan)
        pairs = [self.ids(x, y) for x, y in zip(prompts, completions, strict=True)]
        limit = self._source.config.max_length
        fit = [i for i, (y, x) in enumerate(pairs) if x and len(y) + len(x) <= limit]
        if fit:
            summaries, texts = zip(*(pairs[i] for i in fit), strict=True)
            size = self._settings.batch_size
            logp = log_likelihood(self._model, summaries, texts, size)
            found[fit] = logp / [len(x) for x in texts]
        return found

    def ids(self, x: Prompt, y: str) -> tuple[Tokens, Tokens]:
        """What stands before the text, the summary in it, and the text, in token ids."""
        tokenizer = self._source.tokenizer
        text = tuple(tokenizer.encode(readable(x).strip(), continued=True))
        return _introduced(tokenizer, y.strip()), text

    @functools.cached_property
    def _model(self) -> Decoder:
        own = self._settings
        status(f"reading the Shannon judge's model {self.source}")
        return loading.load(self.source, own.dtype, mesh_module.local(self._source.config.width))


def _introduced(tokenizer: Tokenizer, y: str) -> Tokens:
    begins = tokenizer.begins_with_bos and tokenizer.bos_id is not None
    return (
        *((tokenizer.bos_id,) if begins else ()),
        *tokenizer.encode(BEFORE),
        *tokenizer.encode(y, continued=True),
        *tokenizer.encode(BEHIND, continued=True),
    )


def judge(settings: JudgeSettings) -> ScoreJudge:
    """The model settings.source as a judge; UserError as `ShannonScorer`."""
    scorer = ShannonScorer(settings)
    description = (
        f"the Shannon game: log p(text | completion) a token of the text under {settings.source}, "
        f"{settings.dtype}, times {settings.scale:g}: how much of the text a completion tells, so that "
        "copying wins; that model must be none of those compared; not validated by people"
    )
    return ScoreJudge(settings.label or settings.name, description, scorer, settings.scale)


def require_apart(judge: str, models: Mapping[str, str]) -> None:
    """UserError where the judge's source is a model compared, at whatever step. models: name -> source."""
    folder, _ = loading.split_step(judge)
    for name, source in models.items():
        other, _ = loading.split_step(source)
        if judge == source or (
            other.is_dir() and storage.absolute(folder) == storage.absolute(other)
        ):
            raise UserError(
                f"config.judge.source={judge} is the model {name!r}, which is compared: a model cannot "
                "judge itself by its own likelihood, so name another"
            )
