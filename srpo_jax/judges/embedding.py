"""A local proxy judge: similarity of meaning, less copying, repetition, rambling and bad language.

It needs no service and is independent of any policy trained here, but nobody has checked it against
people's preferences: a report must name it and say so. What it is worth is shown by
`python -m srpo_jax.judges.fitting`, which prints how often it prefers the gold to damaged golds
on documents it was not fitted to, and the weights below, fitted anew. The weights are kept here,
not fitted when the judge is loaded: fitting takes minutes, and a judge must be the same everywhere.
Known limits: of the aspect that a prompt asks for it sees nothing, and of the facts only whether
their words occur in the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from srpo_jax.data import documents
from srpo_jax.data.documents import Summarized
from srpo_jax.judges import features
from srpo_jax.judges.judge import Prompt, Verdicts, preference, readable, require_equal
from srpo_jax.judges.minilm import Embedder

FEATURES = ("similarity", *features.NAMES)

# Printed by `python -m srpo_jax.judges.fitting`.
WEIGHTS = {
    "similarity": 5.287,
    "fluency": 0.600,
    "weakest link": 0.042,
    "ending": 0.548,
    "lead": -2.299,
    "copied run": -2.507,
    "copied share": -1.199,
    "grounded": 1.973,
    "repetition": -6.857,
    "chatter": -2.103,
    "words": 0.524,
    "too short": -0.397,
    "too long": -5.725,
}

_TRAINING_SETS = ("wikipedia", "aclsum")


class EmbeddingJudge:
    """P(a better than b | x) = sigmoid(w . (features(x, a) - features(x, b))).

    It is antisymmetric by construction and never sees a gold as such. Each text is embedded once
    and its vector (1.5 kB) remembered.

    Raises:
        UserError: MiniLM or the texts its language is learned from cannot be brought (see
            `assets.fetch`).
    """

    name = "embedding"
    is_proxy = True
    description = (
        "a local proxy, not validated by people: MiniLM similarity to the document, with terms for "
        "copying, grounding, fluency, repetition and length"
    )

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self._weights = np.array([(weights or WEIGHTS)[name] for name in FEATURES])
        self._embedder = Embedder()
        self._language = features.learn_language(training_documents(for_weights=False))
        self._known: dict[tuple[str, str], np.ndarray] = {}

    def judge(self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]) -> Verdicts:
        """On N prompts and N completions each; the order means nothing to it."""
        require_equal(prompts, a, b)
        xs = [readable(prompt) for prompt in prompts]
        return Verdicts(preference((self.features(xs, a) - self.features(xs, b)) @ self._weights))

    def probabilities(
        self, prompts: Sequence[Prompt], a: Sequence[str], b: Sequence[str]
    ) -> np.ndarray:
        """P(a better than b | prompt), float64 [N], for N prompts and N completions each."""
        return self.judge(prompts, a, b).probabilities

    def cost(self) -> dict[str, float]:
        """Nothing is paid."""
        return {}

    def features(self, prompts: Sequence[str], completions: Sequence[str]) -> np.ndarray:
        """Features [N, len(FEATURES)] float64 of N completions, unweighted."""
        pairs = list(zip(prompts, completions, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        texts = self._embedder([features.text_of(prompt) for prompt, _ in new])
        summaries = self._embedder([completion for _, completion in new])
        for pair, similarity in zip(new, (texts * summaries).sum(axis=1), strict=True):
            self._known[pair] = np.array([similarity, *features.measure(self._language, *pair)])
        return np.array([self._known[pair] for pair in pairs]).reshape(-1, len(FEATURES))


def training_documents(for_weights: bool) -> list[Summarized]:
    """Documents of the train splits: a third is for the weights, the rest for the language.

    Were both learned from the same golds, the language would know those golds and the weights
    would trust it too much. The third is chosen by the text, so a paper's aspects stay together.
    """
    every = [d for name in _TRAINING_SETS for d in documents.load(name, "train")]
    return [d for d in every if (documents.part(features.text_of(d.prompt), 3) == 0) == for_weights]
