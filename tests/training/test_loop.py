"""The loop over steps: which hooks act when, and what is drawn from the data."""

import types

import numpy as np
import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.training import hooks
from srpo_jax.training.loop import Hook, loop


def run(numbers, stop=lambda number: False, every=1):
    """The numbers at which a hook acted, what `loop` returned, the final state, batches drawn."""
    drawn, acted, last = [], [], []

    def batches():
        number = numbers[0]
        while True:
            drawn.append(number)
            yield {
                "rows": types.SimpleNamespace(end=np.ones(3), tokens=np.ones(4)),
                "number": number,
            }
            number += 1

    def train(state, batch):
        return [*state, batch["number"]], {"loss": np.float32(1 / batch["number"])}

    def act(done):
        assert done.metrics == {"loss": pytest.approx(1 / done.number)}
        assert (done.tokens, done.slots) == (3, 4)
        assert done.state == list(range(numbers[0], done.number + 1))
        acted.append(done.number)
        last.append(done.last)

    finished = loop(
        train, [], batches(), numbers, place=lambda x: x, hooks=[Hook(act, every)], stop=stop
    )
    assert last == [False] * (len(last) - 1) + [True]
    return acted, finished, drawn


@pytest.mark.parametrize(
    ("numbers", "every", "expected"),
    [
        (range(1, 6), 1, [1, 2, 3, 4, 5]),
        (range(1, 6), 2, [2, 4, 5]),
        (range(4, 8), 3, [6, 7]),
        (range(1, 2), 9, [1]),
    ],
)
def test_a_hook_acts_behind_every_nth_step_and_the_last(numbers, every, expected):
    acted, finished, drawn = run(numbers, every=every)
    assert acted == expected
    assert finished
    assert drawn == list(numbers)  # none beyond the last


def test_a_run_that_is_asked_to_stop_ends_with_its_hooks():
    acted, finished, drawn = run(range(1, 10), stop=lambda number: number == 3, every=5)
    assert acted == [3]
    assert not finished
    assert drawn == [1, 2, 3, 4]


def test_a_run_that_is_asked_to_stop_at_its_last_step_is_finished():
    assert run(range(1, 4), stop=lambda number: number == 3)[1]


def test_a_loss_that_is_no_number_ends_the_run_and_names_what_is_kept():
    kept = types.SimpleNamespace(wait=lambda: None, latest=lambda: 4)
    act = hooks.require_finite(kept)
    done = lambda loss: types.SimpleNamespace(metrics={"loss": loss, "grad_norm": 1.0}, number=6)
    act(done(0.5))
    with pytest.raises(UserError, match="loss is nan at step 6; the checkpoint of step 4 is kept"):
        act(done(float("nan")))
