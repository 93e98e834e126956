"""How often a judge prefers golds of a file of documents to damaged golds, and to tricks.

    python tools/check_judge.py DIR/validation.jsonl [--count=200] [--judge=embedding]
    python tools/check_judge.py DIR/train.jsonl --labels=WORKDIR/pairs.jsonl
    python tools/check_judge.py wikipedia --split=train --labels=WORKDIR/pairs.jsonl

`evaluate` checks its judges on the built-in sets alone, as of a file it does not know which documents are
for that. FILE: as config.evaluate.documents takes it; its first documents that have a gold are asked about.
Prints a Markdown table with 95 % intervals; what a dagger stands behind, the judge was fitted to. The last
line: how often the gold wins against all tricks of its document. --labels: of pairs that a judge has
labelled, how often the preferred text shares more words with the gold of its document than the other, where
they differ in that; and how often it is the longer, where they differ in that. No judge is asked.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.data.documents import Summarized
from srpo_jax.data.records import Pair, read_pairs
from srpo_jax.judges import loading
from srpo_jax.judges.judge import Judge
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.judges.validation import validate
from srpo_jax.reporting.texts import overlap, words
from srpo_jax.reporting.winrate import win_rate
from srpo_jax.runtime.errors import UserError

JUDGES = ("embedding", "shorter", "longer")


def documents(file: Path, count: int, split: str = "") -> list[Summarized]:
    """The first `count` with a gold, as one set; UserError where there are none."""
    found = [
        Summarized(f"{file.stem}/{one.id}", one.text, one.gold)
        for one in document_sets.read(DocumentSet(str(file), split=split), "FILE")
        if one.gold
    ]
    if not found:
        raise UserError(f"{file} has no document with a gold, and golds are what is damaged")
    return found[:count]


def table(judge: Judge, asked: Sequence[Summarized]) -> str:
    """Markdown, a line a kind of damage."""
    lines = ["| gold preferred to | | documents |", "|---|--:|--:|"]
    for one in validate(judge, asked):
        name = one.damage + ("" if one.held_out else " †")
        rate = f"{100 * one.rate:.1f} % ({100 * one.low:.1f} to {100 * one.high:.1f})"
        lines.append(f"| {name} | {rate} | {one.count} |")
    return "\n".join(lines)


def labels(pairs: Sequence[Pair], golds: dict[object, str]) -> str:
    """Markdown, a line a measure. Raises UserError for pairs of other documents, or none that differ."""
    lines = ["| preferred text | | pairs that differ |", "|---|--:|--:|"]
    known = [(one, golds[one.prompt]) for one in pairs if one.prompt in golds]
    if len(known) < len(pairs):
        raise UserError(f"FILE lacks {len(pairs) - len(known)} of {len(pairs)} prompts of --labels")
    for name, measure in (
        ("shares more words with the gold (F1)", overlap),
        ("is the longer", lambda text, _: words(text)),
    ):
        margins = [measure(p.chosen, gold) - measure(p.rejected, gold) for p, gold in known]
        differ = np.array([margin > 0 for margin in margins if margin], float)
        if not len(differ):
            raise UserError(f"no two texts of --labels differ in which one {name}")
        mean, low, high = (100 * x for x in win_rate(differ))
        lines.append(f"| {name} | {mean:.1f} % ({low:.1f} to {high:.1f}) | {len(differ)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--count", type=int, default=200, help="documents (%(default)s)")
    parser.add_argument("--judge", choices=JUDGES, default="embedding", help="(%(default)s)")
    parser.add_argument("--split", default="", help="of a source that has splits")
    parser.add_argument("--labels", type=Path, help="pairs of a judge about the documents of FILE")
    chosen = parser.parse_args(arguments)
    if chosen.count < 1:
        parser.error("--count must be 1 or more")
    if chosen.labels:
        every = document_sets.read(DocumentSet(str(chosen.file), split=chosen.split), "FILE")
        golds = {one.prompt: one.gold for one in every if one.gold}
        print(labels(read_pairs(chosen.labels), golds))
        return
    judge = loading.load(JudgeSettings(name=chosen.judge))
    print(table(judge, documents(chosen.file, chosen.count, chosen.split)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
