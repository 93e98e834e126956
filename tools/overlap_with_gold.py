"""How much of what people wrote is in each revision: words shared with the gold. No judge is asked.

    python tools/overlap_with_gold.py RESULTS.json.gz … --documents=FILE [--cosine]

RESULTS: of `evaluate`, or kept by tools/keep_results.py; the golds come from FILE, a file of documents or
the name of a built-in set. Prints, in percent and over the documents of all RESULTS together, the means by
revision and the paired change from y_0 to the last one with its 95 % interval: F1 of words (ROUGE-1), F of
the longest common subsequence (ROUGE-L), and both sides of the former: which share of the answer's words
the gold has (precision), and of the gold's the answer (recall). Longer answers have more recall and less
precision. Words are runs of letters and digits in lower case. A coarse measure: a good answer in other
words counts as a bad one. --cosine: how near the answer is to the gold as a sentence of MiniLM, too (some
thirty texts a second). A report has the F1, too, where its golds are there (docs/evaluation.md).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz.distance import LCSseq

from srpo_jax.data import document_sets
from srpo_jax.judges.minilm import Embedder
from srpo_jax.reporting import texts
from srpo_jax.reporting.compare import read
from srpo_jax.reporting.evidence import Evidence
from srpo_jax.reporting.winrate import difference
from srpo_jax.runtime.errors import UserError

MEASURES = ("F1", "ROUGE-L", "precision", "recall", "cosine")


def overlap(answer: str, gold: str) -> tuple[float, float, float, float]:
    """MEASURES of an answer but the last; 0 where it has no words."""
    ours, theirs = texts.bare(answer), texts.bare(gold)
    if not ours or not theirs:
        return (0.0,) * 4
    shared = (Counter(ours) & Counter(theirs)).total()
    return (
        texts.overlap(answer, gold),
        2 * LCSseq.similarity(ours, theirs) / (len(ours) + len(theirs)),
        shared / len(ours),
        shared / len(theirs),
    )


def measured(
    results: Sequence[Evidence],
    golds: dict[str, str],
    embed: Callable[[Sequence[str]], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """{model: [documents, revisions, MEASURES]}, documents without gold left out.

    embed: texts to unit vectors; without it there is no cosine. Raises UserError where results have other
    models, share documents, or have one that is not in golds.
    """
    models = results[0].models
    found: dict[str, list[np.ndarray]] = {model: [] for model in models}
    ids = [one for each in results for one in each.sets[0].ids]
    if len(set(ids)) < len(ids):
        raise UserError("the results share documents, which would count twice: give them apart")
    for each in results:
        if set(each.models) != set(models):
            raise UserError(f"the results have different models: {each.models} and {models}")
        documents = each.sets[0]
        for model in models:
            rows = each.written(model, documents.name).revisions
            for name, silent, row in zip(documents.ids, documents.golds, rows, strict=True):
                if silent is None:
                    continue
                if name not in golds:
                    raise UserError(f"--documents has no document {name!r} with a gold")
                here = np.array([overlap(y, golds[name]) for y in row])
                if embed:
                    *answers, gold = embed([*row, golds[name]])
                    here = np.column_stack([here, np.clip(np.array(answers) @ gold, 0, 1)])
                found[model].append(here)
    return {model: np.array(rows) for model, rows in found.items()}


def table(found: dict[str, np.ndarray]) -> str:
    count = next(iter(found.values())).shape[1]
    several = len(next(iter(found.values())))
    header = [f"{several} documents", "", "N = 0", *map(str, range(1, count))]
    lines = [
        f"| {' | '.join([*header, f'{count - 1} less 0'])} |",
        "|---|---" + "|--:" * (count + 1) + "|",
    ]
    for model, rows in found.items():
        for k, name in enumerate(MEASURES[: rows.shape[2]]):
            means = [f"{100 * mean:.1f}" for mean in rows[:, :, k].mean(axis=0)]
            mean, low, high = (100 * x for x in difference(rows[:, -1, k], rows[:, 0, k]))
            change = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
            lines.append(f"| {' | '.join([model, name, *means, change])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS")
    parser.add_argument("--documents", required=True, help="a file, or a built-in set")
    parser.add_argument("--split", default="test", help="of a built-in set (%(default)s)")
    parser.add_argument("--cosine", action="store_true", help="of sentence embeddings, too")
    chosen = parser.parse_args(arguments)
    (given,) = document_sets.resolve((chosen.documents,), chosen.split)
    golds = {one.id: one.gold for one in document_sets.read(given, "--documents") if one.gold}
    embed = Embedder() if chosen.cosine else None
    print(table(measured([read(path).evidence for path in chosen.results], golds, embed)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
