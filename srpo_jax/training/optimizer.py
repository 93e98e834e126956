"""AdamW on the clipped gradient, and its learning rate by step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from srpo_jax.models.architecture import VECTORS
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.settings import FRACTION, POSITIVE, at_least, check, one_of, setting


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and its learning rate."""

    learning_rate: float = setting(1e-4, "the largest, after warm-up", at_least(0))
    warmup_steps: int = setting(10, "steps in which the learning rate grows", at_least(0))
    schedule: str = setting(
        "cosine",
        "of the learning rate after warm-up: cosine to zero; constant; or wsd, constant and in the last "
        "decay_steps linear to zero",
        one_of("cosine", "constant", "wsd"),
    )
    decay_steps: int = setting(0, "of schedule wsd, which needs them", at_least(0))
    weight_decay: float = setting(0.0, "of matrices; norms and biases have none", at_least(0))
    b1: float = setting(0.9, "decay of the mean of gradients", FRACTION)
    b2: float = setting(0.99, "decay of the mean of squared gradients", FRACTION)
    epsilon: float | None = setting(
        None, "of Adam's denominator; None: 1e-8, and 1e-5 for train_online", POSITIVE
    )
    master: bool = setting(
        True, "for bfloat16 parameters, a float32 copy that small steps add up in"
    )
    clip_norm: float = setting(1.0, "largest norm of the whole gradient", POSITIVE)

    def __post_init__(self) -> None:
        check(self, "config.optimizer")


def make_optimizer(
    settings: OptimizerSettings, steps: int, epsilon: float = 1e-8
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW on the clipped gradient, and its learning rate by step: `learning_rate`.

    steps: of the whole run. epsilon: where the settings leave it open. Raises UserError for wsd without
    decay, and as `learning_rate`.
    """
    if settings.schedule == "wsd" and settings.decay_steps == 0:
        raise UserError(
            "config.optimizer.schedule=wsd falls in its last config.optimizer.decay_steps, which are 0: "
            "set them, or take schedule=constant, whose end may be a decay later"
        )
    schedule = learning_rate(settings, steps)
    transform = optax.chain(
        clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.epsilon or epsilon,
            weight_decay=settings.weight_decay,
            mask=_decayed,
        ),
    )
    return transform, schedule


def report_schedule(settings: OptimizerSettings, steps: int) -> None:
    """Says where the learning rate never comes to what is asked for, and what is not read of the settings.

    steps: of the whole run.
    """
    rate, warmup = settings.learning_rate, settings.warmup_steps
    if steps <= warmup:
        status(
            f"warning: config.optimizer.warmup_steps={warmup} leave nothing of the {steps} updates of the "
            f"run: the learning rate ends at {rate * steps / (warmup + 1):.3g}, below "
            f"config.optimizer.learning_rate={rate:g}"
        )
    if settings.decay_steps and settings.schedule != "wsd":
        status(
            f"config.optimizer.decay_steps={settings.decay_steps} is not read: it is of schedule=wsd, and "
            f"config.optimizer.schedule={settings.schedule}"
        )


def learning_rate(settings: OptimizerSettings, steps: int) -> optax.Schedule:
    """By step: warm-up, then the schedule.

    steps: of the whole run, at whose end cosine and wsd are zero. Raises UserError for wsd whose decay is
    longer than what warm-up leaves.
    """
    rate, warmup = settings.learning_rate, settings.warmup_steps
    after = {
        "cosine": lambda: optax.cosine_decay_schedule(rate, max(1, steps - warmup)),
        "constant": lambda: optax.constant_schedule(rate),
        "wsd": lambda: _stable_then_down(rate, steps - warmup, settings.decay_steps),
    }[settings.schedule]()
    # The first step already moves: warm-up ends at step `warmup` and begins above zero.
    before = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
    return optax.join_schedules([before, after], [warmup])


def clip_by_global_norm(largest: float) -> optax.GradientTransformation:
    """The gradient, made shorter where its norm is above `largest`: in its own dtype, computed in float32.

    Optax's adds up the squares, and scales, in the gradient's dtype: bfloat16 has two to three digits.
    """

    def clipped(updates: optax.Updates, _: optax.Params | None) -> optax.Updates:
        wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), updates)
        norm = optax.tree.norm(wide)

        def scaled(own: jax.Array, x: jax.Array) -> jax.Array:
            return jnp.where(norm < largest, own, ((x / norm) * largest).astype(own.dtype))

        return jax.tree.map(scaled, updates, wide)

    return optax.stateless(clipped)


def _stable_then_down(rate: float, steps: int, decay: int) -> optax.Schedule:
    """Warm-up, stable, decay (Hu et al., arXiv:2404.06395), without the warm-up."""
    if decay > max(steps, 0):
        raise UserError(
            f"config.optimizer.decay_steps={decay} are more than the {steps} steps that warm-up leaves of "
            "config.train.steps"
        )
    down = optax.linear_schedule(rate, 0.0, max(decay, 1))
    return optax.join_schedules([optax.constant_schedule(rate), down], [steps - decay])


def _decayed(state: nnx.State[Any, Any]) -> nnx.State[Any, Any]:
    """True for what weight decay pulls to zero: everything but norms and biases."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, v.replace(path[-1] not in VECTORS)) for path, v in flat])
