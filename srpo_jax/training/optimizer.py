"""AdamW on the clipped gradient, and its learning rate by step."""

import optax
from flax import nnx
from ml_collections import ConfigDict

from srpo_jax.models.architecture import VECTORS
from srpo_jax.runtime.errors import UserError


def make_optimizer(config: ConfigDict) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW on the clipped gradient, and its learning rate by step (warm-up, then the schedule)."""
    settings, steps = config.optimizer, config.train.steps
    rate, warmup = settings.learning_rate, settings.warmup_steps
    if settings.schedule == "cosine":
        after: optax.Schedule = optax.cosine_decay_schedule(rate, max(1, steps - warmup))
    elif settings.schedule == "constant":
        after = optax.constant_schedule(rate)
    else:
        raise UserError(
            f"config.optimizer.schedule={settings.schedule!r} is not 'cosine' or 'constant'"
        )
    # The first step already moves: warm-up ends at step `warmup` and begins above zero.
    before = optax.linear_schedule(rate / (warmup + 1), rate, warmup)
    schedule = optax.join_schedules([before, after], [warmup])
    transform = optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            schedule,
            b1=settings.b1,
            b2=settings.b2,
            weight_decay=settings.weight_decay,
            mask=_decayed,
        ),
    )
    return transform, schedule


def _decayed(state: nnx.State) -> nnx.State:
    """True for what weight decay pulls to zero: everything but norms and biases."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, v.replace(path[-1] not in VECTORS)) for path, v in flat])
