"""How the embedding judge's weights are found: the gold against texts that are surely worse.

    python -m srpo_jax.judges.fitting

fits them anew, and prints them and what the judge is worth on documents held out (a few minutes).

Beside the damages that `validation` reports there are others here, so that the weights serve for
what a small model writes: loops, rambling, filler, nothing at all, a sentence copied whole, a wrong
word. To see what the judge does with a kind of bad text it was never fitted to, it also prints
the rate for every damage with that damage left out of the fit.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from srpo_jax.data import documents
from srpo_jax.data.documents import Summarized
from srpo_jax.judges import features
from srpo_jax.judges.embedding import FEATURES, EmbeddingJudge, training_documents
from srpo_jax.judges.validation import DAMAGES, Check, other_gold, validate

_FIT_DOCUMENTS = 400  # of each set, at most
_PENALTY = 1e-3
_OPENINGS = ("This document is about", "The text describes", "A summary of", "The subject is")
# How surely the gold is better, where that is not plain: the weights should say so too, or a model
# would win by style alone. A whole sentence of the text is true; an announcement is but a blot.
_CERTAINTY = {"first sentence": 0.9, "middle sentence": 0.9, "gold dressed up": 0.75}
_PREAMBLES = ("Summary:\n\n**{}**", "Here is a summary of the text: {}", "# Summary\n{}")


def looped(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold three times over."""
    return ", ".join([documents[index].gold.rstrip(".")] * 3)


def rambling(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold, and then the second and third sentence of the text."""
    more = features.sentences_of(features.text_of(documents[index].prompt))[1:3]
    return f"{documents[index].gold.rstrip('.')}. {' '.join(more)}" if more else None


def filler(documents: Sequence[Summarized], index: int) -> str | None:
    """A phrase that fits every text, with one word of this one, its first words, or none."""
    generator = random.Random(documents[index].id)
    words = features.words_of(features.text_of(documents[index].prompt))
    word = generator.choice([word for word in words if len(word) > 4] or words)
    name = " ".join(words[: generator.randint(1, 3)])
    return f"{generator.choice(_OPENINGS)} {generator.choice(['this topic', word, name])}"


def dressed_up(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold with an announcement or a heading."""
    return random.Random(documents[index].id).choice(_PREAMBLES).format(documents[index].gold)


def nothing(documents: Sequence[Summarized], index: int) -> str | None:
    return ""


def first_sentence(documents: Sequence[Summarized], index: int) -> str | None:
    return features.sentences_of(features.text_of(documents[index].prompt))[0]


def middle_sentence(documents: Sequence[Summarized], index: int) -> str | None:
    sentences = features.sentences_of(features.text_of(documents[index].prompt))
    return sentences[len(sentences) // 2] if len(sentences) > 2 else None


def wrong_word(documents: Sequence[Summarized], index: int) -> str | None:
    """The gold with one of its longer words replaced by one of another document's gold."""
    generator = random.Random(documents[index].id)
    words = documents[index].gold.split()
    places = [place for place, word in enumerate(words) if len(word) > 3]
    others = [word for word in (other_gold(documents, index) or "").split() if len(word) > 3]
    if not places or not others:
        return None
    words[generator.choice(places)] = generator.choice(others)
    return " ".join(words)


FIT_DAMAGES: dict[str, Callable[[Sequence[Summarized], int], str | None]] = {
    **DAMAGES,
    "gold in a loop": looped,
    "gold, then rambling": rambling,
    "filler": filler,
    "gold dressed up": dressed_up,
    "nothing": nothing,
    "first sentence": first_sentence,
    "middle sentence": middle_sentence,
    "gold with a wrong word": wrong_word,
}


def differences(judge: EmbeddingJudge, members: Sequence[Summarized]) -> dict[str, np.ndarray]:
    """For each damage, features of the gold less those of the damaged text, [n, len(FEATURES)]."""
    found = {}
    for damage, apply in FIT_DAMAGES.items():
        damaged = [apply(members, index) for index in range(len(members))]
        kept = [
            (document.prompt, document.gold, text)
            for document, text in zip(members, damaged, strict=True)
            if text is not None and text != document.gold
        ]
        prompts, golds, texts = zip(*kept, strict=True)
        found[damage] = judge.features(prompts, golds) - judge.features(prompts, texts)
    return found


def fit(
    groups: Sequence[np.ndarray], labels: Sequence[float], penalty: float = _PENALTY
) -> np.ndarray:
    """Weights w [F] that minimise the mean cross-entropy plus an L2 penalty on s * w.

    Each group [n, F] of differences d counts the same; its label is P(the gold is better), to be
    met by sigmoid(d . w); s is the root mean square of each feature. The problem is convex; these
    are Newton's steps.
    """
    rows = np.concatenate(groups)
    share = np.concatenate([np.full(len(group), 1 / len(group)) for group in groups]) / len(groups)
    target = np.repeat(labels, [len(group) for group in groups])
    scale = np.sqrt(share @ rows**2)
    scale[scale == 0] = 1
    rows = rows / scale
    weights = np.zeros(rows.shape[1])
    for _ in range(30):
        found = 1 / (1 + np.exp(-rows @ weights))
        gradient = penalty * weights + (share * (found - target)) @ rows
        curvature = (rows * (share * found * (1 - found))[:, None]).T @ rows
        weights -= np.linalg.solve(curvature + penalty * np.eye(len(weights)), gradient)
    unscaled: np.ndarray = weights / scale
    return unscaled


def log_loss(rows: np.ndarray, weights: np.ndarray) -> float:
    """Mean of -log P(the gold is better), in nats; log 2 is that of a coin."""
    return float(np.logaddexp(0, -rows @ weights).mean())


def training_differences(judge: EmbeddingJudge) -> dict[str, dict[str, np.ndarray]]:
    """`differences` on the documents the weights are fitted to, by set of documents."""
    sets: dict[str, list[Summarized]] = {}
    for document in training_documents(for_weights=True):
        sets.setdefault(document.id.split("/")[0], []).append(document)
    return {name: differences(judge, members[:_FIT_DOCUMENTS]) for name, members in sets.items()}


def weights_from(
    data: Mapping[str, Mapping[str, np.ndarray]], without: str | None = None
) -> np.ndarray:
    """The weights [len(FEATURES)] fitted to all differences but those of the damage `without`."""
    groups = [
        (rows, _CERTAINTY.get(damage, 1.0))
        for found in data.values()
        for damage, rows in found.items()
        if damage != without
    ]
    return fit([rows for rows, _ in groups], [label for _, label in groups])


def _damage_table(
    train: Mapping[str, Mapping[str, np.ndarray]],
    test: Mapping[str, Mapping[str, np.ndarray]],
    weights: np.ndarray,
) -> Table:
    table = Table(title="gold preferred (log loss) on documents held out, by kind of damage")
    table.add_column("damage")
    for name in test:
        table.add_column(name, justify="right")
        table.add_column(f"{name}, kind left out of the fit", justify="right")
    for damage in FIT_DAMAGES:
        blind = weights_from(train, without=damage)
        cells = [
            f"{(found[damage] @ w > 0).mean():.2f} ({log_loss(found[damage], w):.2f})"
            for found in test.values()
            for w in (weights, blind)
        ]
        table.add_row(damage, *cells)
    return table


def _check_table(checks: Sequence[Check]) -> Table:
    table = Table(title="gold preferred to a damaged text, documents held out")
    for column in ("documents", "damage", "rate", "95 % interval", "count"):
        table.add_column(column)
    for check in checks:
        interval = f"{check.low:.3f} to {check.high:.3f}"
        row = (check.documents, check.damage, f"{check.rate:.3f}", interval, str(check.count))
        table.add_row(*row)
    return table


def main() -> None:
    """Fit, and print the weights and how the judge fares on documents held out (a few minutes)."""
    console = Console()
    judge = EmbeddingJudge(dict.fromkeys(FEATURES, 0.0))
    with console.status("measuring the training documents"):
        train = training_differences(judge)
    held_out = {
        name: documents.load(name, "validation") + documents.load(name, "test") for name in train
    }
    with console.status("measuring the documents held out"):
        test = {name: differences(judge, members[:400]) for name, members in held_out.items()}
    weights = weights_from(train)

    console.print("WEIGHTS = {")
    for name, weight in zip(FEATURES, weights, strict=True):
        console.print(f'    "{name}": {weight:.3f},', highlight=False)
    console.print("}")
    console.print(_damage_table(train, test, weights))
    with console.status("validating"):
        judge = EmbeddingJudge(dict(zip(FEATURES, weights.tolist(), strict=True)))
        checks = [check for members in held_out.values() for check in validate(judge, members)]
    console.print(_check_table(checks))


if __name__ == "__main__":
    main()
