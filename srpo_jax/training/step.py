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

from srpo_jax.objectives import Objective
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import scoring
from srpo_jax.trees.prefix_tree import Rows

Array = jax.Array
Batch = dict[str, Any]


class TrainState(NamedTuple):
    """What a step changes: the trained parameters and the optimiser's state."""

    model: nnx.State
    optimizer: Any


class Master(NamedTuple):
    """The optimiser's state for bfloat16 parameters: float32 weights, in which small steps add up."""

    weights: nnx.State
    inner: Any


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
    master: bool = True,
    seed: int = 0,
) -> Steps:
    """The programs for a model split into (graphdef, trained, frozen).

    init(trained) -> the optimiser's state, laid out like the parameters it belongs to.
    train(state, frozen, batch) -> (state, metrics): one update; `state` is donated. The batch (see
        data.pipeline.batches) is computed in `accumulate` parts of its rows, whose gradients are added
        up. The loss is the mean over the batch's pairs. Metrics are float32 scalars: means over the pairs
        of the objective's, and grad_norm (before clipping).
    reference(trained, frozen, rows) -> ({score: float32 [B * P]} of the reference policy, pair [B * P]), on
        every process.

    master: keep a float32 copy of bfloat16 parameters with the optimiser. seed: of the adapters' dropout,
    which is drawn anew at each step.
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
    master = master and any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(trained))
    if master:
        optimizer_shardings = Master(parameters, optimizer_shardings)
    state_shardings = TrainState(parameters, optimizer_shardings)

    on_mesh = functools.partial(jax.sharding.use_abstract_mesh, mesh.abstract_mesh)

    def loss(
        model: nnx.State, frozen: nnx.State, batch: Batch, pairs: Array, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        policy = nnx.merge(graphdef, model, frozen)
        scores = scoring.score(policy, batch["rows"], objective.needs, dropout=key)
        given = jax.tree.map(lambda x: x.reshape(-1), batch)  # [B, P] -> [B * P], as the scores
        losses, metrics = objective(
            scores, given["reference"], given["label_prob"], lengths=given["lengths"], **hyper
        )
        there = given["rows"].pair >= 0
        mean = lambda values: jnp.sum(jnp.where(there, values, 0.0)) / pairs
        return mean(losses), jax.tree.map(mean, metrics)

    def gradient(
        model: nnx.State, frozen: nnx.State, batch: Batch, key: Array
    ) -> tuple[nnx.State, dict]:
        part = jax.grad(loss, has_aux=True)
        pairs = jnp.sum(batch["rows"].pair >= 0)
        if accumulate == 1:
            return part(model, frozen, batch, pairs, key)
        # Part i takes every accumulate-th row, so each part keeps the batch's own sharding.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )
        keys = jax.random.split(key, accumulate)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(part, model, frozen, first, pairs, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)

        def add(total, inputs):
            return jax.tree.map(
                jnp.add, total, part(model, frozen, inputs[0], pairs, inputs[1])
            ), None

        total, _ = jax.lax.scan(add, zeros, (parts, keys))
        return jax.tree.map(lambda x, s: x.astype(s.dtype), total, shapes)

    def init(model: nnx.State) -> Any:
        if not master:
            return optimizer.init(model)
        weights = _wide(model)
        return Master(weights, optimizer.init(weights))

    def updated(state: TrainState, gradients: nnx.State) -> TrainState:
        if not master:
            updates, inner = optimizer.update(gradients, state.optimizer, state.model)
            return TrainState(optax.apply_updates(state.model, updates), inner)
        weights, inner = state.optimizer
        updates, inner = optimizer.update(_wide(gradients), inner, weights)
        weights = optax.apply_updates(weights, updates)
        model = jax.tree.map(lambda old, new: new.astype(old.dtype), state.model, weights)
        return TrainState(model, Master(weights, inner))

    def train(
        state: TrainState, frozen: nnx.State, batch: Batch
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), _count(state.optimizer))
        with on_mesh():
            gradients, metrics = gradient(state.model, frozen, batch, key)
        metrics["grad_norm"] = optax.tree.norm(_wide(gradients))
        return updated(state, gradients), metrics

    def reference(
        model: nnx.State, frozen: nnx.State, rows: Rows
    ) -> tuple[dict[str, Array], Array]:
        policy = nnx.merge(graphdef, model, frozen)
        with on_mesh():
            scores = scoring.score(policy, rows, objective.needs, adapter=False)
        return scores, rows.pair.reshape(-1)

    return Steps(
        init=jax.jit(init, out_shardings=optimizer_shardings),
        train=jax.jit(train, donate_argnums=0, out_shardings=(state_shardings, replicated)),
        reference=jax.jit(reference, out_shardings=replicated),
    )


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _count(optimizer_state: Any) -> Array:
    """How many updates there have been; every part of the optimiser that counts says the same."""
    return optax.tree.get_all_with_path(optimizer_state, "count")[0][1]
