from dataclasses import dataclass, field

import numpy as np
import pytest

from srpo_jax.reporting.verdicts import GOLD, NO_GOLD, Key, Missing, VerdictTable, table

KEY = Key("Wikipedia", "srpo", "clerk", GOLD)
NAN = float("nan")


@dataclass
class Said:
    probabilities: np.ndarray
    orders: np.ndarray | None = None
    missing: dict[int, str] = field(default_factory=dict)


def test_a_table_is_put_together_from_what_is_said_of_each_revision():
    first = Said(np.array([0.5, NAN]), np.array([[1.0, NAN], [0.0, 1.0]]), {1: "refused"})
    second = Said(np.array([NAN, 1.0]), np.array([[NAN, 1.0], [NAN, 1.0]]))
    made = table(KEY, [first, second])
    np.testing.assert_array_equal(made.probabilities, [[0.5, NAN], [NAN, 1.0]])
    np.testing.assert_array_equal(made.orders[0], [[1.0, NAN], [NAN, 1.0]])
    assert set(made.missing) == {Missing(1, 0, "refused"), Missing(0, 1, "no verdict")}
    assert made.count == 2


def test_orders_are_kept_only_where_every_revision_has_them():
    columns = [Said(np.array([1.0]), np.array([[1.0], [1.0]])), Said(np.array([0.0]))]
    assert table(KEY, columns).orders is None


def test_missing_verdicts_count_as_ties_only_where_asked_for():
    made = VerdictTable(KEY, np.array([[1.0], [NAN]]), None, (Missing(1, 0, "refused"),))
    np.testing.assert_array_equal(made.filled(ties=True), [[1.0], [0.5]])
    np.testing.assert_array_equal(made.filled(ties=False), [[1.0], [NAN]])
    nobody_asked = VerdictTable(KEY, made.probabilities, None, (Missing(1, 0, NO_GOLD),))
    np.testing.assert_array_equal(nobody_asked.filled(ties=True), [[1.0], [NAN]])


@pytest.mark.parametrize(
    ("probabilities", "orders", "missing", "message"),
    [
        ([0.5], None, (), "documents, revisions"),
        ([[1.5]], None, (), r"outside \[0, 1\]"),
        ([[0.5]], [[[0.5]]], (), "orders of shape"),
        ([[NAN]], None, (), "each verdict that is NaN"),
        ([[0.5]], None, (Missing(0, 0, "refused"),), "and no other"),
    ],
)
def test_what_does_not_fit_together_is_refused(probabilities, orders, missing, message):
    orders = None if orders is None else np.array(orders)
    with pytest.raises(ValueError, match=message):
        VerdictTable(KEY, np.array(probabilities), orders, missing)
