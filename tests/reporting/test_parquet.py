import io

import pyarrow.parquet as pq

from srpo_jax.reporting.parquet import SCHEMA, to_parquet
from tests.reports import HOSTILE, evidence, hostile


def rows(made):
    return pq.read_table(io.BytesIO(to_parquet(made))).to_pylist()


def test_a_row_for_each_document_model_revision_judge_and_opponent():
    found = rows(evidence())
    assert len(found) == 7 * 4 * 3
    keys = ("documents", "id", "model", "revision", "judge", "opponent")
    assert len({tuple(row[key] for key in keys) for row in found}) == len(found)
    assert found[0] == {
        "documents": "Wikipedia",
        "role": "in distribution",
        "id": "Wikipedia/0",
        "model": "start",
        "revision": 0,
        "judge": "clerk",
        "opponent": "gold",
        "prompt": "A long document, number 0.",
        "gold": "The human gold 0.",
        "text": "start says 0",
        "opponent_text": "The human gold 0.",
        "words": 3,
        "cut": True,
        "probability": 0.0,
        "shown_first": 0.0,
        "shown_second": 0.0,
        "missing": None,
    }


def test_what_is_missing_or_unknown_is_null():
    missing = [row for row in rows(evidence()) if row["missing"]]
    assert {(row["model"], row["revision"], row["missing"]) for row in missing} == {
        (model, 0, "refused") for model in ("start", "mine", "srpo")
    }
    assert all(row["probability"] is None and row["shown_first"] is None for row in missing)
    found = rows(hostile().evidence)
    assert [row["cut"] for row in found] == [None, None]
    assert [(row["text"], row["missing"]) for row in found] == [(HOSTILE, None), ("", HOSTILE)]


def test_nothing_judged_is_a_file_without_rows():
    table = pq.read_table(io.BytesIO(to_parquet(evidence(tables=()))))
    assert table.num_rows == 0
    assert table.schema.names == SCHEMA.names
