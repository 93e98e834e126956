"""results.parquet: one row per document, model, revision, judge and opponent, for one's own analysis."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from srpo_jax.reporting.evidence import Evidence
from srpo_jax.reporting.texts import words
from srpo_jax.reporting.verdicts import VerdictTable, nulls

SCHEMA = pa.schema(
    [
        ("documents", pa.string()),
        ("role", pa.string()),
        ("id", pa.string()),
        ("model", pa.string()),
        ("revision", pa.int32()),
        ("judge", pa.string()),
        ("opponent", pa.string()),
        ("prompt", pa.string()),
        ("gold", pa.string()),
        ("text", pa.string()),
        ("opponent_text", pa.string()),
        ("words", pa.int32()),
        ("cut", pa.bool_()),  # null where not known
        ("probability", pa.float64()),  # P(text better than opponent_text); null where missing
        ("shown_first", pa.float64()),  # the same as said with `text` shown first
        ("shown_second", pa.float64()),
        ("missing", pa.string()),  # why there is no verdict, null where there is one
    ]
)


def to_parquet(evidence: Evidence) -> bytes:
    """The rows as a Parquet file (zstd; strings stored once each, so that texts may repeat).

    One comparison after the other: in memory every row has its prompt.
    """
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd") as writer:
        for table in evidence.tables:
            writer.write_table(pa.Table.from_pylist(list(_rows(evidence, table)), SCHEMA))
    return sink.getvalue()


def _rows(evidence: Evidence, table: VerdictTable) -> Iterator[dict[str, Any]]:
    key = table.key
    documents, texts = evidence.set(key.documents), evidence.written(key.model, key.documents)
    opponents = evidence.against(key)
    reasons = {(entry.document, entry.revision): entry.reason for entry in table.missing}
    probabilities = nulls(table.probabilities)
    orders = None if table.orders is None else nulls(table.orders)
    for i, k in np.ndindex(table.probabilities.shape):
        text = texts.revisions[i][k]
        yield {
            "documents": documents.name,
            "role": documents.role,
            "id": documents.ids[i],
            "model": key.model,
            "revision": k,
            "judge": key.judge,
            "opponent": key.opponent,
            "prompt": documents.prompts[i],
            "gold": documents.golds[i],
            "text": text,
            "opponent_text": opponents[i][k],
            "words": words(text),
            "cut": texts.cut[i][k] if texts.cut else None,
            "probability": probabilities[i][k],
            "shown_first": orders[0][i][k] if orders else None,
            "shown_second": orders[1][i][k] if orders else None,
            "missing": reasons.get((i, k)),
        }
