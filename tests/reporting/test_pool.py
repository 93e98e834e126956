import dataclasses

import numpy as np
import pytest
from scipy import stats

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.pool import pool
from srpo_jax.reporting.verdicts import GOLD, Key
from srpo_jax.runtime.errors import UserError
from tests.reports import documents, evidence, texts, verdicts


def part(start, count, **changes):
    """Documents start … start + count - 1, one model, and a second opinion on it."""
    ids = tuple(f"{start + i}" for i in range(count))
    rows = [[(start + i) / 10, 0.5, 1.0] for i in range(count)]
    prompts = tuple(f"A long document, number {name}." for name in ids)
    base = {
        "sets": (dataclasses.replace(documents(count=count), ids=ids, prompts=prompts),),
        "texts": (texts("srpo", count=count),),
        "tables": (
            verdicts("srpo", rows=rows),
            verdicts("srpo", judge="model", rows=rows),
        ),
    }
    return evidence(**(base | changes))


def test_parts_make_the_report_of_the_whole(folders):
    pooled = pool(folders(a=part(0, 3), b=part(3, 4)), title="both")
    whole = assemble(part(0, 7))
    for made, expected in zip(pooled.curves, whole.curves, strict=True):
        assert made.cells == expected.cells
    assert [(d.mean, d.low, d.high, d.p) for d in pooled.differences] == [
        (d.mean, d.low, d.high, d.p) for d in whole.differences
    ]
    assert pooled.evidence.set("Wikipedia").ids == tuple("0123456")
    assert ("b: machine", "2 cores") in pooled.evidence.facts


def test_missing_verdicts_and_orders_keep_their_documents(folders):
    nan = float("nan")
    rows = [[nan, 0.5, 1.0], [0.0, 0.5, nan], [1.0, 1.0, 1.0]]
    holes = verdicts("srpo", rows=rows), verdicts("srpo", judge="model", rows=rows)
    pooled = pool(folders(a=part(0, 2), b=part(2, 3, tables=holes)), title="both").evidence
    table = pooled.table(Key("Wikipedia", "srpo", "clerk", GOLD))
    assert [(m.document, m.revision) for m in table.missing] == [(2, 0), (3, 2)]
    assert table.orders.shape == (2, 5, 3)
    np.testing.assert_array_equal(table.probabilities[2:], rows)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (part(2, 3), "a and b both have the document '2' of 'Wikipedia'"),
        (
            part(3, 3, texts=(texts("srpo", count=3), texts("dpo", count=3))),
            "b has the model 'dpo' on 'Wikipedia', 2 times revised and a has not",
        ),
        (
            part(3, 3, tables=(verdicts("srpo", rows=[[1.0] * 3] * 3),)),
            "a has the comparison .*model.* and b has not",
        ),
        (
            part(3, 3, judges=tuple(dataclasses.replace(j, prompt="?") for j in part(0, 1).judges)),
            "the judge 'clerk' of a has another description",
        ),
    ],
)
def test_parts_that_do_not_fit_are_named(folders, other, message):
    with pytest.raises(UserError, match=message):
        pool(folders(a=part(0, 3), b=other), title="no")


def test_parts_that_were_decoded_in_other_ways_are_not_pooled(folders):
    greedy, warm, larger = (
        (
            (
                "decoding",
                f"max_new_tokens 6, temperature {t}, top_p 1.0, batch_size {size}, refill 0.1",
            ),
        )
        for t, size in ((0.0, 2), (0.7, 2), (0.0, 4))
    )
    facts = {"a": greedy, "b": larger, "c": warm}
    a, b, c = folders(**{k: part(3 * i, 3, facts=f) for i, (k, f) in enumerate(facts.items())})
    pool([a, b], title="both")
    said = r"a was decoded with max_new_tokens 6, temperature 0\.0, top_p 1\.0 and c with .* 0\.7, top_p"
    with pytest.raises(UserError, match=said):
        pool([a, c], title="no")


def test_one_report_is_not_pooled(folders):
    with pytest.raises(UserError, match="at least two"):
        pool(folders(a=part(0, 3)), title="no")


def test_the_change_of_each_part_is_a_fact_with_the_interval_over_parts(folders):
    """Three seeds that differ by more than documents do: the interval over documents hides it."""
    rises = (0.2, 0.3, 0.7)
    tables = [verdicts("srpo", rows=[[0.1, 0.1, 0.1 + rise]] * 3) for rise in rises]
    parts = {f"seed_{i}": part(3 * i, 3, tables=(table,)) for i, table in enumerate(tables)}
    pooled = pool(folders(**parts), title="seeds")
    said = dict(pooled.evidence.facts)["by part: srpo on Wikipedia, clerk against gold"]
    low, high = stats.t.interval(0.95, 2, np.mean(rises), stats.sem(rises))
    assert said.startswith("seed_0 10.0 to 30.0 % (+20.0); seed_1 10.0 to 40.0 % (+30.0); seed_2")
    assert said.endswith(
        f"over parts +40.0 (−{-100 * low:.1f} to +{100 * high:.1f}, 95 % by Student's t)"
    )
    assert low < pooled.gain(pooled.curves[0]).low
    assert pooled.notes["interval"].endswith("of these parts")


def test_documents_of_two_parts_about_one_text_are_taken_together(folders):
    def about(start, *keys):
        made = part(start, len(keys))
        return dataclasses.replace(
            made, sets=(dataclasses.replace(made.sets[0], about=tuple(keys)),)
        )

    pooled = pool(folders(a=about(0, "x", "y"), b=about(2, "y", "z")), title="both")
    assert pooled.evidence.sets[0].groups.tolist() == [0, 1, 1, 2]
    apart = pool(folders(c=part(0, 2), d=part(2, 2)), title="both")
    rate, other = (report.curves[0].cells[0].rate for report in (pooled, apart))
    assert rate.mean == other.mean
    assert rate.high - rate.low > other.high - other.low
    assert "those about one text" in pooled.notes["interval"]
