"""The distance of what a model wrote from its start, against log-probabilities summed by hand."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from srpo_jax import models, prompts
from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import to_json
from srpo_jax.runtime.errors import UserError
from tests.reports import documents, evidence, texts, verdicts

TOOL = Path(__file__).parents[2] / "tools" / "kl_from_start.py"
spec = importlib.util.spec_from_file_location("kl_from_start", TOOL)
kl_from_start = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kl_from_start)


@pytest.fixture
def workdir(tmp_path):
    cut = tuple((i == 0, False, False) for i in range(4))
    written = dataclasses.replace(texts("srpo"), cut=cut)
    made = evidence(sets=(documents(),), texts=(written,), tables=(verdicts("srpo"),))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "results.json").write_text(to_json(assemble(made)), encoding="utf-8")
    return tmp_path


def test_answers_end_unless_they_were_cut_off(workdir):
    renderer = prompts.Renderer("plain", models.load_tokenizer("tiny"))
    found = kl_from_start.read(workdir / "report").evidence
    _, answers = kl_from_start.asked(found, "srpo", renderer)
    assert answers[0] == renderer.completion("srpo says 0")
    assert answers[1] == (*renderer.completion("srpo says 1"), renderer.eos)


def test_a_model_has_not_gone_from_itself(workdir, capsys):
    arguments = [str(workdir), "--start=tiny", "--template=plain", "srpo=tiny"]
    kl_from_start.main(arguments)
    assert capsys.readouterr().out.splitlines()[-1] == "| srpo | 0.00 ± 0.00 | 4 |"
    with pytest.raises(UserError, match="'dpo=tiny' is no MODEL=SOURCE with one of srpo"):
        kl_from_start.main([*arguments[:-1], "dpo=tiny"])


def test_prompts_are_put_as_they_were(workdir):
    said = dataclasses.replace(documents(), template="plain")
    assert kl_from_start.template(said, None) == kl_from_start.template(said, "plain") == "plain"
    assert kl_from_start.template(documents(), "chat") == "chat"
    for given, wanted, sentence in (
        (said, "chat", "were written under 'plain'"),
        (documents(), None, "give --template"),
        (dataclasses.replace(said, prompts=("",) * 4), None, "has no texts"),
    ):
        with pytest.raises(UserError, match=sentence):
            kl_from_start.template(given, wanted)


def test_the_difference_is_that_of_the_models_scores(workdir, capsys, monkeypatch):
    scored = {"a": np.array([-1.0, -2.0, -3.0, -4.0]), "b": np.array([-2.0, -2.0, -5.0, -5.0])}
    monkeypatch.setattr(kl_from_start, "scores", lambda source, *_: scored[source])
    monkeypatch.setattr(
        kl_from_start.loading, "load_tokenizer", lambda _: models.load_tokenizer("tiny")
    )
    kl_from_start.main([str(workdir), "--start=b", "--template=plain", "srpo=a"])
    assert "| srpo | 1.00 ± " in capsys.readouterr().out
