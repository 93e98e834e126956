"""Cuts documents with golds into train, validation and test files, in an order that says nothing.

    python tools/split_documents.py FILE.jsonl.gz DIR

FILE: JSON lines, gzipped or not, of {"id", "document", "gold_summary", "split"?}. DIR gets train.jsonl,
validation.jsonl and test.jsonl of {"id", "prompt", "gold"}, sorted by a hash of the id. A record keeps the
split that it names, but that a tenth of the training documents, by that hash, become the test documents
where the file has none. `configs/real_text.py:DIR` reads them.
"""

import argparse
import gzip
import hashlib
import json
import sys
from pathlib import Path

SPLITS = ("train", "validation", "test")
TEST_PARTS = 10


def split(file: Path, folder: Path) -> dict[str, int]:
    """Writes the files, and returns how many documents each has. Raises SystemExit naming a bad line."""
    with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
        records = [_read(line, f"{file}:{number}") for number, line in enumerate(lines, 1)]
    records.sort(key=lambda record: _hash(record["id"]))
    whole = any(record.get("split") == "test" for record in records)
    found: dict[str, list[str]] = {name: [] for name in SPLITS}
    for record in records:
        name = record.get("split", "train")
        if name == "train" and not whole and int(_hash(record["id"])[-4:], 16) % TEST_PARTS == 0:
            name = "test"
        kept = {"id": record["id"], "prompt": record["document"], "gold": record["gold_summary"]}
        found[name].append(json.dumps(kept, ensure_ascii=False) + "\n")
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in found.items():
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: len(lines) for name, lines in found.items()}


def _read(line: str, where: str) -> dict[str, str]:
    try:
        record: dict[str, str] = json.loads(line)
        missing = {"id", "document", "gold_summary"} - record.keys()
    except (ValueError, AttributeError) as error:
        sys.exit(f"{where}: not a JSON object: {error}")
    if missing or record.get("split", "train") not in SPLITS:
        sys.exit(f"{where}: id, document, gold_summary and a split of {SPLITS} are expected")
    return record


def _hash(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path)
    chosen = parser.parse_args()
    print(split(chosen.file, chosen.folder))
