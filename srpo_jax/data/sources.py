"""Records of data sets: JSON lines, Parquet, array_record, `datasets` on disk or hub, TFDS."""

import contextlib
import gzip
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError

# where (file and place), number of the record (from 1), and the record.
Located = tuple[str, int, Any]


def read(
    source: str | Path, split: str = "train", setting: str = "config.data", what: str = "pairs"
) -> Iterator[Located]:
    """The records of a source, one after the other.

    FILE.jsonl (or .json, .jsonl.gz), FILE.parquet, FILE.array_record (a JSON object each), a directory
    written by `datasets.Dataset.save_to_disk`, hub:OWNER/NAME[:CONFIG] (needs `datasets` and a network),
    tfds:NAME (built already). split: of the last three. setting: the section that names the source, and
    what: what it is read for, for errors.
    Raises UserError where a source is missing, malformed, or needs a package that is not there.
    """
    name = str(source)
    if name.startswith("hub:"):
        yield from _hub(name, split, setting)
    elif name.startswith("tfds:"):
        yield from _tfds(name, split)
    elif name.endswith(PICKLES):
        raise UserError(
            f"{setting}.{what}={name} is a pickle, which may run any code when it is read: write JSON lines"
        )
    elif storage.is_remote(name) and not name.endswith((".jsonl", ".json", ".jsonl.gz")):
        raise UserError(
            f"{setting}.{what}={name}: of a store JSON lines can be read; copy others here"
        )
    elif not name or not storage.place(name).exists():
        raise UserError(
            f"no {what} at {name or 'an empty path'}: set {setting}.{what} to a JSON lines file"
        )
    elif Path(name).is_dir():
        yield from _saved(Path(name), split, setting)
    elif name.endswith(".parquet"):
        yield from _parquet(Path(name))
    elif name.endswith(".array_record"):
        yield from _array_record(Path(name))
    else:
        yield from _json_lines(storage.place(name))


PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _json_lines(path: Path) -> Iterator[Located]:
    """Blank lines are skipped, and counted."""
    with path.open("rb") as file, contextlib.ExitStack() as stack:
        zipped = path.suffix == ".gz"
        lines = stack.enter_context(gzip.open(file)) if zipped else file
        for number, text in enumerate(lines, 1):
            if text.strip():
                where = f"{path}:{number}"
                yield where, number, _parse(text, where)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno})") from error


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                number += 1
                yield f"{path}:{number}", number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{path} is cut off or no Parquet file ({error}): fetch it again"
        ) from error


def _array_record(path: Path) -> Iterator[Located]:
    module = _package("array_record.python.array_record_module", "array_record", path)
    try:
        reader = module.ArrayRecordReader(str(path))
        records = reader.read_all() if reader.num_records() else []
        reader.close()  # what was wrong is told only here
    except Exception as error:  # the library raises bare exceptions
        raise UserError(f"{path} is no array_record file ({error}): fetch it again") from error
    for number, record in enumerate(records, 1):
        yield f"{path}:{number}", number, _parse(record, f"{path}:{number}")


def _saved(directory: Path, split: str, setting: str) -> Iterator[Located]:
    datasets = _package("datasets", "datasets", directory)
    try:
        found = datasets.load_from_disk(str(directory))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{directory} was not written by datasets' save_to_disk ({error})"
        ) from error
    yield from _chosen(found, split, setting, str(directory), datasets)


def _hub(name: str, split: str, setting: str) -> Iterator[Located]:
    datasets = _package("datasets", "datasets", name)
    path, _, config = name.removeprefix("hub:").partition(":")
    try:
        found = datasets.load_dataset(path, config or None)
    except Exception as error:  # whatever a network and a foreign repository can do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name} cannot be loaded: {reason}") from error
    yield from _chosen(found, split, setting, name, datasets)


def _chosen(found: Any, split: str, setting: str, name: str, datasets: Any) -> Iterator[Located]:
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(
                f"{name} has no split {split!r} ({setting}.split): it has {', '.join(found)}"
            )
        found = found[split]
    for number, record in enumerate(found, 1):
        yield f"{name}[{split}]:{number}", number, record


def _tfds(name: str, split: str) -> Iterator[Located]:
    tfds = _package("tensorflow_datasets", "tensorflow-datasets", name)
    try:
        found = tfds.data_source(name.removeprefix("tfds:"), split=split)
    except Exception as error:  # not built, no such split, or another file format
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{name}[{split}] cannot be read: {reason[0] if reason else error!r}"
        ) from error
    for number, record in enumerate(found, 1):
        texts = {key: _texts(value) for key, value in record.items()}
        yield f"{name}[{split}]:{number}", number, texts


def _texts(value: Any) -> Any:
    """TFDS keeps texts as bytes and lists of dicts as dicts of lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, dict):
        made = {key: _texts(part) for key, part in value.items()}
        lists = [part for part in made.values() if isinstance(part, list)]
        if made and len(lists) == len(made) and len({len(part) for part in lists}) == 1:
            return [dict(zip(made, parts, strict=True)) for parts in zip(*lists, strict=True)]
        return made
    if hasattr(value, "tolist"):
        return _texts(value.tolist())
    return [_texts(part) for part in value] if isinstance(value, list) else value


def _package(module: str, package: str, what: Any) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{what} needs the package {package}: pip install {package}") from error
