import dataclasses

import pytest

from srpo_jax.reporting.evidence import Documents, JudgeCheck, Texts
from srpo_jax.reporting.verdicts import GOLD, OWN, Key
from tests.reports import documents, evidence, texts, verdicts


def test_what_a_revision_met_is_the_gold_the_own_first_or_the_others_same_revision():
    made = evidence(
        texts=(*evidence().texts[:2], Texts("mine", "Wikipedia", (("a", "b"),) * 4)), tables=()
    )
    assert made.against(Key("Wikipedia", "srpo", "clerk", GOLD))[1] == ("The human gold 1.",) * 3
    assert made.against(Key("Wikipedia", "srpo", "clerk", OWN))[1] == ("srpo says 1",) * 3
    assert made.against(Key("Wikipedia", "srpo", "clerk", "mine"))[1] == ("a", "b", "b")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ()}, "at least one set"),
        ({"sets": (documents(), documents())}, "document set given twice: Wikipedia"),
        ({"texts": (texts("srpo"), texts("srpo"))}, "texts given twice"),
        ({"texts": (texts("gold"),)}, "no model may be called 'gold'"),
        ({"texts": (texts("srpo", count=3),), "tables": ()}, "has 3 documents"),
        ({"texts": (texts("srpo", "XSum"),), "tables": ()}, "no document set 'XSum'"),
        ({"tables": (verdicts("dpo"),)}, "no texts of 'dpo'"),
        ({"tables": (verdicts("srpo", judge="nobody"),)}, "a judge that is not described"),
        ({"tables": (verdicts("srpo", opponent="dpo"),)}, "no texts of 'dpo'"),
        ({"tables": (verdicts("srpo", rows=[[1.0]] * 4),)}, "another shape"),
    ],
)
def test_evidence_that_does_not_fit_together_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        evidence(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": ("a", "a", "b", "c")}, "same document id twice"),
        ({"golds": ()}, "as many ids as prompts and golds"),
        ({"role": "somewhere"}, "role must be one of"),
    ],
)
def test_documents_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(documents(), **changes)


def test_texts_need_the_same_revisions_for_every_document():
    with pytest.raises(ValueError, match="equally many revisions"):
        Texts("srpo", "Wikipedia", (("a", "b"), ("a",)))
    with pytest.raises(ValueError, match="`cut` for every revision"):
        Texts("srpo", "Wikipedia", (("a", "b"),), ((True,),))


def test_a_judges_check_holds_fractions():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        JudgeCheck("shuffled", "Wikipedia", 86.0, 81.0, 90.0, 400)


def test_a_document_may_lack_its_gold():
    assert Documents("own", "in distribution", ("a",), ("x",), (None,)).golds == (None,)


def test_documents_of_one_prompt_are_one_group_and_kept_reports_know_papers():
    made = documents()
    assert made.groups is None
    assert made.count == "4 documents"
    one = dataclasses.replace(made, prompts=("A long document.",) * 2 + made.prompts[2:])
    assert one.groups.tolist() == [0, 0, 1, 2]
    assert one.count == "4 documents about 3 texts"
    ids = ("aclsum/N10-1/outcome", "aclsum/N10-1/approach", "aclsum/P12-1/outcome", "other/N10-1")
    kept = dataclasses.replace(made, ids=ids, prompts=("",) * 4)
    assert kept.groups.tolist() == [0, 0, 1, 2]
    with pytest.raises(ValueError, match="a key of what it is about for each id"):
        dataclasses.replace(made, about=("a",))
