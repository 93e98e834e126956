"""The optimiser's pieces against Optax's and numbers worked out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.training.optimizer import (
    OptimizerSettings,
    clip_by_global_norm,
    learning_rate,
    make_optimizer,
    report_schedule,
)


@pytest.fixture
def gradient():
    """Two arrays, of norm 64 and more."""
    keys = jax.random.split(jax.random.key(0))
    return {"a": jax.random.normal(keys[0], (64, 64)), "b": jax.random.normal(keys[1], (7,))}


@jax.jit
def clipped(gradient, largest):
    return clip_by_global_norm(largest).update(gradient, optax.EmptyState())[0]


@jax.jit
def optax_clipped(gradient, largest):
    return optax.clip_by_global_norm(largest).update(gradient, optax.EmptyState())[0]


@pytest.mark.parametrize("largest", [1.0, 0.3, 1000.0])
def test_a_float32_gradient_is_clipped_as_optax_does_to_the_bit(gradient, largest):
    jax.tree.map(
        np.testing.assert_array_equal, clipped(gradient, largest), optax_clipped(gradient, largest)
    )


def test_a_bfloat16_gradient_is_clipped_to_its_norm_but_for_its_own_rounding(gradient):
    """Divided by a norm of two to three digits, then times 0.3 of as many, all of it was off one way."""
    gradient = jax.tree.map(lambda x: x.astype(jnp.bfloat16), gradient)
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), gradient)
    norm = np.sqrt(sum((x**2).sum() for x in wide.values()))
    found = clipped(gradient, 0.3)
    for name, x in wide.items():
        assert found[name].dtype == jnp.bfloat16
        # The nearest bfloat16 is at most 2^-8 away.
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), 0.3 * x / norm, rtol=2**-8, atol=1e-30
        )


def test_wsd_without_decay_steps_is_refused():
    with pytest.raises(UserError, match=r"schedule=wsd .*decay_steps, which are 0"):
        make_optimizer(OptimizerSettings(schedule="wsd"), 100)


def test_a_warm_up_that_outlasts_the_run_is_told_with_the_rate_at_its_end(capsys):
    settings = OptimizerSettings(learning_rate=0.01, warmup_steps=9)
    report_schedule(settings, 4)
    last = float(learning_rate(settings, 4)(3))
    assert last == pytest.approx(0.004, rel=1e-6)
    assert "of the 4 updates of the run: the learning rate ends at 0.004" in capsys.readouterr().out
    assert float(learning_rate(settings, 10)(9)) == pytest.approx(0.01, rel=1e-6)
    report_schedule(settings, 10)
    assert not capsys.readouterr().out


def test_a_decay_that_the_schedule_does_not_read_is_told(capsys):
    report_schedule(OptimizerSettings(decay_steps=20), 100)
    assert "config.optimizer.decay_steps=20 is not read" in capsys.readouterr().out
    report_schedule(OptimizerSettings(schedule="wsd", decay_steps=20), 100)
    assert not capsys.readouterr().out
