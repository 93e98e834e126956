import json

import numpy as np
import pytest

from srpo_jax.reporting.codec import SCHEMA, from_json, to_json
from srpo_jax.runtime.errors import UserError
from tests.reports import hostile, report


@pytest.mark.parametrize("made", [report(), hostile()], ids=["report", "hostile"])
def test_json_round_trip_restores_the_report(made):
    again = from_json(to_json(made))
    assert to_json(again) == to_json(made)
    assert again.curves == made.curves
    assert again.evidence.sets == made.evidence.sets
    table, restored = made.evidence.tables[0], again.evidence.tables[0]
    np.testing.assert_array_equal(restored.probabilities, table.probabilities)
    assert restored.missing == table.missing


def test_a_report_from_before_a_number_was_kept_is_read():
    data = json.loads(to_json(report()))
    for each in data["differences"]:
        del each["wins"], each["losses"]
    again = from_json(json.dumps(data)).differences
    assert [(d.p, d.wins) for d in again] == [(d.p, 0) for d in report().differences]


def test_json_is_strict_and_numbered():
    text = to_json(report())
    assert json.loads(text)["schema"] == SCHEMA
    assert "NaN" not in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("curves"), r"lacks the keys \['curves'\]"),
        (lambda data: data.update(schema=1), "its schema is 1"),
        (lambda data: data.pop("schema"), "its schema is 1"),
        (lambda data: data["evidence"]["sets"][0].update(role="somewhere"), "role must be one of"),
        (
            lambda data: data["curves"][1]["cells"][0]["rate"].update(mean="high"),
            r"cells\[0\].rate.mean",
        ),
        (
            lambda data: data["evidence"]["facts"][0].append("x"),
            r"facts\[0\] needs 2 entries, got 3",
        ),
        (lambda data: data["evidence"]["judges"][0].update(is_proxy=1), "is_proxy is 1"),
        (
            lambda data: data["evidence"]["tables"][0].update(probabilities=[["high"]]),
            "no array of numbers",
        ),
    ],
)
def test_json_that_is_no_report_is_named(change, message):
    data = json.loads(to_json(report()))
    change(data)
    with pytest.raises(UserError, match=message):
        from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_text_that_is_no_report_is_named(text):
    with pytest.raises(UserError, match=r"results\.json"):
        from_json(text)
