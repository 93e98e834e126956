"""What is kept of an evaluation between its stages, in a workdir.

    documents/SET.jsonl          the documents that were chosen, whole
    samples/MODEL-SET.jsonl      what was written about them
    verdicts/JUDGE/SET-….json    what a judge said of it

So a judge added later needs neither the models nor the data sets.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.data.documents import Document
from srpo_jax.reporting.evidence import JudgeCheck, JudgeRecord
from srpo_jax.reporting.verdicts import Key, Missing, VerdictTable
from srpo_jax.revision import samples
from srpo_jax.revision.samples import Written, slug
from srpo_jax.runtime import files
from srpo_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The documents of a set that are put to the models; how says which. all_ids: of the whole set."""

    set: DocumentSet
    documents: tuple[Document, ...]
    all_ids: tuple[str, ...] = ()
    how: str = ""

    @property
    def name(self) -> str:
        return self.set.name

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(document.id for document in self.documents)


def samples_path(workdir: Path, model: str, documents: str) -> Path:
    return workdir / "samples" / f"{slug(model)}-{slug(documents)}.jsonl"


def require_apart(models: Sequence[str], sets: Sequence[DocumentSet]) -> None:
    """UserError where two models, each on a set of its own, would be kept in one file."""
    found: dict[Path, tuple[str, str]] = {}
    for model, one in itertools.product(models, sets):
        path, mine = samples_path(Path(), model, one.name), (model, one.name)
        if (other := found.setdefault(path, mine)) != mine:
            raise UserError(
                f"config.evaluate: the model {model!r} on {one.name!r} and the model {other[0]!r} on "
                f"{other[1]!r} would be kept in one file, {path}: give one of them another name"
            )


def write_documents(workdir: Path, chosen: Sequence[Chosen]) -> None:
    """Each set's file, whole or not at all."""
    for one in chosen:
        header = {**dataclasses.asdict(one.set), "how": one.how}
        lines = [header, *map(document_sets.to_json, one.documents)]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        _put(_documents_path(workdir, one.name), text)


def has_documents(workdir: Path, sets: Sequence[DocumentSet]) -> bool:
    """Whether `write_documents` has written all of these sets."""
    return all(_documents_path(workdir, one.name).is_file() for one in sets)


def read_documents(workdir: Path, sets: Sequence[DocumentSet]) -> list[Chosen]:
    """What `write_documents` wrote of these sets; UserError where it has not, or another split of one."""
    found = []
    for asked in sets:
        path = _documents_path(workdir, asked.name)
        if not path.is_file():
            raise UserError(f"{path} is missing: write first, with --stage=write")
        header, records = samples.read(path)
        described = dict(header or {})
        how = described.pop("how", "")
        one = DocumentSet(**{**described, "fields": tuple(described["fields"])})
        if one.split != asked.split:
            raise UserError(
                f"{path} is of the split {one.split!r}, and {asked.split!r} is asked for: write that, with "
                "--stage=write, or set config.evaluate.split"
            )
        found.append(Chosen(one, tuple(map(document_sets.from_json, records)), how=how))
    return found


def read_written(workdir: Path, chosen: Sequence[Chosen], names: Sequence[str]) -> list[Written]:
    """What the contestants have written about all sets; UserError where something is missing."""
    return [
        samples.written(samples_path(workdir, name, one.name), name, one.name, one.ids)
        for one in chosen
        for name in names
    ]


def write_table(
    workdir: Path, table: VerdictTable, judged: str, judge: str, golds: str | None = None
) -> None:
    """judged: the digest of what the verdicts are about, see `digest`; judge: the judge's identity; golds:
    their digest, of a judge that was shown them."""
    value = {
        "judged": judged,
        "judge": judge,
        "golds": golds,
        "probabilities": _listed(table.probabilities),
        "orders": None if table.orders is None else _listed(table.orders),
        "missing": [dataclasses.astuple(one) for one in table.missing],
    }
    _put(_table_path(workdir, table.key), json.dumps(value))


def read_table(workdir: Path, key: Key, judged: str, judge: str, golds: str = "") -> VerdictTable:
    """The verdicts of a comparison; `judged`, `judge` and `golds` as for `write_table`.

    Raises UserError where there are none, they are about other texts or golds, or by the judge as it once
    was (another version, model or parameter): such must not stand in one report with the others.
    """
    path = _table_path(workdir, key)
    if not path.is_file():
        raise UserError(f"{path} is missing: judge first, with --stage=judge")
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if value["judged"] != judged:
        raise UserError(f"{path} is about other texts: judge them, with --stage=judge")
    if value.get("golds") not in (None, golds):
        raise UserError(f"{path} is by other golds: judge again, with --stage=judge")
    if value.get("judge") != judge:
        raise UserError(
            f"{path} is by the judge {key.judge!r} as it was before (another model, template, "
            "parameter or version): judge again, with --stage=judge"
        )
    orders = value["orders"]
    return VerdictTable(
        key,
        np.array(value["probabilities"], np.float64),
        None if orders is None else np.array(orders, np.float64),
        tuple(Missing(*one) for one in value["missing"]),
    )


def write_judge(workdir: Path, judge: JudgeRecord) -> None:
    """Beside its verdicts."""
    path = workdir / "verdicts" / slug(judge.name) / "judge.json"
    _put(path, json.dumps(dataclasses.asdict(judge), indent=1))


def read_judges(workdir: Path) -> list[JudgeRecord]:
    """All that have judged in this workdir."""
    found = []
    for path in sorted((workdir / "verdicts").glob("*/judge.json")):
        said = json.loads(path.read_text(encoding="utf-8"))
        said["checks"] = tuple(JudgeCheck(**check) for check in said["checks"])
        found.append(JudgeRecord(**said))
    return found


def digest(*texts: Any) -> str:
    """Of everything that a comparison's verdicts are about."""
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _listed(values: np.ndarray) -> Any:
    return [_listed(v) if v.ndim else None if np.isnan(v) else float(v) for v in values]


def _documents_path(workdir: Path, name: str) -> Path:
    return workdir / "documents" / f"{slug(name)}.jsonl"


def _table_path(workdir: Path, key: Key) -> Path:
    name = f"{slug(key.documents)}-{slug(key.model)}-vs-{slug(key.opponent)}.json"
    return workdir / "verdicts" / slug(key.judge) / name


def _put(path: Path, text: str) -> None:
    with files.whole(path) as part:
        part.write_text(text, encoding="utf-8")
