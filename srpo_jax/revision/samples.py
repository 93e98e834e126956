"""What models have written, on disk: JSON lines that a killed program goes on with.

A file begins with everything that its texts depend on: what the weights are, not where they lie. One
record a document follows, {"id", "revisions", "cut", "tokens", …}. A last line that a kill has cut is
dropped; a file of other settings is set aside, never overwritten, and comes back with its settings.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

Record = dict[str, Any]


@dataclass(frozen=True)
class Written:
    """What a model has written on a set of documents: revisions[i][k] is y_k of document i.

    cut: whether it ended at the token limit; tokens: its length. Both are empty for a file of outputs.
    """

    model: str
    documents: str
    ids: tuple[str, ...]
    revisions: tuple[tuple[str, ...], ...]
    cut: tuple[tuple[bool, ...], ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()


def slug(name: str) -> str:
    """A name as part of a file's."""
    plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
    if plain and plain == name:
        return name
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def resume(path: Path, header: Record, fits: Callable[[list[Record]], bool]) -> list[Record]:
    """The records of an earlier attempt with this header, or none; the file is ready for `append`.

    fits: whether records belong to what is to be written now. A file that differs is set aside; one set
    aside earlier that agrees comes back.
    """
    header = json.loads(json.dumps(header))

    def kept(candidate: Path) -> list[Record] | None:
        begun, records = read(candidate, mend=True)
        return records if begun == header and fits(records) else None

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        records = kept(path)
        if records is not None:
            return records
        if read(path)[0] is not None:
            aside = _free(path)
            path.rename(aside)
            status(f"{path} was written under other settings: the old one is {aside.name}")
        else:
            path.unlink()  # not even its header was written
    for old in sorted(path.parent.glob(f"{path.name}.old*")):
        records = kept(old)
        if records is not None:
            old.rename(path)
            status(f"{path}: {old.name} was written under these settings and is used again")
            return records
    append(path, [header])
    return []


def append(path: Path, records: Sequence[Record]) -> None:
    """Records are on disk when this returns."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    storage.append(path, text.encode())


def read(path: Path, *, mend: bool = False) -> tuple[Record | None, list[Record]]:
    """Header, None in an empty file, and records, without a last line that lacks its end.

    mend: such a line is cut off the file, for who is to append; another program may be writing it just now.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if mend and len(whole) < len(content) and not storage.is_remote(path):  # objects are never cut
        os.truncate(path, len(whole))
    lines = [_parsed(line, f"{path}:{i}") for i, line in enumerate(whole.splitlines(), 1)]
    return (lines[0], lines[1:]) if lines else (None, [])


def written(path: Path, model: str, documents: str, ids: Sequence[str]) -> Written:
    """What the file holds of these documents; UserError where some are missing, or it is not there."""
    again = "write it first, with --stage=write"
    if not path.is_file():
        raise UserError(f"{path} is missing: {again}")
    _, records = read(path)
    known = {record["id"]: record for record in records}
    missing = [name for name in ids if name not in known]
    if missing:
        raise UserError(
            f"{path} lacks {len(missing)} of {len(ids)} documents, {_some(missing)}: {again}"
        )
    chosen = [known[name] for name in ids]
    full = all("cut" in record for record in chosen)
    return Written(
        model,
        documents,
        tuple(ids),
        tuple(tuple(record["revisions"]) for record in chosen),
        tuple(tuple(record["cut"]) for record in chosen) if full else (),
        tuple(tuple(record["tokens"]) for record in chosen) if full else (),
    )


def outputs(
    files: Sequence[Path], documents: str, ids: Sequence[str], all_ids: Sequence[str]
) -> list[Record]:
    """The records of `ids` from a user's files: lines of {"id", "output"} or {"id", "revisions"}.

    A line with "documents" counts for the set of that name alone. all_ids: of the whole set; a line of
    another document is named. Raises UserError naming the line that is malformed, repeated, or has fewer
    revisions than others, and the documents that are missing.
    """
    named = ", ".join(map(str, files))
    found: dict[str, tuple[str, list[str]]] = {}
    extra = []
    for file in files:
        for where, line in _lines(file):
            name, texts = _output(line, where)
            if line.get("documents", documents) != documents:
                continue
            if name in found:
                raise UserError(f"{where}: the document {name!r} is in {found[name][0]} too")
            found[name] = where, texts
    known = set(all_ids)
    extra = [name for name in found if name not in known]
    missing = [name for name in ids if name not in found]
    if missing:
        raise UserError(
            f"{named}: no output for {len(missing)} of {len(ids)} documents of {documents}, "
            f"{_some(missing)}" + (f"; it has {len(extra)} others, {_some(extra)}" if extra else "")
        )
    if extra:
        status(f"{named}: {len(extra)} outputs are for no document of {documents}, {_some(extra)}")
    lengths = {len(found[name][1]) for name in ids}
    if len(lengths) > 1:
        short = min(ids, key=lambda name: len(found[name][1]))
        raise UserError(
            f"{found[short][0]}: {len(found[short][1])} revisions, others have {max(lengths)}: "
            "every document needs equally many"
        )
    return [{"id": name, "revisions": found[name][1]} for name in ids]


def _output(line: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    name = line.get("id")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UserError(f"{where}: there is no 'id', the document's")
    texts = line.get("revisions", [line["output"]] if "output" in line else None)
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise UserError(f"{where}: there is no 'output', a text, nor 'revisions', a list of texts")
    try:
        "".join((str(name), *texts)).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: half of a character (a lone surrogate) cannot be kept: mend this line"
        ) from error
    return str(name), texts


def _lines(path: Path) -> Iterator[tuple[str, Record]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"config.evaluate.outputs: {path} cannot be read: {error.strerror}"
        ) from error
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            yield f"{path}:{number}", _parsed(line, f"{path}:{number}")


def _parsed(line: bytes, where: str) -> Record:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: not JSON ({error}): mend or delete this line") from error
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object: mend or delete this line")
    return value


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown + (" and others" if len(names) > 3 else "")


def _free(path: Path) -> Path:
    names = [f"{path.name}.old", *(f"{path.name}.old{i}" for i in range(2, 10_000))]
    return next(path.with_name(n) for n in names if not path.with_name(n).exists())
