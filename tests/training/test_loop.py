"""The loop over steps: which hooks act when, and what is drawn from the data."""

import types

import numpy as np
import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.training import hooks
from srpo_jax.training.loop import Hook, loop


def run(numbers, stop=lambda number: False, every=1):
    """The numbers at which a hook acted, the last step taken, batches drawn."""
    drawn, acted, saved = [], [], []

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

    ended = loop(
        train,
        [],
        batches(),
        numbers,
        place=lambda x: x,
        hooks=[Hook(act, every)],
        stop=stop,
        save=lambda done: saved.append((done.number, done.last)),
    )
    assert saved == [(number, number == ended) for number in range(numbers[0], ended + 1)]
    return acted, ended, drawn


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
    acted, ended, drawn = run(numbers, every=every)
    assert acted == expected
    assert ended == numbers[-1]
    assert drawn == list(numbers)  # none beyond the last


def test_a_run_that_is_asked_to_stop_is_saved_and_ends():
    acted, ended, drawn = run(range(1, 10), stop=lambda number: number == 3, every=2)
    assert acted == [2]
    assert ended == 3
    assert drawn == [1, 2, 3, 4]


def test_a_loss_that_is_no_number_ends_the_run_and_names_what_is_kept():
    kept = types.SimpleNamespace(wait=lambda: None, latest=lambda: 4)
    act = hooks.require_finite(kept)
    done = lambda loss: types.SimpleNamespace(metrics={"loss": loss, "grad_norm": 1.0}, number=6)
    act(done(0.5))
    with pytest.raises(UserError, match="loss is nan at step 6; the checkpoint of step 4 is kept"):
        act(done(float("nan")))
