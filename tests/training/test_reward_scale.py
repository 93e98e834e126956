"""Which completions a reward model's zero and unit are those of, and when they are measured."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from srpo_jax.models.reward import RewardScale
from srpo_jax.training import reward_scale


class Pairs(SimpleNamespace):
    def __len__(self):
        return len(self.label_prob)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """act(labels, chosen, rejected, **done) -> the scale then written, or None."""

    def act(label_prob, chosen, rejected, *, last=True, finite=True):
        found = {"w_end": np.float32(chosen), "l_end": np.float32(rejected)}
        monkeypatch.setattr(reward_scale, "score_all", lambda *given: found)
        data = Pairs(label_prob=np.float32(label_prob))
        hook = reward_scale.hook(tmp_path, 7, data, None, None, None)
        state = SimpleNamespace(model=None)
        hook.act(SimpleNamespace(number=7, last=last, finite=finite, state=state))
        return RewardScale.read(tmp_path)

    return act


def test_it_is_of_what_the_pairs_prefer_whichever_side_that_is(measured):
    """Of a label below 1/2 the rejected completion is the better one, of 1/2 the chosen one is taken."""
    scale = measured([1.0, 0.2, 0.5, 0.0], [3.0, -9.0, 5.0, -9.0], [-9.0, 1.0, -9.0, 7.0])
    assert scale == RewardScale(4.0, pytest.approx(np.std([3, 1, 5, 7])), 4, checkpoint=7)


def test_the_first_pairs_are_enough(measured, monkeypatch):
    monkeypatch.setattr(reward_scale, "COMPLETIONS", 2)
    scale = measured([1.0, 1.0, 1.0], [1.0, 3.0, 99.0], [0.0, 0.0, 0.0])
    assert dataclasses.astuple(scale) == (2.0, 1.0, 2, 7)


@pytest.mark.parametrize("done", [{"last": False}, {"finite": False}])
def test_a_run_that_is_not_at_its_end_measures_nothing(measured, done):
    assert measured([1.0], [1.0], [0.0], **done) is None
