"""When a run may go on for longer."""

import time

import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.training import extending
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer

ALLOWED = ("train.steps", *extending.SCHEDULE)


def settings(schedule, decay=0):
    return OptimizerSettings(
        schedule=schedule, decay_steps=decay, learning_rate=1.0, warmup_steps=2
    )


@pytest.mark.parametrize(
    ("before", "now", "taken", "same"),
    [
        (("constant", 0, 10), ("constant", 0, 20), 10, True),
        (("cosine", 0, 10), ("cosine", 0, 20), 10, False),
        (("cosine", 0, 10), ("cosine", 0, 20), 2, True),  # in warm-up still
        (("wsd", 4, 10), ("wsd", 4, 20), 6, True),
        (("wsd", 4, 10), ("wsd", 4, 20), 8, False),
        (("constant", 0, 10), ("wsd", 4, 14), 10, True),  # the decay comes later
        (("cosine", 0, 10), ("constant", 0, 20), 10, False),
    ],
)
def test_a_run_grows_if_the_steps_it_has_taken_stay_what_they_were(
    capsys, before, now, taken, same
):
    begun, goes_on = ((settings(*one[:2]), one[2]) for one in (before, now))
    if same:
        assert extending.longer(begun, goes_on, taken, asked=False) == ALLOWED
        assert f"nothing changes for the {taken} taken" in capsys.readouterr().out
    else:
        said = rf"was 10 and is 20: .*schedule={now[0]} the {taken} steps taken .* --extend goes on"
        with pytest.raises(UserError, match=said):
            extending.longer(begun, goes_on, taken, asked=False)
        assert extending.longer(begun, goes_on, taken, asked=True) == ALLOWED
        assert f"step {taken + 1} has the learning rate" in capsys.readouterr().out


@pytest.mark.parametrize("steps", [10, 5])
def test_a_run_that_does_not_grow_may_change_nothing(steps):
    one, other = settings("constant"), settings("cosine")
    assert extending.longer((one, 10), (other, steps), 5, asked=True) == ()


def test_wsd_is_constant_and_falls_at_the_end():
    schedule = make_optimizer(settings("wsd", 4), 10)[1]
    rates = [float(schedule(step)) for step in range(11)]
    assert rates == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_a_decay_that_is_too_long_is_refused():
    with pytest.raises(UserError, match=r"decay_steps=9 are more than the 8 steps"):
        make_optimizer(settings("wsd", 9), 10)
    make_optimizer(settings("cosine", 9), 10)  # has no decay


def test_a_long_run_is_compared_at_once():
    """A call for each of its steps took minutes."""
    begun, goes_on = (settings("wsd", 100), 200_000), (settings("wsd", 100), 300_000)
    began = time.perf_counter()
    assert extending.longer(begun, goes_on, 150_000, asked=False) == ALLOWED
    assert time.perf_counter() - began < 20
