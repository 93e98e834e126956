"""What later attempts at a run go on with."""

import json

import pytest

from srpo_jax.config import Settings, attempt
from srpo_jax.config.workdir import claim
from srpo_jax.runtime.errors import UserError
from srpo_jax.trees.order import EARLIER, RULE


def test_a_run_keeps_the_order_that_it_was_begun_with(tmp_path):
    assert attempt.rule_of(tmp_path) == RULE
    for _ in range(2):
        claim(tmp_path, Settings(), attempt.identity_of(tmp_path, "tiny", data="a"), ())
        assert attempt.rule_of(tmp_path) == RULE


def test_a_run_of_an_earlier_version_goes_on_in_its_order(tmp_path):
    claim(tmp_path, Settings(), {"data": "a"}, ())
    for _ in range(2):
        assert attempt.rule_of(tmp_path) == EARLIER
        claim(tmp_path, Settings(), attempt.identity_of(tmp_path, "tiny", data="a"), ())


def test_a_run_of_a_later_version_is_refused(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"data": "a", "order": "3"}))
    with pytest.raises(UserError, match=r"by a later version, .* another order \(order 3 in"):
        attempt.rule_of(tmp_path)


def test_a_run_that_has_lost_its_run_json_is_taken_as_it_is(tmp_path, capsys):
    (tmp_path / "checkpoints").mkdir()
    claim(tmp_path, Settings(), {"data": "a"}, ())
    assert "run.json is missing: pairs and their order now are taken" in capsys.readouterr().out
