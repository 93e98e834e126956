"""One model's change by revising less another's."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from srpo_jax.runtime.errors import UserError
from tests.reports import NAN, documents, evidence, texts, verdicts

TOOL = Path(__file__).parents[2] / "tools" / "compare_changes.py"
spec = importlib.util.spec_from_file_location("compare_changes", TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def results(**rows):
    return evidence(
        sets=(documents(),),
        texts=tuple(texts(model) for model in rows),
        tables=tuple(verdicts(model, rows=said) for model, said in rows.items()),
    )


def test_changes_are_paired_over_documents_that_both_were_judged_on():
    ours = results(srpo=[[0.2, 0.0, 0.8]] * 3 + [[NAN, 0.5, 1.0]])
    theirs = results(start=[[0.5, 1.0, 0.6]] * 4, dpo=[[0.5, 0.5, 0.1]] * 4)
    _, _, start, dpo = tool.table(tool.changes([ours, theirs], "", "gold"), "srpo").splitlines()
    assert start.startswith("| srpo less start | 3 | +60.0 (")
    assert [cell.split()[0] for cell in start.split("|")[3:6]] == ["+60.0", "+10.0", "+50.0"]
    assert [cell.split()[0] for cell in dpo.split("|")[3:6]] == ["+60.0", "-40.0", "+100.0"]


def test_what_stands_in_two_results_counts_once_and_must_be_the_same():
    found = results(srpo=[[0.2, 0.0, 0.8]] * 4, start=[[0.5, 1.0, 0.6]] * 4)
    assert tool.changes([found, found], "", "gold") == tool.changes([found], "", "gold")
    other = results(srpo=[[0.2, 0.0, 0.9]] * 4)
    with pytest.raises(
        UserError, match="two of the results have srpo on the document 'Wikipedia/0'"
    ):
        tool.changes([found, other], "", "gold")
    with pytest.raises(UserError, match="--of=ipo: no results of it; there are srpo, start"):
        tool.table(tool.changes([found], "", "gold"), "ipo")


def test_documents_about_one_text_are_taken_together():
    found = results(srpo=[[0.0, 0.5, 1.0]] * 2 + [[0.5, 0.5, 0.5]] * 2, start=[[0.5, 0.5, 0.5]] * 4)
    sets = (dataclasses.replace(found.sets[0], about=("a", "a", "b", "b")),)
    together = dataclasses.replace(found, sets=sets)
    apart, joined = (
        tool.table(tool.changes([one], "", "gold"), "srpo").splitlines()[-1]
        for one in (found, together)
    )
    low = lambda line: float(line.split("|")[5].split("(")[1].split(" to ")[0])
    assert low(joined) < low(apart)
