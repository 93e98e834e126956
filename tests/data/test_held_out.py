"""Which pairs are held out: by prompt, and by nothing else."""

import random

import pytest

from srpo_jax.data.held_out import shared_prompts, split_off
from srpo_jax.data.records import Message, Pair

PAIRS = [Pair(f"{i // 2}?", f"yes {i}", "no", line=i) for i in range(40)]


@pytest.mark.parametrize("count", [0, 1, 6, 7, 40, 99])
def test_a_prompt_is_on_one_side_and_nothing_is_lost(count):
    others, held = split_off(PAIRS, count)
    assert not {pair.prompt for pair in others} & {pair.prompt for pair in held}
    assert sorted(others + held, key=lambda pair: pair.line) == PAIRS
    assert others == sorted(others, key=lambda pair: pair.line)
    assert len(held) == min(count + count % 2, 40)  # two pairs a prompt


def test_the_choice_depends_on_the_prompts_alone():
    """In another order, with other answers, beside other pairs."""
    _, held = split_off(PAIRS, 8)
    moved = [Pair(pair.prompt, "maybe", "never") for pair in PAIRS]
    random.Random(0).shuffle(moved)
    _, again = split_off(moved, 8)
    assert {pair.prompt for pair in again} == {pair.prompt for pair in held}
    fewer = [pair for pair in PAIRS if pair in held or pair.line % 4 < 2]
    assert split_off(fewer, 8)[1] == held


def test_space_around_a_prompt_is_no_part_of_it():
    """The renderer takes it off as well."""
    others = [Pair("1?", "a", "b"), Pair("2?", "a", "b")]
    asked = [
        Pair(" 1?\n", "c", "d"),
        Pair("3?", "c", "d"),
        Pair((Message("user", "2?"),), "c", "d"),
    ]
    assert shared_prompts(asked, others) == 2
