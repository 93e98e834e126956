"""The train step: scores -> objective -> gradient -> AdamW, one jitted, donated, sharded program."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from srpo_jax import scoring
from srpo_jax.errors import UserError
from srpo_jax.objectives import Objective
from srpo_jax.prefix_tree import Rows
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
Batch = dict[str, Any]


class TrainState(NamedTuple):
    """What a step changes: the trained parameters and the optimiser's state."""

    model: nnx.State
    optimizer: Any


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
    """True for what weight decay pulls to zero: everything but the norms' scales."""
    flat = nnx.to_flat_state(state)
    return nnx.from_flat_state([(path, v.replace(path[-1] != "scale")) for path, v in flat])


@dataclasses.dataclass(frozen=True)
class Steps:
    """The jitted programs of one run; see `make`."""

    init: Callable[[nnx.State], Any]
    train: Callable[[TrainState, nnx.State, Batch], tuple[TrainState, dict[str, Array]]]
    reference: Callable[[nnx.State, nnx.State, Rows], tuple[dict[str, Array], Array]]


def make(
    graphdef: nnx.GraphDef,
    trained: nnx.State,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    hyper: Mapping[str, Any],
    mesh: Mesh,
    *,
    accumulate: int = 1,
) -> Steps:
    """The programs for a model split into (graphdef, trained, frozen).

    init(trained) -> the optimiser's state, laid out like the parameters it belongs to.
    train(state, frozen, batch) -> (state, metrics): one update; `state` is donated. The batch (see
        data.pipeline.batches) is computed in `accumulate` parts of its rows, whose gradients are added
        up. The loss is the mean over the batch's pairs. Metrics are float32 scalars: means over the pairs
        of the objective's, and grad_norm (before clipping).
    reference(trained, frozen, rows) -> ({score: float32 [B * P]} of the reference policy, pair [B * P]), on
        every process.
    """
    parameters = mesh_module.parameter_shardings(mesh, trained)
    replicated = mesh_module.replicated(mesh)
    abstract = jax.eval_shape(optimizer.init, trained)
    optimizer_shardings = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract,
        parameters,
        transform_non_params=lambda _: replicated,
    )
    state_shardings = TrainState(parameters, optimizer_shardings)

    on_mesh = functools.partial(jax.sharding.use_abstract_mesh, mesh.abstract_mesh)

    def loss(
        model: nnx.State, frozen: nnx.State, batch: Batch, pairs: Array
    ) -> tuple[Array, dict[str, Array]]:
        policy = nnx.merge(graphdef, model, frozen)
        scores = scoring.score(policy, batch["rows"], objective.needs)
        given = jax.tree.map(lambda x: x.reshape(-1), batch)  # [B, P] -> [B * P], as the scores
        losses, metrics = objective(
            scores, given["reference"], given["label_prob"], lengths=given["lengths"], **hyper
        )
        there = given["rows"].pair >= 0
        mean = lambda values: jnp.sum(jnp.where(there, values, 0.0)) / pairs
        return mean(losses), jax.tree.map(mean, metrics)

    def gradient(model: nnx.State, frozen: nnx.State, batch: Batch) -> tuple[nnx.State, dict]:
        part = jax.grad(loss, has_aux=True)
        pairs = jnp.sum(batch["rows"].pair >= 0)
        if accumulate == 1:
            return part(model, frozen, batch, pairs)
        # Part i takes every accumulate-th row, so each part keeps the batch's own sharding.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        shapes = jax.eval_shape(part, model, frozen, jax.tree.map(lambda x: x[0], parts), pairs)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

        def add(total, piece):
            return jax.tree.map(jnp.add, total, part(model, frozen, piece, pairs)), None

        return jax.lax.scan(add, zeros, parts)[0]

    def train(
        state: TrainState, frozen: nnx.State, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        with on_mesh():
            gradients, metrics = gradient(state.model, frozen, batch)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.model)
        return TrainState(optax.apply_updates(state.model, updates), optimizer_state), metrics

    def reference(
        model: nnx.State, frozen: nnx.State, rows: Rows
    ) -> tuple[dict[str, Array], Array]:
        policy = nnx.merge(graphdef, model, frozen)
        with on_mesh():
            scores = scoring.score(policy, rows, objective.needs, adapter=False)
        return scores, rows.pair.reshape(-1)

    return Steps(
        init=jax.jit(optimizer.init, out_shardings=optimizer_shardings),
        train=jax.jit(train, donate_argnums=0, out_shardings=(state_shardings, replicated)),
        reference=jax.jit(reference, out_shardings=replicated),
    )
