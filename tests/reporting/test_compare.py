import dataclasses
import gzip

import pytest

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.compare import compare
from srpo_jax.reporting.summary import warnings
from srpo_jax.reporting.verdicts import GOLD
from srpo_jax.runtime.errors import UserError
from tests.reports import documents, evidence, report, texts, verdicts


def of(model, **changes):
    """A run of one model beside the start policy, on one set."""
    base = {
        "sets": (documents(),),
        "texts": (texts("start"), texts(model)),
        "tables": (verdicts("start"), verdicts(model, rows=[[1.0, 1.0, 1.0]] * 4)),
    }
    return evidence(**(base | changes))


def test_models_of_several_reports_are_compared_with_each_other(folders):
    both = compare(folders(a=of("srpo"), b=of("dpo")), title="both")
    assert both.evidence.models == ("start", "srpo", "dpo")
    pairs = {(d.model, d.baseline) for d in both.compared("Wikipedia", ("clerk", GOLD))}
    assert ("srpo", "dpo") in pairs
    assert ("srpo", "start") in pairs
    alone = assemble(of("srpo"))
    assert both.differences[0].adjusted >= alone.differences[0].adjusted  # more tests in the table
    assert ("a: machine", "2 cores") in both.evidence.facts
    assert both.evidence.judges[0].cost["requests"] == 96


def test_other_texts_under_one_name_are_told_apart(folders):
    other = dataclasses.replace(texts("srpo"), revisions=(("x", "y", "z"),) * 4)
    made = compare(
        folders(a=of("srpo"), b=of("srpo", texts=(texts("start"), other))), title="seeds"
    )
    assert made.evidence.models == ("start", "srpo (a)", "srpo (b)")


def test_templates_of_all_are_said(folders):
    def put(template):
        return {"sets": (dataclasses.replace(documents(), template=template),)}

    alike = compare(folders(a=of("srpo", **put("tldr")), b=of("dpo", **put("tldr"))), title="")
    assert alike.sets[0].template == "tldr"
    other = compare(folders(c=of("srpo", **put("tldr")), d=of("dpo", **put("plain"))), title="")
    assert other.sets[0].template == "tldr (c), plain (d)"


def test_other_decoding_is_warned_of(folders):
    said = {"a": "0.0, batch_size 2", "b": "0.0, batch_size 4", "c": "0.7, batch_size 2"}
    made = {k: of(k, facts=(("decoding", f"temperature {t}"),)) for k, t in said.items()}
    a, b, c = folders(**made)
    assert "decoding" not in compare([a, b], title="alike").notes
    note = "Not all were decoded alike: a temperature 0.0; c temperature 0.7."
    assert note in warnings(compare([a, c], title="other"))


def test_results_are_read_from_a_file_of_any_name(folders, tmp_path):
    a, b = folders(a=of("srpo"), b=of("dpo"))
    kept = tmp_path / "kept.json.gz"
    kept.write_bytes(gzip.compress((b / "results.json").read_bytes()))
    made = compare([a, kept], title="both")
    assert made.evidence.models == ("start", "srpo", "dpo")
    assert ("kept: machine", "2 cores") in made.evidence.facts
    for damaged in (b"{}", kept.read_bytes()[:-20]):
        kept.write_bytes(damaged)
        with pytest.raises(UserError, match=r"kept.json.gz is not gzipped, or is damaged"):
            compare([a, kept], title="both")
    kept.write_bytes(gzip.compress(b"\xff"))
    with pytest.raises(UserError, match=r"kept.json.gz is no text"):
        compare([a, kept], title="both")


def test_sets_of_one_report_only_are_kept(folders):
    made = compare(folders(a=of("srpo"), b=report().evidence), title="more")
    assert [each.name for each in made.sets] == ["Wikipedia", "ACLSum"]


def on(name, role="in distribution"):
    """A run of one model, on one set."""
    return evidence(
        sets=(documents(name, role=role),),
        texts=(texts("srpo", name),),
        tables=(verdicts("srpo", name),),
    )


def test_one_name_on_sets_of_its_own_in_each_report_is_refused_unless_it_is_said_to_be_one(folders):
    a, b = folders(a=on("Wikipedia"), b=on("ACLSum", "out of distribution"))
    with pytest.raises(UserError, match=r"'srpo' of a and of b may be two models: .* with --join"):
        compare([a, b], title="two")
    made = compare([a, b], title="one", joined=True)
    assert made.evidence.models == ("srpo",)
    assert "evaluate --join" in made.evidence.command
    (both,) = folders(c=report().evidence)  # has both sets, and the same texts on them
    assert "srpo" in compare([a, b, both], title="linked").evidence.models


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sets": (dataclasses.replace(documents(), ids=("a", "b", "c", "d")),)},
            "different documents of 'Wikipedia' .*number 0 is 'Wikipedia/0' in one and 'a'",
        ),
        (
            {"sets": (dataclasses.replace(documents(), golds=("other",) * 4),)},
            "other texts or golds under the same ids",
        ),
        (
            {"sets": (documents(role="out of distribution"),)},
            "'Wikipedia' is in distribution in a and out of distribution in b: give it the same `role`",
        ),
        (
            {"judges": tuple(dataclasses.replace(j, prompt="?") for j in evidence().judges)},
            "the judge 'clerk' of a has another description, prompt or parameters",
        ),
    ],
)
def test_reports_that_cannot_be_compared_are_named(folders, changes, message):
    with pytest.raises(UserError, match=message):
        compare(folders(a=of("srpo"), b=of("dpo", **changes)), title="no")


def test_other_numbers_of_documents_are_said(folders):
    fewer = of(
        "dpo",
        sets=(documents(count=3),),
        texts=(texts("dpo", count=3),),
        tables=(verdicts("dpo", rows=[[1.0] * 3] * 3),),
    )
    with pytest.raises(UserError, match="4 and 3 of them"):
        compare(folders(a=of("srpo"), b=fewer), title="no")


def test_a_folder_without_a_report_is_named(tmp_path, folders):
    with pytest.raises(UserError, match=r"nowhere/results\.json cannot be read"):
        compare([*folders(a=of("srpo")), tmp_path / "nowhere"], title="no")
    (tmp_path / "a/report/results.json").write_text("{")
    with pytest.raises(UserError, match=r"a/report/results\.json: this is not a report's"):
        compare([tmp_path / "a/report"] * 2, title="no")
    with pytest.raises(UserError, match="at least two"):
        compare([tmp_path], title="no")
