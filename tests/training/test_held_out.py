"""Which pairs of a configuration are held out, and what is refused."""

import pytest

from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.held_out import read_pairs
from srpo_jax.training.settings import DataSettings


def written(path, first, count):
    records.write_pairs(path, [Pair(f"{i}?", "yes", "no") for i in range(first, first + count)])
    return str(path)


@pytest.fixture
def pairs(tmp_path):
    return written(tmp_path / "pairs.jsonl", 0, 12)


def read(evaluated=True, **settings):
    return read_pairs(DataSettings(**settings), rejected=True, evaluated=evaluated)


def test_pairs_that_are_split_off_are_not_trained_on_evaluated_or_not(pairs):
    training, held = read(pairs=pairs, held_out_count=5)
    assert (len(training), len(held)) == (7, 5)
    assert not {pair.prompt for pair in training} & {pair.prompt for pair in held}
    assert read(evaluated=False, pairs=pairs, held_out_count=5)[0] == training


def test_held_out_pairs_may_be_elsewhere(pairs, tmp_path):
    elsewhere = written(tmp_path / "others.jsonl", 20, 6)
    training, held = read(pairs=pairs, held_out=elsewhere)
    assert (len(training), len(held)) == (12, 6)
    assert len(read(pairs=pairs, held_out=elsewhere, held_out_count=4)[1]) == 4
    assert read(evaluated=False, pairs=pairs, held_out="not read")[1] == []


def test_another_split_of_the_same_source(tmp_path):
    datasets = pytest.importorskip("datasets")
    split = lambda first: datasets.Dataset.from_list(
        [{"prompt": f"{i}?", "chosen": "yes", "rejected": "no"} for i in range(first, first + 3)]
    )
    datasets.DatasetDict(train=split(0), test=split(5)).save_to_disk(str(tmp_path / "both"))
    training, held = read(pairs=str(tmp_path / "both"), held_out_split="test")
    assert [pair.prompt for pair in training] == ["0?", "1?", "2?"]
    assert [pair.prompt for pair in held] == ["5?", "6?", "7?"]


def test_a_prompt_on_both_sides_is_told(pairs, tmp_path, capsys):
    elsewhere = written(tmp_path / "others.jsonl", 10, 6)
    read(pairs=pairs, held_out=elsewhere)
    said = capsys.readouterr().out
    assert "warning: 2 of 6 held-out pairs have a prompt that is trained on" in said


def test_what_cannot_be_evaluated_is_refused(pairs, tmp_path):
    with pytest.raises(UserError, match=r"config\.data\.held_out, or set .*held_out_count"):
        read(pairs=pairs)
    with pytest.raises(UserError, match=r"held_out_count=12 leaves none of the 12 pairs"):
        read(pairs=pairs, held_out_count=12)
    with pytest.raises(UserError, match="the prompts of all 12 held-out pairs are trained on"):
        read(pairs=pairs, held_out_split="test")  # a file has no splits
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=r"empty\.jsonl holds no pairs"):
        read(pairs=pairs, held_out=str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match="no pairs at not there"):
        read(pairs=pairs, held_out="not there")
