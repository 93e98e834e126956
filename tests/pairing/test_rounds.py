"""What a run of rounds leaves in its workdir before the first one."""

import json
import types

import pytest

from srpo_jax.config import Settings
from srpo_jax.models import loading
from srpo_jax.pairing import rounds
from srpo_jax.trees.order import EARLIER, RULE, Order
from tests.models.test_gguf import weights, write


def test_a_run_keeps_what_says_its_model(tmp_path):
    """One that trains all weights is read without its source, as those of `train` are."""
    path = str(write(tmp_path / "model.gguf", weights()))
    source, task = loading.open_source(path), types.SimpleNamespace(prompts=[(1, 2)])
    rounds.own(Settings(), tmp_path / "run", source, path, task)
    kept = loading.open_source(str(tmp_path / "run" / loading.KEPT))
    assert kept.config == source.config
    assert json.loads((tmp_path / "run" / "run.json").read_text())["source"] == path


@pytest.mark.parametrize("rule", [EARLIER, RULE])
def test_rounds_draw_in_the_order_of_their_run(rule):
    order = Order(5, 1, rule)
    task = rounds.Task([None] * 5, order, [], None, None, "score")
    drawn = [task.drawn(number, 3) for number in range(1, 5)]
    assert [i for some in drawn for i in some] == order.take(0, 12).tolist()
