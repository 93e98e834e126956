"""Whether one model gains more by revising than others do: differences of changes, on the same documents.

    python tools/compare_changes.py RESULTS.json.gz … --of=MODEL [--judge=NAME] [--against=gold]

RESULTS: of `evaluate`, or kept by tools/keep_results.py; of the same documents or of others, a model in
some of them or in all. For each other model, over the documents that both were judged on: how many, MODEL's
change of the win rate from y_0 to the last revision, the other's, and the former less the latter, in points
with 95 % intervals. Reports have each change, and differences at equal N; this one is of both.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srpo_jax.reporting.compare import read
from srpo_jax.reporting.evidence import Evidence
from srpo_jax.reporting.groups import numbered
from srpo_jax.reporting.winrate import difference
from srpo_jax.runtime.errors import UserError

Place = tuple[str, str]  # of a document: its set and its id


class Change(NamedTuple):
    """P of y_0 and of the last revision on one document, and what that is about."""

    first: float
    last: float
    subject: str


Changes = dict[str, dict[Place, Change]]  # by model, then by document


def changes(results: Sequence[Evidence], judge: str, opponent: str) -> Changes:
    """What each model gains; documents without both verdicts are left out.

    judge: "" for the first of each. Raises UserError where a model has two verdicts on one document.
    """
    found: Changes = {}
    for each in results:
        for table in each.tables:
            if (table.key.judge, table.key.opponent) != (judge or each.judges[0].name, opponent):
                continue
            documents, here = each.set(table.key.documents), found.setdefault(table.key.model, {})
            rows = zip(documents.ids, documents.subjects, table.probabilities, strict=True)
            for identifier, subject, said in rows:
                change = Change(float(said[0]), float(said[-1]), subject)
                if np.isnan(change[:2]).any():
                    continue
                if here.setdefault((documents.name, identifier), change)[:2] != change[:2]:
                    raise UserError(
                        f"two of the results have {table.key.model} on the document {identifier!r}, with "
                        "other verdicts: give them apart"
                    )
    return found


def table(found: Mapping[str, Mapping[Place, Change]], model: str) -> str:
    """Markdown, a line for each other model; UserError for a model that is not there."""
    if model not in found:
        raise UserError(f"--of={model}: no results of it; there are {', '.join(found) or 'none'}")
    lines = ["| | documents | change | the other's | difference |", "|---|--:|--:|--:|--:|"]
    for other, theirs in found.items():
        both = [place for place in found[model] if place in theirs]
        if other == model or not both:
            continue
        groups = numbered([(name, found[model][name, one].subject) for name, one in both])
        (a_0, a), (b_0, b) = (
            np.array([of[place][:2] for place in both]).T for of in (found[model], theirs)
        )
        cells = [
            _points(difference(a, a_0, groups)),
            _points(difference(b, b_0, groups)),
            # (a - a_0) - (b - b_0), halved, as a difference of two numbers in [0, 1].
            _points(difference((a + b_0) / 2, (b + a_0) / 2, groups), 2),
        ]
        lines.append(f"| {model} less {other} | {len(both)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(interval: tuple[float, float, float], scale: float = 1) -> str:
    mean, low, high = (100 * scale * value for value in interval)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULTS")
    parser.add_argument("--of", required=True, help="the model whose change is compared")
    parser.add_argument("--judge", default="", help="(the first of each file)")
    parser.add_argument("--against", default="gold", help="the opponent (%(default)s)")
    chosen = parser.parse_args(arguments)
    results = [read(path).evidence for path in chosen.results]
    print(table(changes(results, chosen.judge, chosen.against), chosen.of))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
