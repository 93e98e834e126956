"""Evaluation on a tiny model: the numbers in the report are those of what was written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from srpo_jax import config as config_module
from srpo_jax import evaluate, revision
from srpo_jax.data import documents
from srpo_jax.data.documents import Document
from srpo_jax.evaluation import store, writing
from srpo_jax.evaluation.contestants import check_templates
from srpo_jax.judges import Verdicts, loading
from srpo_jax.reporting import report
from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import from_json
from srpo_jax.runtime import locks
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from tests import processes, reports
from tests.reports import evidence

ROOT = Path(__file__).parents[2]


class LongerThanGold:
    name, description, is_proxy = "length", "prefers the longer completion", False

    def judge(self, prompts, a, b):
        margins = [np.sign(len(x) - len(y)) for x, y in zip(a, b, strict=True)]
        return Verdicts(0.5 + 0.5 * np.array(margins, np.float64))

    def cost(self):
        return {}


DOCUMENTS = {
    name: [Document(f"{name}/{i}", f"text {i} of {name}", "gold" * i, "test") for i in range(5)]
    for name in ("wikipedia", "aclsum")
}


@pytest.fixture
def config(monkeypatch, compiled_once):
    # One device: eight virtual ones only make two cores busy.
    one = mesh_module.make(devices=jax.devices()[:1])
    monkeypatch.setattr(mesh_module, "make", lambda **_: one)
    monkeypatch.setattr(documents, "load", lambda name, split: DOCUMENTS[name])
    monkeypatch.setattr(evaluate.judges, "load_all", lambda *_, **__: (LongerThanGold(),))
    config = config_module.default()
    changes = {
        "model.source": "tiny",
        "model.dtype": "float32",
        "data.template": "plain",
        "sampling.max_new_tokens": 6,
        "sampling.batch_size": 2,
        "evaluate.count": 5,
        "evaluate.revisions": 2,
        "evaluate.judge_check": 0,
    }
    config_module.update(config, changes, "test")
    monkeypatch.setattr(writing, "CHUNK", 1)
    return config


def test_the_report_holds_what_was_written_and_judged(config, tmp_path):
    report = evaluate.evaluate(
        config_module.checked(config), tmp_path, {"start": "tiny"}, title="test"
    )
    assert [(each.name, each.role) for each in report.sets] == [
        ("wikipedia", "in distribution"),
        ("aclsum", "out of distribution"),
    ]
    assert [curve.key.documents for curve in report.curves] == ["wikipedia", "aclsum"]
    for curve in report.curves:
        name = curve.key.documents
        lines = (tmp_path / "samples" / f"start-{name}.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines[1:]]
        assert [r["id"] for r in records] == [d.id for d in DOCUMENTS[name]]
        for k in range(3):
            wins = [
                0.5 + 0.5 * np.sign(len(r["revisions"][k]) - len(d.gold))
                for r, d in zip(records, DOCUMENTS[name], strict=True)
            ]
            assert curve.cells[k].rate.mean == pytest.approx(np.mean(wins))
    assert [len(each.revisions) for each in report.evidence.texts] == [5, 5]
    assert (tmp_path / "report" / "report.html").stat().st_size > 1000


def test_two_evaluations_do_not_write_samples_in_one_folder(config, tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.0)
    with (
        processes.holding(tmp_path / "samples.lock"),
        pytest.raises(UserError, match="another process writes samples there: let it end"),
    ):
        evaluate.evaluate(config_module.checked(config), tmp_path, {"start": "tiny"}, title="")
    assert not (tmp_path / "samples").exists()


def test_an_interrupted_evaluation_goes_on(config, tmp_path, monkeypatch):
    whole = evaluate.evaluate(
        config_module.checked(config), tmp_path / "whole", {"start": "tiny"}, title="test"
    )
    real, asked = revision.revising, []

    def interrupted(*args, **kwargs):
        asked.append(list(kwargs["rows"]))
        for place, (i, ys) in enumerate(real(*args, **kwargs)):
            if len(asked) == 1 and place == 3:
                raise KeyboardInterrupt
            yield i, ys

    monkeypatch.setattr(revision, "revising", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(
            config_module.checked(config), tmp_path / "parts", {"start": "tiny"}, title="test"
        )
    (begun,) = (tmp_path / "parts" / "samples").glob("*.jsonl")
    kept = [json.loads(line)["row"] for line in begun.read_text().splitlines()[1:]]
    parts = evaluate.evaluate(
        config_module.checked(config), tmp_path / "parts", {"start": "tiny"}, title="test"
    )
    first, rest, other = asked
    assert first == other == [0, 1, 2, 3, 4]
    assert len(kept) == 2, "of three that were done a batch of two is on disk"
    assert sorted(kept + rest) == first, "the others are written, and no document twice"
    assert parts.curves == whole.curves


def test_samples_of_other_settings_are_set_aside(config, tmp_path):
    evaluate.evaluate(config_module.checked(config), tmp_path, {"start": "tiny"}, title="test")
    config.sampling.max_new_tokens = 4
    evaluate.evaluate(config_module.checked(config), tmp_path, {"start": "tiny"}, title="test")
    assert (tmp_path / "samples" / "start-aclsum.jsonl.old").exists()


def run(config, workdir, models=None, **more):
    checked = config_module.checked(config)
    return evaluate.evaluate(checked, workdir, models or {"start": "tiny"}, title="test", **more)


def never(*args, **kwargs):
    raise AssertionError("nothing is to be written again")


def test_stages_run_alone_and_need_only_what_is_on_disk(config, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "whole")
    with pytest.raises(UserError, match=r"wikipedia\.jsonl is missing: write first, with --stage"):
        run(config, tmp_path / "parts", stages=("judge",))
    assert run(config, tmp_path / "parts", stages=("write",)) is None
    monkeypatch.setattr(revision, "revising", never)
    monkeypatch.setattr(documents, "load", never)
    monkeypatch.setattr(writing.loading, "open_source", never)
    with pytest.raises(UserError, match="verdicts is missing: judge with --stage=judge"):
        run(config, tmp_path / "parts", stages=("report",))
    assert run(config, tmp_path / "parts", stages=("judge",)) is None
    assert run(config, tmp_path / "parts", stages=("report",)).curves == whole.curves


def test_a_copy_of_the_workdir_keeps_its_samples(config, tmp_path, monkeypatch):
    whole = run(config, tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    monkeypatch.setattr(revision, "revising", never)
    monkeypatch.chdir(tmp_path)
    assert run(config, tmp_path.relative_to(tmp_path) / "there").curves == whole.curves


@pytest.mark.slow
def test_a_dry_run_says_what_judging_would_cost_and_asks_nothing(config, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(documents, "load", lambda name, split: DOCUMENTS[name])
    config.judge.name, config.judge.model, config.judge.api_key_env = "llm", "m", "NOBODY_SET_IT"
    config.judge.prompt_price = 1e6  # a token's price is 1
    config.evaluate.judge_check = 2
    settings = config_module.checked(config)
    (most,) = evaluate.estimated(settings, tmp_path, {"start": "tiny"})
    assert not list(tmp_path.iterdir())
    run(config, tmp_path, stages=("write",))
    (cost,) = evaluate.estimated(settings, tmp_path, {"start": "tiny"})
    # Both orders of what differs from the gold: 2 sets of 5 documents, 3 completions, and the check.
    unequal = sum(
        text != gold
        for name in DOCUMENTS
        for d, r in zip(DOCUMENTS[name], written(tmp_path, name), strict=True)
        for gold in [d.gold]
        for text in r["revisions"]
    )
    assert 0 < 2 * unequal <= cost.requests <= most.requests
    assert cost.price <= most.price
    assert cost.price >= cost.prompt_tokens > 0
    assert not list(tmp_path.glob("verdicts/*"))


def written(workdir, name):
    lines = (workdir / "samples" / f"start-{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def test_reports_are_put_into_one_by_the_command(tmp_path):
    for name, rows in (("a", [[1.0, 1.0, 1.0]]), ("b", [[0.0, 0.0, 0.0]])):
        made = evidence(
            sets=(reports.documents(),),
            texts=(reports.texts("start"), reports.texts(name)),
            tables=(reports.verdicts("start"), reports.verdicts(name, rows=rows * 4)),
        )
        report.write(assemble(made), tmp_path / name / "report")
    command = [sys.executable, "-m", "srpo_jax.evaluate", "--compare", "a/report", "b/report"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    both = from_json((tmp_path / "comparison" / "report" / "results.json").read_text())
    assert both.evidence.models == ("start", "a", "b")
    assert "comparison/report/report.html" in done.stdout


def table(workdir, documents, model, opponent):
    name = "-".join(store.slug(part) for part in (documents, model, "vs", opponent))
    return json.loads((workdir / "verdicts" / "length" / f"{name}.json").read_text())


def test_models_outputs_and_the_best_of_several_meet_each_other(config, tmp_path):
    lines = [
        {"id": d.id, "revisions": ["short", "a very long text, longer than six bytes"]}
        for name in DOCUMENTS
        for d in DOCUMENTS[name]
    ]
    (tmp_path / "gpt.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.evaluate.models = ("a=tiny",)
    config.evaluate.outputs = (f"gpt={tmp_path / 'gpt.jsonl'}",)
    config.evaluate.against = ("gold", "own", "baseline:a")
    config.evaluate.best_of = ("a",)
    report = run(config, tmp_path / "run")
    best = "a, best of k+1 by mean log-probability"
    assert report.evidence.models == ("a", best, "gpt")
    path = tmp_path / "run" / "samples" / f"{store.slug(best)}-wikipedia.jsonl"
    for record in map(json.loads, path.read_text().splitlines()[1:]):
        for k, chosen in enumerate(record["revisions"]):
            assert chosen == record["samples"][int(np.argmax(record["scores"][: k + 1]))]
    meets = table(tmp_path / "run", "wikipedia", "gpt", best)["probabilities"]
    assert np.array(meets).shape == (5, 2)
    assert np.array(meets)[:, 1].all()
    own = table(tmp_path / "run", "wikipedia", "gpt", "own y_0")["probabilities"]
    assert [row[1] for row in own] == [1.0] * 5


def test_documents_without_gold_are_compared_with_something_else(config, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"text {i}"}) + "\n" for i in range(5)))
    config.evaluate.documents = (str(path),)
    with pytest.raises(UserError, match="nothing of mine can be compared: it has no golds"):
        run(config, tmp_path / "run")
    config.evaluate.against = ("own",)
    run(config, tmp_path / "run", stages=("judge",))
    assert table(tmp_path / "run", "mine", "start", "own y_0")["missing"] == []


def test_an_ensemble_stands_beside_its_members_with_their_agreement(config, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.judges, "load_all", loading.load_all)
    lines = [
        {"id": d.id, "output": "word " * n} for ds in DOCUMENTS.values() for n, d in enumerate(ds)
    ]
    (tmp_path / "gpt.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.evaluate.outputs = (f"gpt={tmp_path / 'gpt.jsonl'}",)
    config.judge.update({"name": "ensemble", "members": ("longer", "shorter")})
    report = run(config, tmp_path / "run")
    assert [judge.name for judge in report.evidence.judges] == ["ensemble", "longer", "shorter"]
    kappa = {(each.first, each.second): each.kappa for each in report.concords}
    assert list(kappa) == [("ensemble", "longer"), ("ensemble", "shorter"), ("longer", "shorter")]
    # Of four different texts, three have more words than the gold and one as many.
    assert kappa["longer", "shorter"] == pytest.approx((1 / 4 - 1 / 16) / (1 - 1 / 16))
    rates = {curve.key.judge: curve.cells[0].rate.mean for curve in report.curves}
    assert rates["ensemble"] == 0.5
    assert (rates["longer"], rates["shorter"]) == (0.8, pytest.approx(0.2))


def test_a_judge_that_is_shown_the_golds_compares_revisions_and_not_the_gold(
    outputs, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate.judges, "load_all", loading.load_all)
    outputs.judge.name = "overlap"
    with pytest.raises(UserError, match=r"leave gold out of config\.evaluate\.against"):
        run(outputs, tmp_path / "run")
    assert not (tmp_path / "run" / "samples").exists()
    outputs.evaluate.against = ("own",)
    made = run(outputs, tmp_path / "run")
    assert made.views == (("overlap", "own y_0"),)
    assert not made.evidence.judges[0].checks


@pytest.fixture
def outputs(config, tmp_path, monkeypatch):
    """No model: three equal revisions of each document, in a file; and no pictures are drawn."""
    monkeypatch.setattr(evaluate, "_show", lambda *_: None)
    lines = [{"id": d.id, "revisions": ["two words"] * 3} for ds in DOCUMENTS.values() for d in ds]
    (tmp_path / "gpt.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.evaluate.outputs = (f"gpt={tmp_path / 'gpt.jsonl'}",)
    return config


def test_the_judge_of_the_settings_comes_first(outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.judges, "load_all", loading.load_all)
    outputs.judge.update({"name": "shorter", "others": ("longer",)})
    for stages in (evaluate.STAGES, ("report",)):
        made = run(outputs, tmp_path / "run", stages=stages)
        assert made.views == (("shorter", "gold"), ("longer", "gold"))


def test_verdicts_of_other_parameters_are_not_mixed(outputs, tmp_path, monkeypatch):
    judge = LongerThanGold()
    monkeypatch.setattr(evaluate.judges, "load_all", lambda *_, **__: (judge,))
    judge.facts = {"temperature": "0"}
    run(outputs, tmp_path / "run")
    judge.facts = {"temperature": "1"}
    outputs.evaluate.documents = ("wikipedia",)
    run(outputs, tmp_path / "run")
    outputs.evaluate.documents = ("wikipedia", "aclsum")
    with pytest.raises(UserError, match=r"aclsum-gpt.* is by the judge 'length' as it was before"):
        run(outputs, tmp_path / "run", stages=("report",))


def test_samples_of_other_settings_or_weights_are_not_reported(outputs, tmp_path):
    run(outputs, tmp_path, stages=("write",))
    sampling = {"max_new_tokens": 6, "temperature": 0.0, "top_p": 1.0}
    told = {
        "template": "plain",
        "dtype": "float32",
        "sampling": sampling,
        "revisions": 2,
        "seed": 0,
    }

    def write(name, weights):
        records = [{"id": d.id, "revisions": ["y"] * 3} for d in DOCUMENTS[name]]
        lines = map(json.dumps, [{"weights": weights, **told}, *records])
        (tmp_path / "samples" / f"a-{name}.jsonl").write_text("".join(f"{x}\n" for x in lines))

    for name in DOCUMENTS:
        write(name, "1234567890abcdef")
    outputs.evaluate.models = ("a=tiny",)
    made = run(outputs, tmp_path, stages=("judge", "report"))
    assert ("model a", "tiny, weights 1234567890ab, float32") in made.evidence.facts
    assert ("outputs gpt", str(tmp_path / "gpt.jsonl")) in made.evidence.facts
    assert ("documents of wikipedia", "the first 5 of test") in made.evidence.facts
    write("aclsum", "fedcba0987654321")
    with pytest.raises(
        UserError, match=r"a-aclsum\.jsonl is by other weights than the other samples"
    ):
        run(outputs, tmp_path, stages=("report",))
    outputs.sampling.temperature = 0.5
    said = (
        r"a-wikipedia\.jsonl was written with config\.sampling\.temperature=0\.0, and 0\.5 is asked"
    )
    with pytest.raises(UserError, match=said):
        run(outputs, tmp_path, stages=("report",))


def test_what_revision_leaves_alone_costs_nothing_more(outputs, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.judges, "load_all", loading.load_all)
    outputs.judge.update({"name": "llm", "model": "m", "api_key_env": "NOBODY_SET_IT"})
    run(outputs, tmp_path / "run", stages=("write",))
    (cost,) = evaluate.estimated(config_module.checked(outputs), tmp_path / "run", {})
    assert cost.requests == 2 * 2 * 5  # both orders of ten documents, not of their three revisions


def test_a_dry_run_of_several_hosts_tells_the_others_what_json_holds(
    outputs, tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluate, "keep_compiled", lambda _: None)
    monkeypatch.setattr(evaluate, "estimated", lambda *_: [evaluate.judges.Estimate(requests=2)])
    said = []
    monkeypatch.setattr(
        evaluate.distributed, "from_main", lambda work: said.append(json.dumps(work()))
    )
    evaluate.main(config_module.checked(outputs), tmp_path, None, True)
    assert said == ["null"]


def test_a_run_with_other_arguments_of_its_chat_template_is_refused(config, tmp_path):
    config.data.template = "dialogue"
    config.data.template_arguments = ("enable_thinking=false",)
    config_module.save(config_module.checked(config), tmp_path / "config.json")
    config.data.template_arguments = ()
    with pytest.raises(UserError, match=r"data\.template_arguments=\('enable_thinking=false',\)"):
        check_templates(config_module.checked(config), {"a": str(tmp_path)})


def test_a_run_whose_start_is_gone_is_evaluated_alone(config, tmp_path):
    config.model.source = str(tmp_path / "gone")
    settings = config_module.checked(config)
    config_module.save(settings, tmp_path / "config.json")
    alone = rf"neither .* nor a directory: --config\.evaluate\.models=.*'srpo={tmp_path}'"
    with pytest.raises(UserError, match=alone):
        evaluate._compared(settings, tmp_path)


def test_a_model_does_not_judge_itself(config, tmp_path):
    config.judge.update({"name": "shannon", "source": "tiny"})
    with pytest.raises(
        UserError, match=r"config\.judge\.source=tiny is the model 'start', which is"
    ):
        run(config, tmp_path)
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"against": ("baseline:b",)}, "against: there is no model 'b': there are start"),
        ({"best_of": ("b",)}, "best_of: there is no model 'b': there are start"),
        ({"models": ("a=tiny", "a=tiny")}, "models: 'a' is given twice"),
        ({"models": ("a=tiny",), "outputs": ("a=b.jsonl",)}, "'a' names both a model and a file"),
        ({"models": ("a=nowhere",)}, "the model source 'nowhere'"),
    ],
)
def test_what_cannot_be_compared_is_named(config, tmp_path, changes, said):
    config.evaluate.update(changes)
    with pytest.raises(UserError, match=said):
        run(config, tmp_path)


def test_a_run_of_train_online_is_called_by_what_it_learned_with(config, tmp_path):
    """It was called srpo, which is what config.objective.name is where nobody set it."""
    config.online.objective = "ppo"
    config.model.source = "tiny"
    settings = config_module.checked(config)
    config_module.save(settings, tmp_path / "config.json")
    (tmp_path / "run.json").write_text(json.dumps({"documents": "0"}))
    models, title = evaluate._compared(settings, tmp_path)
    assert models == {"start": "tiny", "ppo": str(tmp_path)}
    assert title == f"PPO: {tmp_path.name}"


def test_a_folder_without_a_run_and_no_models_are_named(config, tmp_path):
    with pytest.raises(UserError, match=r"no training run, and config\.evaluate\.models names"):
        evaluate._compared(config_module.checked(config), tmp_path)
