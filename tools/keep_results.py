"""Keeps the results of evaluations in small files, without the documents.

    python tools/keep_results.py DIR NAME=WORKDIR …

DIR/NAME.json.gz has what WORKDIR/report/results.json has: the models' texts, all verdicts, ids and facts.
Prompts are left out, and of golds no letter is left but their number, which lengths are compared by; of the
command and the facts no folder is left, but names are. Verdicts have six digits, which saves a quarter.
`python -m srpo_jax.evaluate --compare DIR/A.json.gz DIR/B.json.gz` makes tables of them.
"""

import dataclasses
import gzip
import re
import sys
from pathlib import Path

import numpy as np

from srpo_jax.reporting.codec import to_json
from srpo_jax.reporting.compare import read
from srpo_jax.reporting.evidence import Documents
from srpo_jax.reporting.verdicts import VerdictTable
from srpo_jax.runtime.errors import UserError


def keep(workdir: Path, path: Path) -> int:
    """Writes the file, and returns its size in bytes. Raises UserError where there is no report."""
    report = read(workdir / "report")
    sets = tuple(_silent(documents) for documents in report.evidence.sets)
    command = nowhere(report.evidence.command)
    facts = tuple((label, nowhere(value)) for label, value in report.evidence.facts)
    tables = tuple(map(shortened, report.evidence.tables))
    evidence = dataclasses.replace(
        report.evidence, sets=sets, tables=tables, facts=facts, command=command
    )
    kept = to_json(dataclasses.replace(report, evidence=evidence)).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(kept, mtime=0))
    return path.stat().st_size


def shortened(table: VerdictTable) -> VerdictTable:
    """With six significant digits."""
    orders = None if table.orders is None else _six_digits(table.orders)
    return dataclasses.replace(table, probabilities=_six_digits(table.probabilities), orders=orders)


def _six_digits(values: np.ndarray) -> np.ndarray:
    return np.array([float(f"{value:.6g}") for value in values.ravel()]).reshape(values.shape)


def nowhere(text: str) -> str:
    """A command or a fact, of whose absolute paths the last part is left."""
    return re.sub(r"(?<![^=:'\s])(?:[a-z0-9]+:/)?/(?:[^\s/'\",:]+/)*(?=[^\s/])", "", text)


def _silent(documents: Documents) -> Documents:
    golds = tuple(gold and re.sub(r"\S", "·", gold) for gold in documents.golds)
    return dataclasses.replace(documents, prompts=("",) * len(documents.ids), golds=golds)


if __name__ == "__main__":
    if len(sys.argv) < 3 or any("=" not in given for given in sys.argv[2:]):
        sys.exit(__doc__)
    for given in sys.argv[2:]:
        name, _, workdir = given.partition("=")
        try:
            size = keep(Path(workdir), Path(sys.argv[1]) / f"{name}.json.gz")
        except UserError as error:
            sys.exit(f"error: {error}")
        print(f"{name}: {size:,} bytes")
