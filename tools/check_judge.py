"""How often a judge prefers golds of a file of documents to damaged golds, and to tricks.

    python tools/check_judge.py DIR/validation.jsonl [--count=200] [--judge=embedding]

`evaluate` checks its judges on the built-in sets alone, as of a file it does not know which documents are
for that. FILE: as config.evaluate.documents takes it; its first documents that have a gold are asked about.
Prints a Markdown table with 95 % intervals; what a dagger stands behind, the judge was fitted to. The last
line: how often the gold wins against all tricks of its document.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.data.documents import Summarized
from srpo_jax.judges import loading
from srpo_jax.judges.judge import Judge
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.judges.validation import validate
from srpo_jax.runtime.errors import UserError

JUDGES = ("embedding", "shorter", "longer")


def documents(file: Path, count: int) -> list[Summarized]:
    """The first `count` with a gold, as one set; UserError where there are none."""
    found = [
        Summarized(f"{file.stem}/{one.id}", one.text, one.gold)
        for one in document_sets.read(DocumentSet(str(file)), "FILE")
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


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--count", type=int, default=200, help="documents (%(default)s)")
    parser.add_argument("--judge", choices=JUDGES, default="embedding", help="(%(default)s)")
    chosen = parser.parse_args(arguments)
    if chosen.count < 1:
        parser.error("--count must be 1 or more")
    judge = loading.load(JudgeSettings(name=chosen.judge))
    print(table(judge, documents(chosen.file, chosen.count)))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
