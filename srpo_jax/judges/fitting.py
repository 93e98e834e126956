"""How the embedding judge's weights are found: the gold against texts that are surely worse.

    python -m srpo_jax.judges.fitting

fits them anew, and prints them and what the judge is worth on documents held out (some minutes).

Beside the damages that `validation` reports there are others here, so that the weights serve for
what a small model writes: loops, rambling, filler, nothing at all, a sentence copied whole, a wrong
word. Of the tricks, half of the kinds are fitted to and half only reported.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from srpo_jax.data import documents
from srpo_jax.data.documents import Summarized
from srpo_jax.judges import features
from srpo_jax.judges.embedding import (
    FEATURES,
    FOLDS,
    EmbeddingJudge,
    fold,
    training_documents,
    weights_fold,
)
from srpo_jax.judges.judge import readable
from srpo_jax.judges.minilm import Embedder
from srpo_jax.judges.tricks import HELD_OUT, TRICKS, Damage
from srpo_jax.judges.validation import DAMAGES, Check, damaged, other_gold, validate

_FIT_DOCUMENTS = 60  # of each set and fold, at most
_CHECK_DOCUMENTS = 400  # of each set, at most
_PENALTY = 1e-3
_OPENINGS = ("This document is about", "The text describes", "A summary of", "The subject is")
# How surely the gold is better, where that is not plain: the weights should say so too, or a model
# would win by style alone. A whole sentence of the text is true, and so is what an announcement precedes.
_CERTAINTY = {"first sentence": 0.9, "middle sentence": 0.9, "gold dressed up": 0.9}
# To be about the text at all comes first.
_EMPHASIS = {"another document's gold": 3}
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


FIT_DAMAGES: dict[str, Damage] = {
    **DAMAGES,
    **{name: trick for name, trick in TRICKS.items() if name not in HELD_OUT},
    "gold in a loop": looped,
    "gold, then rambling": rambling,
    "filler": filler,
    "gold dressed up": dressed_up,
    "nothing": nothing,
    "first sentence": first_sentence,
    "middle sentence": middle_sentence,
    "gold with a wrong word": wrong_word,
}


def differences(
    judge: EmbeddingJudge,
    members: Sequence[Summarized],
    damages: Mapping[str, Damage],
    step: int = 1,
) -> dict[str, np.ndarray]:
    """For each damage, features of the gold less those of the damaged text, [n, len(FEATURES)].

    step: which language measures them, see `EmbeddingJudge.features`.
    """
    found = {}
    for part in damaged(members, damages):
        prompts = [readable(prompt) for prompt in part.prompts]
        golds = judge.features(prompts, part.golds, step)
        found[part.damage] = golds - judge.features(prompts, part.texts, step)
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


def training_differences(judge: EmbeddingJudge, of: int) -> dict[str, dict[str, np.ndarray]]:
    """`differences` on the documents whose fold is `of`, by set of documents."""
    sets: dict[str, list[Summarized]] = {}
    for document in training_documents(of):
        sets.setdefault(document.id.split("/")[0], []).append(document)
    return {
        name: differences(judge, members[:_FIT_DOCUMENTS], FIT_DAMAGES, step=2)
        for name, members in sets.items()
    }


def weights_from(data: Mapping[str, Mapping[str, np.ndarray]]) -> np.ndarray:
    """The weights [len(FEATURES)] fitted to all differences."""
    groups = [
        (rows, _CERTAINTY.get(damage, 1.0))
        for found in data.values()
        for damage, rows in found.items()
        for _ in range(_EMPHASIS.get(damage, 1))
    ]
    return fit([rows for rows, _ in groups], [label for _, label in groups])


def fitted_weights(judge: EmbeddingJudge) -> dict[str, tuple[float, ...]]:
    """What embedding.WEIGHTS holds: for each feature its weight for texts of each fold."""
    columns = [weights_from(training_differences(judge, weights_fold(f))) for f in range(FOLDS)]
    return {name: tuple(row) for name, row in zip(FEATURES, np.transpose(columns), strict=True)}


def nearest_gold(embed: Embedder) -> Damage:
    """The other document's gold that is most like the text: what a fair model might have written.

    Of the same fold: the language that judges the text must know neither gold.
    """

    def nearest(documents: Sequence[Summarized], index: int) -> str | None:
        text = features.text_of(documents[index].prompt)
        fellows = [d for d in documents if fold(d.prompt) == fold(text)]
        others = [d.gold for d in fellows if features.text_of(d.prompt) != text]
        return others[int(np.argmax(embed(others) @ embed([text])[0]))] if others else None

    return nearest


def fairness(judge: EmbeddingJudge, name: str) -> dict[str, tuple[Check, Check]]:
    """How often the gold is preferred to each stand-in for a model, on train and on validation documents.

    Were something of the judge fitted to the documents that it judges, the first would be larger.
    """
    stand_ins: dict[str, Damage] = {
        "first sentence": first_sentence,
        "middle sentence": middle_sentence,
        "the likest gold of its fold": nearest_gold(judge.embedder),
        "gold with a wrong word": wrong_word,
    }
    held_out = (documents.load(name, "validation") + documents.load(name, "test"))[
        :_CHECK_DOCUMENTS
    ]
    train = _of_as_many_texts(documents.load(name, "train"), held_out)
    checks = (validate(judge, members, stand_ins) for members in (train, held_out))
    return {a.damage: (a, b) for a, b in zip(*checks, strict=True)}


def _of_as_many_texts(
    members: Sequence[Summarized], like: Sequence[Summarized]
) -> list[Summarized]:
    """The first of `members`, with all aspects of a text: of more texts, another gold would be liker."""
    count = len({features.text_of(document.prompt) for document in like})
    texts = list(dict.fromkeys(features.text_of(document.prompt) for document in members))
    return [d for d in members if features.text_of(d.prompt) in set(texts[:count])]


def _fairness_table(name: str, found: Mapping[str, tuple[Check, Check]]) -> Table:
    table = Table(title=f"{name}: gold preferred on training documents, and on others")
    for column in ("to", *2 * ("rate", "95 % interval", "count")):
        table.add_column(column)
    for damage, checks in found.items():
        cells = [
            cell
            for c in checks
            for cell in (f"{c.rate:.3f}", f"{c.low:.3f} to {c.high:.3f}", str(c.count))
        ]
        table.add_row(damage, *cells)
    return table


def _check_table(checks: Sequence[Check]) -> Table:
    table = Table(title="gold preferred to a damaged text, documents held out")
    for column in ("documents", "damage", "fitted to", "rate", "95 % interval", "count"):
        table.add_column(column)
    for check in checks:
        interval = f"{check.low:.3f} to {check.high:.3f}"
        fitted = "" if check.held_out else "yes"
        row = (check.documents, check.damage, fitted, f"{check.rate:.3f}", interval)
        table.add_row(*row, str(check.count))
    return table


def main() -> None:
    """Fit, and print the weights and how the judge fares on documents held out (some minutes)."""
    console = Console()
    with console.status("measuring the training documents"):
        weights = fitted_weights(EmbeddingJudge(dict.fromkeys(FEATURES, (0.0,) * FOLDS)))
    console.print("WEIGHTS = {")
    for name, row in weights.items():
        console.print(f'    "{name}": ({", ".join(f"{w:.3f}" for w in row)}),', highlight=False)
    console.print("}")
    judge = EmbeddingJudge(weights)
    for name in ("wikipedia", "aclsum"):
        held_out = documents.load(name, "validation") + documents.load(name, "test")
        with console.status(f"checking on {name}"):
            console.print(_check_table(validate(judge, held_out[:_CHECK_DOCUMENTS])))
            console.print(_fairness_table(name, fairness(judge, name)))


if __name__ == "__main__":
    argparse.ArgumentParser("python -m srpo_jax.judges.fitting", description=__doc__).parse_args()
    main()
