"""A local proxy judge: similarity of meaning, less copying, repetition, rambling and bad language.

It needs no service and is independent of any policy trained here, but nobody has checked it against
people's preferences: a report must name it and say so. What it is worth is shown by
`python -m srpo_jax.judges.fitting`, which prints how often it prefers the gold to damaged golds
and to tricks on documents it was not fitted to, and the weights below, fitted anew. The weights are
kept here, not fitted when the judge is loaded: fitting takes minutes, and a judge must be the same
everywhere.

Nothing is judged by what was fitted on it. A hash of a text puts it in one of three folds; a text of
fold f is judged with the language learned on fold f + 1 and the weights fitted to fold f - 1. So a
document that a policy was trained on and one that it never saw are judged alike, whatever the split.

Known limits: of the aspect that a prompt asks for it sees nothing, and of the facts only whether
their words and numbers occur in the text: a number of the text in another's place is not seen.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence

import numpy as np

from srpo_jax.data import documents
from srpo_jax.data.documents import Summarized
from srpo_jax.judges import features
from srpo_jax.judges.judge import (
    Prompt,
    Verdicts,
    preference,
    readable,
    recalled,
    require_equal,
)
from srpo_jax.judges.minilm import Embedder
from srpo_jax.judges.tricks import HELD_OUT, TRICKS
from srpo_jax.judges.validation import DAMAGES

FEATURES = ("similarity", *features.NAMES)
FOLDS = 3

# Printed by `python -m srpo_jax.judges.fitting`; for texts of fold 0, 1 and 2.
WEIGHTS: dict[str, tuple[float, ...]] = {
    "similarity": (7.897, 6.034, 6.043),
    "fluency": (0.439, 0.652, 0.476),
    "weakest link": (0.402, -0.123, 0.025),
    "ending": (0.380, 0.507, 0.380),
    "order": (0.439, 0.611, 0.602),
    "function words": (-3.649, -4.139, -4.156),
    "telegram": (-4.316, -4.052, -4.250),
    "lead": (-2.063, -1.725, -2.043),
    "copied run": (-3.470, -4.074, -3.161),
    "grounded": (5.280, 6.419, 6.989),
    "name": (-8.679, -7.087, -7.252),
    "foreign names": (-1.291, -2.971, -2.373),
    "numbers": (-3.502, -3.224, -1.484),
    "negation": (-1.788, -4.383, -2.848),
    "repetition": (-6.531, -7.337, -6.497),
    "chatter": (-4.091, -4.328, -3.126),
    "words": (1.564, 1.622, 1.292),
    "too short": (-0.609, -1.126, 0.097),
    "too long": (-6.879, -5.068, -8.536),
}

_TRAINING_SETS = ("wikipedia", "aclsum")


class EmbeddingJudge:
    """P(a better than b | x) = sigmoid(w . (features(x, a) - features(x, b))).

    It is antisymmetric by construction and never sees a gold as such. Each text is embedded once
    and its vector (1.5 kB) remembered. weights: of each feature, for each fold of the text.

    Raises:
        UserError: MiniLM or the texts its language is learned from cannot be brought (see
            `assets.fetch`).
    """

    is_proxy = True
    fitted_to = frozenset(DAMAGES) | (TRICKS.keys() - HELD_OUT)

    def __init__(
        self, weights: Mapping[str, Sequence[float]] | None = None, name: str = "embedding"
    ) -> None:
        self.name = name
        chosen = weights or WEIGHTS
        self._weights = np.array([chosen[name] for name in FEATURES], np.float64)
        self.embedder = Embedder()
        self._known: dict[tuple[int, str, str], np.ndarray] = {}
        version = hashlib.sha256(
            json.dumps([FEATURES, self._weights.tolist(), *features.CHANGES]).encode()
        )
        self.description = (
            "a local proxy, not validated by people: MiniLM similarity to the document, with terms for "
            "copying, grounding, fluency, negation, numbers, repetition and length; it does not see "
            "which of the text's numbers belongs where, nor whether the aspect asked for was met "
            f"(version {version.hexdigest()[:8]})"
        )

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each; the order means nothing to it."""
        require_equal(prompts, a, b)
        xs = [readable(prompt) for prompt in prompts]
        weights = self._weights[:, [fold(x) for x in xs]].T
        differences = self.features(xs, a) - self.features(xs, b)
        return Verdicts(preference((weights * differences).sum(axis=1)))

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N], for N prompts and N completions each."""
        return self.judge(prompts, a, b).probabilities

    def cost(self) -> dict[str, float]:
        """Nothing is paid."""
        return {}

    def features(
        self, prompts: Sequence[str], completions: Sequence[str], step: int = 1
    ) -> np.ndarray:
        """Features [N, len(FEATURES)] float64 of N completions, unweighted.

        step: a text of fold f is measured with the language of fold f + step; 1 to judge it, 2 to fit
        weights to it.
        """
        keys = [(language_fold(x, step), x, y) for x, y in zip(prompts, completions, strict=True)]
        self._known = recalled(self._known, keys)
        new = [key for key in dict.fromkeys(keys) if key not in self._known]
        texts = self.embedder([features.text_of(x) for _, x, _ in new])
        summaries = self.embedder([y for *_, y in new])
        for key, similarity in zip(new, (texts * summaries).sum(axis=1), strict=True):
            language, x, y = key
            self._known[key] = np.array([similarity, *features.measure(_language(language), x, y)])
        return np.array([self._known[key] for key in keys]).reshape(-1, len(FEATURES))


def fold(prompt: str) -> int:
    """The fold, 0 to FOLDS - 1, of a text, fixed by a hash; whatever the aspect asked for."""
    return documents.part(features.text_of(prompt), FOLDS)


def language_fold(prompt: str, step: int = 1) -> int:
    """The fold whose language measures a text: never the text's own (step 1 or 2)."""
    return (fold(prompt) + step) % FOLDS


def weights_fold(of: int) -> int:
    """The fold to whose documents the weights are fitted that judge texts of the fold `of`."""
    return (of + 2) % FOLDS


def training_documents(of: int) -> tuple[Summarized, ...]:
    """The documents of the train splits that are in the fold `of`."""
    return _folds()[of]


@functools.cache
def _folds() -> tuple[tuple[Summarized, ...], ...]:
    every = [d for name in _TRAINING_SETS for d in documents.load(name, "train")]
    return tuple(tuple(d for d in every if fold(d.prompt) == f) for f in range(FOLDS))


@functools.cache
def _language(of: int) -> features.Language:
    return features.learn_language(training_documents(of))
