"""What is said of a run, and when."""

from types import SimpleNamespace

import numpy as np
import pytest

from srpo_jax.training import diagnosis


def pairs(advantages, label_prob=1.0):
    """Copies of the rejected draft have these advantages, those of the chosen one 100 nats less."""
    none, copies = np.zeros(len(advantages)), np.array(advantages, float)
    reference = {"w|l": none, "l|l": copies, "l|w": none, "w|w": copies - 100}
    return SimpleNamespace(reference=reference, label_prob=np.full(len(advantages), label_prob))


def test_the_copy_advantage_is_set_against_what_the_label_can_do(capsys):
    data = pairs([1, 2, 3, 4, 30])
    found = diagnosis.report_copying(data, {"beta": 0.1}, data.reference)
    assert found == {
        "copy_advantage": 3.0,
        "copy_advantage_low": 2.0,
        "copy_advantage_high": 4.0,
        "beyond_copy": 0.8,  # (1 - 1/2) / 0.1 = 5
    }
    said = capsys.readouterr().out
    assert "3.0 nats (median; quartiles 2.0 and 4.0)" in said
    assert "in 80% of the pairs" in said
    assert "warning" not in said


def test_it_warns_where_revisions_will_be_copies(capsys):
    data = pairs([1, 2, 3, 4, 30], label_prob=0.75)
    found = diagnosis.report_copying(data, {"beta": 0.1}, data.reference)
    assert found["beyond_copy"] == pytest.approx(0.4)  # .25 / .1 = 2.5
    assert "warning: that is less than 60%" in capsys.readouterr().out


def test_of_a_label_below_one_half_the_chosen_draft_is_the_one_not_to_copy(capsys):
    """It was told that its label outweighs nothing, and to lower beta."""
    data = pairs([101, 102, 103, 104, 130], label_prob=0.0)
    data.label_prob[4] = 1.0
    found = diagnosis.report_copying(data, {"beta": 0.1}, data.reference)
    assert found["copy_advantage"] == 3.0
    assert found["beyond_copy"] == 0.8
    assert "warning" not in capsys.readouterr().out


def test_objectives_that_show_no_draft_have_nothing_to_say(capsys):
    data = SimpleNamespace(reference={"w": np.zeros(2), "l": np.zeros(2)}, label_prob=np.ones(2))
    assert diagnosis.report_copying(data, {"beta": 0.1}, data.reference) == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([0, -1, -2, -3], True),
        ([5, 0, -1, -2, -3], True),
        ([0, -1, -2], False),  # two falls
        ([0, -1, -0.5, -3], False),  # not in a row
        ([0, -0.1, -0.2, -0.3], False),  # less than a nat
        ([0, -1, -2, float("nan")], False),
    ],
)
def test_a_level_falls_when_it_does_so_steadily(levels, expected):
    assert diagnosis.falling(levels) == expected


def test_displacement_is_said_once(capsys):
    levels = [0.0, 0.5, 0.1, -0.6, -2.0, -4.0, -6.0, -5.0]
    history = [{"held_out/log_ratio_chosen": level} for level in levels]
    said = []
    for end in range(1, len(history) + 1):
        diagnosis.report_displacement(history[:end], "held_out/")
        said.append(capsys.readouterr().out)
    assert [bool(text) for text in said] == [False] * 4 + [True] + [False] * 3
    assert "log_ratio_chosen of the held-out pairs has fallen at 3 evaluations" in said[4]
    assert "to -2.0 nats" in said[4]
