"""The inspector says what the model will see, and what is left out."""

import json

import pytest

from srpo_jax import config as config_module
from srpo_jax.inspect import inspect
from srpo_jax.runtime.errors import UserError


@pytest.fixture
def config(tmp_path):
    rows = [
        {"prompt": "A kingfisher dives.", "chosen": "A bird.", "rejected": "A stone.\n"},
        {"prompt": "x" * 3000, "chosen": "Long.", "rejected": "Too long."},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_module.default()
    config.model.source = "tiny"
    config.data.update({"pairs": str(path), "template": "plain", "overlong": "drop"})
    return config


def test_the_first_pair_is_shown_with_its_scores(config):
    text = "\n".join(inspect(config_module.checked(config), first=1))
    assert "2 pairs; srpo scores w, l, w|l, l|l, w|w, l|w under the template 'plain'" in text
    assert "node 0, positions 0-" in text
    assert "'A kingfisher dives.\\n\\nSummary of this text" in text
    assert "score w|l: 8 tokens 'A bird.<|im_end|>'" in text
    assert "pair at line 2" not in text
    padded = "completions with white space around them, which is not learned"
    assert f"{padded}: 1" in text
    assert "1 pairs longer than the model's 2048 positions (config.data.overlong='drop')" in text
    assert "% of the tokens of separate sequences" in text


def test_what_the_objective_does_not_read_is_not_counted(config):
    config.objective.name = "sft"
    text = "\n".join(inspect(config_module.checked(config), first=0))
    assert "sft scores w under" in text
    assert "white space" not in text


def test_nothing_that_fits_is_said(config):
    config.data.row_length = 8
    with pytest.raises(UserError, match="none of 2 pairs fits"):
        list(inspect(config_module.checked(config), first=0))


def test_refused_pairs_are_named_or_counted(config, tmp_path):
    rows = [{"prompt": f"x{mark}", "chosen": "y", "rejected": "z"} for mark in ("", "\U0010ff00")]
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config.data.update({"pairs": str(path), "template": "chat"})
    said = "marked.jsonl:2: a message holds a private-use"
    with pytest.raises(UserError, match=said):
        list(inspect(config_module.checked(config), first=0))
    config.data.refused = "drop"
    text = "\n".join(inspect(config_module.checked(config), first=0))
    assert f"1 pairs refused (config.data.refused='drop'), the first: {path}:2: a message" in text
