"""Documents are cut into files that share nothing, whatever order they come in."""

import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "split_documents.py"


def ran(file, folder):
    return subprocess.run(
        [sys.executable, TOOL, file, folder],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("zipped", [False, True])
def test_every_document_is_in_one_file_and_their_order_does_not_matter(tmp_path, zipped):
    splits = ["train"] * 190 + ["validation"] * 10
    records = [
        {"id": f"d{i}", "document": f"text {i}", "gold_summary": f"gold {i}", "split": split}
        for i, split in enumerate(splits)
    ]
    kept = []
    for attempt in range(2):
        random.Random(attempt).shuffle(records)
        file = tmp_path / ("all.jsonl.gz" if zipped else "all.jsonl")
        with (gzip.open if zipped else open)(file, "wt") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
        done = ran(file, tmp_path / "cut")
        assert done.returncode == 0, done.stderr
        kept.append(
            {
                name: lines(tmp_path / f"cut/{name}.jsonl")
                for name in ("train", "validation", "test")
            }
        )
    assert kept[0] == kept[1]
    found = [record for part in kept[0].values() for record in part]
    assert {(r["id"], r["prompt"], r["gold"]) for r in found} == {
        (r["id"], r["document"], r["gold_summary"]) for r in records
    }
    assert len(found) == len(records)
    assert len(kept[0]["validation"]) == 10
    assert 5 < len(kept[0]["test"]) < 40


def test_a_bad_line_is_named(tmp_path):
    file = tmp_path / "all.jsonl"
    file.write_text('{"id": "a", "document": "x", "gold_summary": "y"}\n{"id": "b"}\n')
    done = ran(file, tmp_path / "cut")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{file}:2: ")
    assert not (tmp_path / "cut").exists()
