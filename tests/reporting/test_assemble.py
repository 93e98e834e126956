"""The derived numbers of a report, worked out by hand."""

import dataclasses

import numpy as np
import pytest

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import to_json
from srpo_jax.reporting.data import Interval, Rules
from srpo_jax.reporting.summary import findings, warnings
from srpo_jax.reporting.verdicts import GOLD, NO_GOLD, OWN
from tests.reports import documents, evidence, report, texts, verdicts

GOLDS = ("clerk", GOLD)


def curve(made, model, name="Wikipedia", view=GOLDS):
    return next(each for each in made.on(name, view) if each.key.model == model)


def test_a_cell_counts_wins_ties_losses_and_the_missing():
    cells = curve(report(), "start").cells
    assert [(c.count, c.wins, c.ties, c.losses, c.missing) for c in cells] == [
        (3, 0, 1, 2, 1),
        (4, 2, 1, 1, 0),
        (4, 3, 0, 1, 0),
    ]
    assert [cell.rate.mean for cell in cells] == pytest.approx([0.5 / 3, 2.5 / 4, 3 / 4])
    assert all(cell.rate.low < cell.rate.mean < cell.rate.high for cell in cells)
    assert cells[1].spread > 0


def test_wilsons_interval_of_four_wins_of_four():
    rate = curve(report(), "srpo").cells[0].rate
    assert (rate.mean, rate.high) == (1.0, 1.0)
    assert rate.low == pytest.approx(4 / (4 + 1.959964**2), rel=1e-6)


def test_missing_verdicts_as_ties_enter_the_rate_and_stay_counted():
    cell = curve(report(Rules(missing_as_ties=True)), "start").cells[0]
    assert (cell.count, cell.ties, cell.missing) == (4, 1, 1)
    assert cell.rate.mean == pytest.approx(1.0 / 4)


def test_differences_are_paired_over_documents_judged_in_both():
    found = {
        (d.model, d.revision, d.baseline, d.baseline_revision): d
        for d in report().compared("Wikipedia", GOLDS)
    }
    gain = found["start", 2, "start", 0]
    # Documents 0, 1, 2: +1, +1, +1/2; the last was not judged at first.
    assert (gain.count, gain.mean) == (3, pytest.approx(2.5 / 3))
    assert gain.p == pytest.approx(2 / 2**3)
    other = found["srpo", 1, "start", 1]  # the start policy is the baseline wherever it stands
    assert (other.count, other.mean, other.p) == (4, pytest.approx(1.5 / 4), pytest.approx(0.5))
    assert ("start", 1, "srpo", 1) not in found


def test_holm_is_over_all_sets_of_one_judge_and_opponent():
    made = report()
    members = [d for d in made.differences if (d.judge, d.opponent) == GOLDS]
    assert {d.documents for d in members} == {"Wikipedia", "ACLSum"}
    smallest = min(members, key=lambda d: d.p)
    assert smallest.adjusted == pytest.approx(min(1.0, len(members) * smallest.p))
    own = [d for d in made.differences if d.opponent == OWN]
    assert [d.adjusted for d in own] == pytest.approx([2 / 2**3, 2 / 2**3])  # 2 tests of p = 1/8


def test_a_strong_difference_is_marked():
    many = 24
    made = assemble(
        evidence(
            sets=(documents(count=many),),
            texts=(texts("srpo", count=many),),
            tables=(verdicts("srpo", rows=[[0.0, 0.0, 1.0]] * many),),
        )
    )
    assert [d.significant for d in made.differences] == [False, True]


def test_a_mean_against_the_signs_of_most_documents_is_not_told_from_chance():
    """Twenty documents lose a little and four win much: the sign test rejects, for the losses."""
    rows = [[0.5, 0.5, 0.45]] * 20 + [[0.2, 0.2, 1.0]] * 4
    made = assemble(
        evidence(
            sets=(documents(count=24),),
            texts=(texts("srpo", count=24),),
            tables=(verdicts("srpo", judge="model", rows=rows),),
        )
    )
    gain = made.gain(made.curves[0])
    assert gain.mean > 0 > gain.wins - gain.losses
    assert gain.adjusted < 0.05
    assert not gain.significant
    (found,) = findings(made)
    assert "not told from chance: 20 documents against 4 changed the other way (p = 0.003" in found


def test_texts_are_measured():
    style = report().styled("Wikipedia")[0]
    assert style.mean_words == (3.0, 4.0, 4.0)
    assert style.unchanged == (0.0, 0.0, 1.0)
    assert style.edits == (0.0, 0.25, 0.0)  # a fourth word
    assert style.cut == (0.25, 0.0, 0.0)
    assert style.repetition == (0.0, 0.0, 0.0)


def test_what_completions_share_with_the_golds_is_measured():
    one = report().styled("Wikipedia")[0]
    # "start says 0" and "The human gold 0.": a word of three, and of four.
    assert one.overlap == pytest.approx((2 / 7, 2 / 8, 2 / 8))
    assert one.nearer.mean == pytest.approx(2 / 8 - 2 / 7)
    assert one.nearer.low < one.nearer.mean < one.nearer.high
    silent = documents(golds=("The human gold 0.", None, "···", "··· ···"))
    (some,) = report(sets=(silent,), texts=(texts("start"),), tables=(verdicts("start"),)).styles
    assert some.overlap == pytest.approx((2 / 7, 2 / 8, 2 / 8))  # of the first alone
    none = report(
        sets=(documents(golds=(None, "···", None, "·")),),
        texts=(texts("start"),),
        tables=(verdicts("start", opponent=OWN, rows=[[0.5, 1.0, 1.0]] * 4),),
    )
    assert (none.styles[0].overlap, none.styles[0].nearer) == ((), None)


def test_a_gain_that_the_golds_do_not_show_is_told_of():
    sets, rows = (documents(count=24),), [[0.1, 0.9, 0.9]] * 24
    given = {"sets": sets, "tables": (verdicts("srpo", rows=rows),)}
    (line,) = [
        one for one in warnings(report(texts=(texts("srpo", count=24),), **given)) if "F1" in one
    ]
    assert "SRPO on Wikipedia: revising gains +80.0 points by clerk" in line
    golds = tuple((f"{i}", gold, gold) for i, gold in enumerate(sets[0].golds))
    nearer = dataclasses.replace(texts("srpo", count=24), revisions=golds)
    assert not [one for one in warnings(report(texts=(nearer,), **given)) if "F1" in one]


def test_a_first_model_that_rewrites_is_told_of_and_one_that_edits_is_not():
    made = report()
    assert not [line for line in warnings(made) if "writes anew" in line]
    anew = [
        dataclasses.replace(t, revisions=tuple((a, f"{a} b c d e f g", a) for a, *_ in t.revisions))
        if t.model == "start"
        else t
        for t in evidence().texts
    ]
    (line, *others) = [
        line for line in warnings(report(texts=tuple(anew))) if "writes anew" in line
    ]
    assert "where its first revision changes something, it changes 66.7 % of the words" in line
    assert len(others) == len({t.documents for t in anew}) - 1


def test_outputs_without_cut_marks_have_no_cut_share():
    files = tuple(dataclasses.replace(each, cut=()) for each in evidence().texts)
    assert report(texts=files).styles[0].cut == ()


def test_position_counts_each_asked_pair_once():
    """`start` alone: k = 2 repeats k = 1, one pair is missing, and both ties prefer what is first."""
    made = report(texts=(texts("start"),), tables=(verdicts("start"),), sets=(documents(),))
    (position,) = made.positions
    assert position.count == 7  # 4 documents, 2 different texts, 1 missing
    assert position.agreement.mean == pytest.approx(5 / 7)
    # First is preferred in 2 of 2 on each tie and in 1 of 2 on the others.
    assert position.first.mean == pytest.approx((2 * 2 + 5) / 14)


def test_a_judge_that_always_prefers_the_first_is_said_not_to_judge():
    rows = [[0.5, 0.5, 0.5]] * 4
    made = report(
        texts=(texts("srpo"),), tables=(verdicts("srpo", rows=rows),), sets=(documents(),)
    )
    assert made.positions[0].agreement.mean == 0
    assert "does not judge" in made.positions[0].warning
    assert made.positions[0].first.mean == 1


def test_judges_are_compared_on_the_pairs_that_both_judged():
    (concord,) = report().concords
    assert (concord.first, concord.second, concord.count) == ("clerk", "model", 8)
    # clerk: all wins; model: losses at k = 0, wins at k = 1.
    assert concord.share.mean == pytest.approx(0.5)
    assert concord.kappa == pytest.approx(0.0)


def test_missing_verdicts_are_counted_by_reason():
    absence = report().absences[0]
    assert (absence.judge, absence.asked, absence.missing) == ("clerk", 6 * 12, 3)
    assert absence.reasons == {"refused": 3}
    silent = dataclasses.replace(
        verdicts("start"),
        missing=(dataclasses.replace(verdicts("start").missing[0], reason=NO_GOLD),),
    )
    absence = report(tables=(silent,)).absences[0]
    assert (absence.asked, absence.missing) == (
        11,
        0,
    )  # nobody was asked about a document without gold


def test_swapping_the_sides_mirrors_a_report():
    made = report()
    other = report(
        tables=tuple(
            dataclasses.replace(table, probabilities=1 - table.probabilities, orders=None)
            for table in evidence().tables
        )
    )
    for one, mirrored in zip(made.curves, other.curves, strict=True):
        for a, b in zip(one.cells, mirrored.cells, strict=True):
            assert (a.wins, a.losses) == (b.losses, b.wins)
            assert a.rate.mean == pytest.approx(1 - b.rate.mean, abs=1e-12)
            assert a.rate.low == pytest.approx(1 - b.rate.high, abs=1e-12)


def test_nothing_judged_is_a_cell_without_a_rate():
    made = report(tables=(verdicts("srpo", rows=[[np.nan, 1.0, 1.0]] * 4),))
    cell = curve(made, "srpo").cells[0]
    assert (cell.count, cell.missing, cell.rate, cell.controlled, cell.spread) == (
        0,
        4,
        None,
        None,
        None,
    )
    assert all(d.baseline_revision != 0 for d in made.differences)


def test_the_same_evidence_gives_the_same_report():
    assert to_json(report()) == to_json(report())


@pytest.mark.parametrize("values", [(float("nan"), 0.0, 1.0), (50.0, 45.0, 55.0), (0.5, 0.6, 0.4)])
def test_an_interval_holds_fractions_in_order(values):
    with pytest.raises(ValueError, match="interval"):
        Interval(*values)
