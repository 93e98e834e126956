"""Asks the Shannon judge of an evaluation that another judge has judged, and keeps its scores.

    python tools/second_judge.py WORKDIR KEPT.json.gz --source=MODEL [--revisions 0 5]
    python tools/second_judge.py RESULTS.json.gz KEPT.json.gz --source=MODEL --documents=FILE.jsonl
    python tools/second_judge.py --show KEPT.json.gz … [--beside RESULTS.json.gz …]

The first scores what WORKDIR's models wrote (its report/results.json) and the golds, and writes the scores,
in nats a token of the document, without texts. The second does so for results that tools/keep_results.py
has kept; their documents are taken from the file that they came from. The third prints P(y_k over the gold)
and P(y_k over the first revision asked for), P the sigmoid of 50 times a difference, with 95 % intervals
over the documents of all files together; with the results that these scores are of, in the same order, also
what the first judge said, the mean of both, how far they agree on texts that are not the same, and what
both say of revisions that made an answer longer, shorter, or neither. MODEL must be none of those compared,
see srpo_jax/judges/shannon.py.
"""

import argparse
import dataclasses
import gzip
import itertools
import json
import re
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.judges import shannon
from srpo_jax.judges.judge import preference
from srpo_jax.judges.scores import ScoreJudge
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.reporting.agreement import agreement
from srpo_jax.reporting.compare import read
from srpo_jax.reporting.evidence import Documents, Evidence
from srpo_jax.reporting.texts import words
from srpo_jax.reporting.verdicts import GOLD, OWN, Key
from srpo_jax.reporting.winrate import rate
from srpo_jax.runtime.errors import UserError

SCALE = JudgeSettings().scale

Kept = dict[str, Any]


def scored(
    place: Path,
    judge: ScoreJudge,
    name: str,
    revisions: Sequence[int],
    source: Path | None = None,
) -> Kept:
    """Scores of the evaluation's first set: {"set", "ids", "judge", "gold", "scores"}, NaN as None.

    Without a gold there is None, too. place: a workdir, or a file of results. source: the file of the
    documents, for results without their texts. Raises UserError where there is no report, a document is
    not in the file or another one there, or a revision was not written.
    """
    evidence = read(place if place.is_file() else place / "report").evidence
    documents = evidence.sets[0]
    if source:
        documents = with_texts(documents, source)
    if not all(documents.prompts):
        raise UserError(f"{place} has no texts of its documents: name their file by --documents")
    texts = {model: evidence.written(model, documents.name) for model in evidence.models}
    least = min(written.count for written in texts.values())
    if not 0 <= min(revisions) <= max(revisions) < least:
        raise UserError(f"--revisions must be 0 to {least - 1}, as {place} has them: {revisions}")

    def ask(completions: Sequence[str | None]) -> list[float | None]:
        pairs = zip(documents.prompts, completions, strict=True)
        there = [(x, y) for x, y in pairs if y is not None]
        found = iter(judge.scores([x for x, _ in there], [y for _, y in there]))
        scores = [np.nan if y is None else float(next(found)) for y in completions]
        return [None if np.isnan(score) else score for score in scores]

    return {
        "set": documents.name,
        "ids": documents.ids,
        "judge": name,
        "gold": ask(documents.golds),
        "scores": {
            model: {str(k): ask([entries[k] for entries in written.revisions]) for k in revisions}
            for model, written in texts.items()
        },
    }


def with_texts(kept: Documents, source: Path) -> Documents:
    """Documents of kept results with the texts of the file that they came from, found by their ids."""
    there = {one.id: one for one in document_sets.read(DocumentSet(str(source)), "--documents")}
    found = []
    for name, silent in zip(kept.ids, kept.golds, strict=True):
        one = there.get(name)
        if one is None:
            raise UserError(f"{source} has no document {name!r}, and the results have")
        if silent is not None and re.sub(r"\S", "·", one.gold or "") != silent:
            raise UserError(f"{source}: document {name!r} has another gold than in the results")
        found.append(one)
    prompts = tuple(one.text for one in found)  # as a report has them, conversations too
    return dataclasses.replace(kept, prompts=prompts, golds=tuple(one.gold for one in found))


def table(kept: Sequence[Kept]) -> str:
    """Markdown, over the documents of all; UserError where models, revisions or judges differ."""
    shape = {model: list(by_k) for model, by_k in kept[0]["scores"].items()}
    for each in kept[1:]:
        if {model: list(by_k) for model, by_k in each["scores"].items()} != shape:
            raise UserError("the files have different models or revisions: show them apart")
        if each["judge"] != kept[0]["judge"]:
            raise UserError(
                f"the files are by different judges ({kept[0]['judge']}; {each['judge']}): show them apart"
            )
    ids = [one for each in kept for one in each["ids"]]
    if len(set(ids)) < len(ids):
        raise UserError("the files share documents, which would count twice: show them apart")
    lines = ["| | revision | over the gold | over the first | documents |", "|---|--:|--:|--:|--:|"]
    gold = _joined([each.get("gold") for each in kept])
    for model, revisions in shape.items():
        first = _joined([each["scores"][model][revisions[0]] for each in kept])
        for k in revisions:
            own = _joined([each["scores"][model][k] for each in kept])
            against = "-" if k == revisions[0] else _rate(own, first)
            lines.append(f"| {model} | {k} | {_rate(own, gold)} | {against} | {len(own)} |")
    return "\n".join(lines)


def beside(kept: Sequence[Kept], results: Sequence[Evidence]) -> str:
    """Markdown: both judges on y_k over the gold and over y_0, and their agreement.

    Agreement is of the signs, where the texts compared are not the same (both judges say 1/2 of those).
    Raises UserError for results of other documents or models, or without such comparisons.
    """
    own = _both(kept, results)
    lines = [
        "| | | first judge | second judge | mean of both | agree | kappa | of texts |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (model, k, opponent), (first, second) in own.items():
        said = f"y_{k} over {'the gold' if opponent == GOLD else 'y_0'}"
        differ = ~((first == 0.5) & (second == 0.5))
        alike = agreement(first[differ], second[differ])
        rates = " | ".join(map(_shown, (first, second, (first + second) / 2)))
        agree = f"{100 * alike.share:.0f} % | {alike.kappa:.2f} | {alike.n}"
        lines.append(f"| {model} | {said} | {rates} | {agree} |")
    return "\n".join(lines)


def by_length(kept: Sequence[Kept], results: Sequence[Evidence]) -> str:
    """Markdown: both judges on y_k over y_0, apart by what became of the number of words.

    Judges like long texts: a gain that is there only where words were added may be of length alone. Texts
    that stayed the same are left out. Raises UserError as `beside`.
    """
    lines = [
        "| | y_k over y_0 | y_k has | first judge | second judge | of documents |",
        "|---|---|---|--:|--:|--:|",
    ]
    for (model, k, opponent), (first, second) in _both(kept, results).items():
        if opponent == GOLD:
            continue
        pairs = [
            (row[0], row[int(k)])
            for each, evidence in zip(kept, results, strict=True)
            for row in evidence.written(model, each["set"]).revisions
        ]
        added = np.array([words(after) - words(before) for before, after in pairs])
        differ = np.array([before != after for before, after in pairs])
        for what, these in (
            ("more words", added > 0),
            ("as many, others", (added == 0) & differ),
            ("fewer words", added < 0),
        ):
            rates = " | ".join(_shown(judge[these]) for judge in (first, second))
            share = f"{these.sum()} ({100 * these.mean():.0f} %)"
            lines.append(f"| {model} | y_{k} | {what} | {rates} | {share} |")
    return "\n".join(lines)


def _both(
    kept: Sequence[Kept], results: Sequence[Evidence]
) -> dict[tuple[str, str, str], tuple[np.ndarray, np.ndarray]]:
    """(model, k, opponent) -> P by the first and by the second judge, of all documents [D]."""
    if len(kept) != len(results):
        raise UserError("--beside needs as many files as --show, in the same order")
    parts: dict[tuple[str, str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for each, evidence in zip(kept, results, strict=True):
        name = each.get("set")
        if {one.name: one.ids for one in evidence.sets}.get(name) != tuple(each["ids"]):
            raise UserError(f"--beside: the results of {name!r} are of other documents")
        judge = evidence.judges[0].name
        for model, scores in each["scores"].items():
            for k, opponent in itertools.product(scores, (GOLD, OWN)):
                other = each.get("gold") if opponent == GOLD else scores.get("0")
                table = evidence.table(Key(name, model, judge, opponent))
                if other is None or (opponent == OWN and k == "0"):
                    continue
                if table is None:
                    raise UserError(f"--beside: the results have no {model} against {opponent}")
                second = preference(SCALE * (_joined([scores[k]]) - _joined([other])))
                found = table.probabilities[:, int(k)], second
                parts.setdefault((model, k, opponent), []).append(found)
    return {
        key: (np.concatenate([a for a, _ in both]), np.concatenate([b for _, b in both]))
        for key, both in parts.items()
    }


def _joined(parts: Sequence[Sequence[float | None] | None]) -> np.ndarray:
    whole = [value for part in parts for value in part or ()]
    return np.array(whole, np.float64)  # None becomes NaN


def _rate(a: np.ndarray, b: np.ndarray) -> str:
    if len(a) != len(b):
        return "-"  # scores of golds were not kept
    return _shown(preference(SCALE * (a - b)))


def _shown(probabilities: np.ndarray) -> str:
    found = rate(probabilities)
    if not found.n:
        return "-"
    of = f", of {found.n}" if found.missing else ""
    return f"{100 * found.mean:.1f} ({100 * found.low:.1f} to {100 * found.high:.1f}{of})"


def _kept(path: Path) -> Kept:
    """What the tool has written; UserError where it has not."""
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name a file that this tool kept"
        ) from error
    if not isinstance(found, dict) or not {"ids", "judge", "scores"} <= found.keys():
        raise UserError(f"{path} has no scores: name a file that this tool kept")
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("place", type=Path, nargs="?", help="a workdir, or kept results")
    parser.add_argument("kept", type=Path, nargs="?")
    parser.add_argument("--source", help="the judge's model")
    parser.add_argument("--documents", type=Path, help="file of the documents of kept results")
    parser.add_argument("--dtype", default="float32", help="of its products (%(default)s)")
    parser.add_argument("--revisions", type=int, nargs="+", default=[0, 5], help="(0 5)")
    parser.add_argument("--show", type=Path, nargs="+", help="files of scores, to print")
    parser.add_argument("--beside", type=Path, nargs="+", help="results that these are of")
    chosen = parser.parse_args(arguments)
    if not chosen.show:
        if not (chosen.place and chosen.kept and chosen.source):
            parser.error("WORKDIR or RESULTS, KEPT and --source are needed, or --show")
        settings = JudgeSettings(
            name="shannon", source=chosen.source, dtype=chosen.dtype, batch_size=16
        )
        name = f"shannon, source {chosen.source}, nats a token of the text"
        found = scored(
            chosen.place,
            shannon.judge(settings),
            name,
            sorted(chosen.revisions),
            chosen.documents,
        )
        chosen.kept.parent.mkdir(parents=True, exist_ok=True)
        chosen.kept.write_bytes(gzip.compress(json.dumps(found).encode(), mtime=0))
    files = chosen.show or [chosen.kept]
    kept = [_kept(path) for path in files]
    print(table(kept))
    if chosen.beside:
        results = [read(path).evidence for path in chosen.beside]
        print(f"\n{beside(kept, results)}\n\n{by_length(kept, results)}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
