"""Records of data sets: JSON lines, Parquet, array_record, `datasets` on disk or hub, TFDS."""

import codecs
import contextlib
import glob
import gzip
import importlib
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError

# A record, and where it was read, as sentences name it: "a.jsonl:" or "a.parquet, record " and then its
# number (from 1).
Located = tuple[str, int, Any]


def read(
    source: str | Path, split: str = "train", setting: str = "config.data", what: str = "pairs"
) -> Iterator[Located]:
    """The records of a source, one after the other.

    FILE.jsonl (or .json, .jsonl.gz; a .json may be one list), FILE.parquet, FILE.array_record (a JSON
    object each), a directory written by `datasets.Dataset.save_to_disk`, hub:OWNER/NAME[:CONFIG][@REVISION]
    (needs `datasets` and a network), tfds:NAME (built already). split: of the last three. Several files are
    read one after the other: see `files`. setting: the section that names the source, and what: what it
    is read for, for errors.
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
    elif found := files(source):
        for path in found:
            yield from _file(path)
    elif name and not storage.is_remote(name) and Path(name).is_dir():
        yield from _saved(Path(name), split, setting)
    else:
        raise UserError(
            f"no {what} at {name or 'an empty path'}: set {setting}.{what} to a JSON lines file"
        )


def files(source: str | Path) -> list[Path]:
    """The files that a source is: one, those a pattern matches (data/*.jsonl), or "FILE,FILE,…" of both.

    A folder is those of FILES in it, by name. Empty for what is no file. Raises UserError for a file of a
    list that is not there, for a set of shards (…-of-00004.…) that is not whole, and for a folder of
    several splits.
    """
    name = str(source)
    if not name or name.startswith(("hub:", "tfds:")):
        return []
    path = storage.place(name)
    if path.is_file():
        return [path]
    if storage.is_remote(name):
        return []
    if path.is_dir():
        written = any((path / one).is_file() for one in ("dataset_info.json", "dataset_dict.json"))
        shown = (p for p in path.iterdir() if not p.name.startswith("."))
        found = [] if written else sorted(p for p in shown if p.name.endswith(FILES))
        _check_one_split(found, name)
        return _whole(found, name)
    if "," not in name:
        return _whole(
            sorted(Path(p) for p in glob.glob(name, recursive=True) if Path(p).is_file()), name
        )
    listed = [part.strip() for part in name.split(",") if part.strip()]
    found, known = [], set[Path]()
    for part in listed:
        more = files(part)
        if not more:
            raise UserError(f"no file at {part}, one of the list {name}")
        for path in more:
            if (whole := storage.absolute(path)) in known:
                raise UserError(f"{path} is named twice by {name}: its records would count double")
            known.add(whole)
        found += more
    return found


# What people bring and nothing here reads.
OTHERS = (".csv", ".tsv", ".xlsx", ".zip", ".zst", ".xz", ".bz2", ".arrow", ".tar")
FILES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".array_record")
_SHARD = re.compile(r"^(.*?)-?(\d+)-of-(\d+)(.*)$")


# How the files of a split begin: train.jsonl.gz, test_prefs-00000-of-00001.parquet.
_SPLIT = re.compile(r"(train|test|validation|valid|val|dev|eval)(?![a-z])[a-z_]*", re.IGNORECASE)


def _check_one_split(found: list[Path], name: str) -> None:
    """UserError for a folder that holds a training split beside another, which is not to be trained on."""
    begins = [begin for path in found if (begin := _SPLIT.match(path.name))]
    splits = sorted({begin[1].lower() for begin in begins})
    if len(splits) > 1:
        example = next((begin for begin in begins if begin[1].lower() == "train"), begins[0])
        raise UserError(
            f"{name} has files of several splits ({', '.join(splits)}): name those that are to be read, "
            f"e.g. {Path(name) / example[0]}*"
        )


def _whole(found: list[Path], name: str) -> list[Path]:
    """The files, if there are all shards of every set among them."""
    sets: dict[tuple[str, str, str], set[int]] = {}
    for path in found:
        if shard := _SHARD.match(path.name):
            key = (str(path.parent / shard[1]), shard[3], shard[4])
            sets.setdefault(key, set()).add(int(shard[2]))
    for (begin, count, _), numbers in sets.items():
        if len(numbers) != int(count):
            raise UserError(f"{name}: {len(numbers)} of {int(count)} shards of {begin} are there")
    return found


def _file(path: Path) -> Iterator[Located]:
    if path.name.endswith(".parquet"):
        yield from _parquet(path)
    elif path.name.endswith(".array_record"):
        yield from _array_record(path)
    elif path.name.endswith(OTHERS):
        raise UserError(f"{path} is of a kind that is not read: make it one of {', '.join(FILES)}")
    else:
        yield from _json_lines(path)


PICKLES = (".pkl", ".pickle", ".pt", ".pth", ".joblib")


def say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def say_left_out(source: str | Path, count: int, first: str, reason: str) -> None:
    """That records of a source are left out, and where the first of them is."""
    what = f"{count} records left out; the first, {first}" if count > 1 else f"1 left out, {first}"
    say(f"{source}: {what}: {reason}")


_GZIP = b"\x1f\x8b"


def _json_lines(path: Path) -> Iterator[Located]:
    """Blank lines are skipped, and counted. A .json file may be one list of records, too, as any that opens
    one on a line of its own."""
    at, number, begun = f"{path}:", 0, False
    may_be_list = path.name.endswith((".json", ".json.gz"))
    try:
        with path.open("rb") as file, contextlib.ExitStack() as stack:
            lines = stack.enter_context(gzip.open(file)) if path.suffix == ".gz" else file
            for text in lines:
                number += 1
                if number == 1 and text.startswith(_GZIP):
                    raise UserError(f"{path} is a gzip file: give it a name that ends in .gz")
                text = text.removeprefix(codecs.BOM_UTF8) if number == 1 else text
                alone = b"" if begun else text.strip()
                if alone == b"[" or (may_be_list and alone.startswith(b"[")):
                    yield from _listed(path, text + b"".join(lines))
                elif alone == b"{":
                    raise UserError(
                        f"{path} is one JSON object over several lines: make it a list of records, or "
                        "write each record on a line of its own"
                    )
                elif text.strip():
                    begun = True
                    yield at, number, _parse(text.rstrip(), f"{at}{number}")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{path} is cut short or no gzip file, behind line {number} ({error}): fetch it again"
        ) from error


def _listed(path: Path, text: bytes) -> Iterator[Located]:
    yield from _numbered(path, _parse(text, str(path)))


def _numbered(source: str | Path, found: Iterable[Any]) -> Iterator[Located]:
    at = f"{source}, record "
    for number, record in enumerate(found, 1):
        yield at, number, record


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text ({error.reason})") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if error.lineno > 1 else ""
        what = error.msg.removesuffix(" at")
        raise UserError(f"{where}: not JSON ({what} at {place}column {error.colno})") from error
    except ValueError as error:
        raise UserError(f"{where}: JSON that cannot be read ({error})") from error
    except RecursionError as error:
        raise UserError(f"{where}: JSON that is nested too deeply to be read") from error


def _parquet(path: Path) -> Iterator[Located]:
    import pyarrow
    from pyarrow import parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        yield from _numbered(path, (record for batch in batches for record in batch.to_pylist()))
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
    for at, number, record in _numbered(path, records):
        yield at, number, _parse(record, f"{at}{number}")


def _saved(directory: Path, split: str, setting: str) -> Iterator[Located]:
    datasets = _package("datasets", "datasets", directory)
    try:
        found = datasets.load_from_disk(str(directory))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(
            f"{directory} was not written by datasets' save_to_disk ({error})"
        ) from error
    yield from _chosen(found, split, setting, str(directory), datasets)


_COPIES = "refs/convert/parquet"  # the revision of a data set's records in Parquet


def _hub(name: str, split: str, setting: str) -> Iterator[Located]:
    datasets = _package("datasets", "datasets", name)
    asked, _, revision = name.removeprefix("hub:").partition("@")
    path, _, config = asked.partition(":")
    try:
        found = datasets.load_dataset(path, config or None, revision=revision or None)
    except Exception as error:  # whatever a network and a foreign repository can do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        # Older data sets are programs, which `datasets` runs no more; the hub has a copy of their records.
        hint = f": hub:{asked}@{_COPIES} may be read" if "scripts are no longer" in reason else ""
        raise UserError(f"{name} cannot be loaded: {reason}{hint}") from error
    yield from _chosen(found, split, setting, name, datasets)


def _chosen(found: Any, split: str, setting: str, name: str, datasets: Any) -> Iterator[Located]:
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise UserError(
                f"{name} has no split {split!r} ({setting}.split): it has {', '.join(found)}"
            )
        found = found[split]
    yield from _numbered(f"{name}[{split}]", found)


def _tfds(name: str, split: str) -> Iterator[Located]:
    tfds = _package("tensorflow_datasets", "tensorflow-datasets", name)
    try:
        found = tfds.data_source(name.removeprefix("tfds:"), split=split)
    except Exception as error:  # not built, no such split, or another file format
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{name}[{split}] cannot be read: {reason[0] if reason else error!r}"
        ) from error
    made = ({key: _texts(value) for key, value in record.items()} for record in found)
    yield from _numbered(f"{name}[{split}]", made)


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
