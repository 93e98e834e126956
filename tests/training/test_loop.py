"""The loop over steps: which hooks act when, and what is drawn from the data."""

import time
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

    def train(state, batch, finite):
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
        hooks=[Hook(act, every, state=True)],
        stop=stop,
        save=lambda done: saved.append(done.number),
        due=lambda number: True,
    )
    assert saved == list(range(numbers[0], ended + 1))
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
    assert drawn == [1, 2, 3]


def plain(numbers, finite_until=99, due=lambda number: False, hooks=(), seconds=lambda number: 0):
    """(what happened in which order, what a hook of each step saw); a state is the last step's number.

    seconds: for which a batch is waited for.
    """
    happened, seen = [], []

    class Number(float):
        def __float__(self):
            happened.append(f"read {int(self)}")
            return float.__float__(self)

    def train(state, batch, finite):
        assert (finite == "at first") == (batch["number"] == numbers[0])
        happened.append(f"take {batch['number']}")
        good = bool(finite) and batch["number"] < finite_until
        return batch["number"] if good else state, {
            "loss": Number(batch["number"]),
            "finite": np.float32(good),
        }

    rows = types.SimpleNamespace(end=np.ones(3), tokens=np.ones(4))

    def batches():
        for number in numbers:
            time.sleep(seconds(number))
            yield {"rows": rows, "number": number}

    ended = loop(
        train,
        0,
        batches(),
        numbers,
        place=lambda x: x,
        hooks=[Hook(seen.append), *hooks],
        stop=lambda number: False,
        save=lambda done: happened.append(f"save {done.state}"),
        due=due,
        finite="at first",
    )
    assert ended == numbers[-1]
    return happened, seen


def test_a_step_is_dispatched_before_the_numbers_of_the_last_are_read():
    happened, seen = plain(range(1, 5))
    assert happened == [
        *("take 1", "take 2", "read 1", "take 3", "read 2", "take 4", "read 3", "read 4", "save 4")
    ]
    assert [done.number for done in seen] == [1, 2, 3, 4]
    assert [done.state for done in seen] == [None, None, None, 4]
    assert all(done.seconds > 0 for done in seen)


def test_the_step_behind_a_checkpoint_waits_for_it():
    happened, _ = plain(range(1, 4), due=lambda number: number == 2)
    assert happened == [
        *("take 1", "take 2", "read 1", "read 2", "save 2", "take 3", "read 3", "save 3")
    ]


def test_the_step_behind_a_hook_that_reads_the_state_waits_for_it():
    states = []
    plain(range(1, 6), hooks=[Hook(lambda done: states.append(done.state), 2, state=True)])
    assert states == [2, 4, 5]


@pytest.mark.parametrize("every", [1, 2, 9])
def test_what_a_step_waited_for_a_batch_is_a_part_of_its_seconds(every):
    """The wait for batch 4 was told of step 4, in whose own seconds it had not been."""
    slow = {4: 0.05, 7: 0.02}
    _, seen = plain(
        range(1, 9), due=lambda number: number % every == 0, seconds=lambda n: slow.get(n, 0)
    )
    assert all(0 <= done.waited <= done.seconds for done in seen)
    assert sum(done.waited for done in seen) >= sum(slow.values())


def test_behind_a_step_that_is_not_finite_stands_the_state_before_it():
    def end(done):
        if not done.finite:
            raise UserError(f"step {done.number} on {done.state}")

    with pytest.raises(UserError, match="step 3 on 2"):
        plain(range(1, 9), finite_until=3, hooks=[Hook(end, 4)])


def test_a_loss_that_is_no_number_ends_the_run_and_names_what_is_kept():
    saved = []
    kept = types.SimpleNamespace(
        wait=lambda: None,
        latest=lambda: saved[-1][0],
        save=lambda step, state, force: saved.append((step, state)),
    )
    act = hooks.require_finite(kept, lambda: saved.append("reference scores"))

    def done(loss):
        good = np.isfinite(loss)
        metrics = {"loss": loss, "grad_norm": 1.0}
        return types.SimpleNamespace(metrics=metrics, finite=good, number=6, state="state")

    act(done(0.5))
    with pytest.raises(UserError, match="loss is nan at step 6; the checkpoint of step 5 is kept"):
        act(done(float("nan")))
    assert saved == ["reference scores", (5, "state")]
