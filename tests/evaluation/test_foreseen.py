"""What judging would cost, said before anything is written."""

import dataclasses
import json

import pytest

from srpo_jax import config as config_module
from srpo_jax import judges
from srpo_jax.evaluation import foreseen, judging
from srpo_jax.evaluation.contestants import contestants


@pytest.fixture
def settings(tmp_path):
    """Two models, of which one is not there, on three documents, and a judge that is paid for."""
    lines = [
        {"id": str(i), "prompt": "words " * n, "gold": "g"} for i, n in enumerate((9, 99, 9, 9))
    ]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = config_module.default()
    config.data.template = "plain"
    config.evaluate.update(
        {"documents": (str(tmp_path / "mine.jsonl"),), "count": 3, "revisions": 2}
    )
    config.evaluate.models = ("later=nowhere", "start=tiny")
    config.sampling.max_new_tokens = 10
    config.judge.update({"name": "llm", "model": "m", "prompt_price": 1e6})
    return config_module.checked(config)


def test_documents_alone_say_the_most_that_judging_can_cost(settings, tmp_path, capsys):
    """It said "write first", to who wanted to know before any model wrote."""
    who = contestants(settings.evaluate, {})
    chosen, written = foreseen.texts(settings, tmp_path / "run", who)
    assert chosen[0].ids == ("0", "2", "3")  # the tokenizer that is there finds one too long
    assert {len(text) for one in written for ys in one.revisions for text in ys} == {40}
    found = judging.matches(chosen, written, who.opponents(settings.evaluate))
    asked = judges.load_all(settings.judge, tmp_path, ask=False)
    (cost,) = judging.estimates(asked, found, settings.evaluate)
    assert cost.requests == 2 * 2 * 3 * 3  # orders, models, documents, completions of each
    assert cost.price == cost.prompt_tokens > cost.requests * 40 / 4
    said = capsys.readouterr().out
    assert "chosen without the model 'later': " in said
    assert "not all written yet: later on mine, start on mine. " in said
    assert not (tmp_path / "run").exists()


def test_outputs_of_others_are_read_where_they_lie(settings, tmp_path):
    lines = [{"id": i, "revisions": ["a", "a", "b"]} for i in "0123"]
    (tmp_path / "gpt.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = (f"gpt={tmp_path / 'gpt.jsonl'}",)
    own = dataclasses.replace(settings.evaluate, models=(), outputs=given)
    settings = dataclasses.replace(settings, evaluate=own)
    _, (written,) = foreseen.texts(settings, tmp_path / "run", contestants(own, {}))
    assert written.revisions == (("a", "a", "b"),) * 3
