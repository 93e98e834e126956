"""The train step: scores -> objective -> gradient -> AdamW, one jitted, donated, sharded program."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models import experts
from srpo_jax.objectives import Objective
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import scoring
from srpo_jax.trees.prefix_tree import Rows

Array = jax.Array
Batch = dict[str, Any]
Metrics = dict[str, Array]
# What the first step is given as `finite`: of the type of that metric, or the second would compile anew.
FINITE = np.float32(1)
T = TypeVar("T")
Gradient = Callable[..., tuple[nnx.State[Any, Any], Metrics]]


class TrainState(NamedTuple):
    """What a step changes: the trained parameters and the optimiser's state."""

    model: nnx.State[Any, Any]
    optimizer: Any


class Master(NamedTuple):
    """The optimiser's state for bfloat16 parameters: float32 weights, in which small steps add up."""

    weights: nnx.State[Any, Any]
    inner: Any


class Programs(NamedTuple):
    """The compiled, sharded programs of one run; see `TrainStep.compile`."""

    init: Callable[[nnx.State[Any, Any]], Any]
    train: Callable[..., tuple[TrainState, Metrics]]
    scores: Callable[
        [nnx.State[Any, Any], nnx.State[Any, Any], Rows], tuple[dict[str, Array], Array]
    ]
    reference: Callable[
        [nnx.State[Any, Any], nnx.State[Any, Any], Rows], tuple[dict[str, Array], Array]
    ]


class Updates:
    """How a loss changes parameters: gradient, optimiser, and where each array lies on the mesh.

    `TrainStep` learns from pairs, `online.OnlineStep` from what the policy wrote; each has these as fields,
    and a loss. accumulate: parts that a batch is computed in. master: keep a float32 copy of bfloat16
    parameters with the optimiser. seed: of the adapters' dropout, which is drawn anew at each step.
    """

    optimizer: optax.GradientTransformation
    mesh: Mesh
    accumulate: int
    master: bool
    seed: int

    def loss(
        self,
        model: nnx.State[Any, Any],
        frozen: nnx.State[Any, Any],
        batch: Batch,
        pairs: Array,
        key: Array,
    ) -> tuple[Array, Metrics]:
        """The sum of the losses of a batch's trees, over `pairs`, and the same of each metric.

        pairs: how many the whole batch has, of which this one may be a part. key: of the dropout.
        """
        raise NotImplementedError

    def gradient(
        self, model: nnx.State[Any, Any], frozen: nnx.State[Any, Any], batch: Batch, key: Array
    ) -> tuple[nnx.State[Any, Any], Metrics]:
        """d loss / d model, the mean over the batch's pairs, and the metrics' means."""
        with self._on_mesh():  # for the backward pass too
            return self._gradient(model, frozen, batch, key)

    def _gradient(
        self, model: nnx.State[Any, Any], frozen: nnx.State[Any, Any], batch: Batch, key: Array
    ) -> tuple[nnx.State[Any, Any], Metrics]:
        part: Gradient = jax.grad(self.loss, has_aux=True)
        pairs = jnp.sum(batch["rows"].pair >= 0)
        if self.accumulate == 1:
            return part(model, frozen, batch, pairs, key)
        parts = self._parts(batch)
        keys = jax.random.split(key, self.accumulate)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(part, model, frozen, first, pairs, key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)

        def add(total: Any, inputs: tuple[Batch, Array]) -> tuple[Any, None]:
            more = part(model, frozen, inputs[0], pairs, inputs[1])
            return jax.tree.map(jnp.add, total, more), None

        total, _ = jax.lax.scan(add, zeros, (parts, keys))
        found: tuple[nnx.State[Any, Any], Metrics]
        found = jax.tree.map(lambda x, s: x.astype(s.dtype), total, shapes)
        return found

    def _parts(self, batch: Any) -> Any:
        """Arrays [B, …] -> [accumulate, B / accumulate, …].

        Part i takes every accumulate-th row, so each part keeps the batch's own sharding.
        """
        return jax.tree.map(
            lambda x: x.reshape(-1, self.accumulate, *x.shape[1:]).swapaxes(0, 1), batch
        )

    def in_parts(self, compute: Callable[[Any], T], batch: Any) -> T:
        """compute, of a batch of arrays [B, …] to arrays [B, …]; of a batch of training in its parts.

        What would be alive for all its rows at once may not fit.
        """
        rows = len(jax.tree.leaves(batch)[0])
        if self.accumulate == 1 or rows % (self.accumulate * mesh_module.batch_parts(self.mesh)):
            return compute(batch)
        apart = jax.lax.map(compute, self._parts(batch))
        joined: T = jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(rows, *x.shape[2:]), apart)
        return joined

    def init(self, model: nnx.State[Any, Any]) -> Any:
        """The optimiser's state before the first step."""
        if not self._keeps_master(model):
            return self.optimizer.init(model)
        weights = _wide(model)
        return Master(weights, self.optimizer.init(weights))

    def update(self, state: TrainState, gradients: nnx.State[Any, Any]) -> TrainState:
        """One step of the optimiser."""
        if not isinstance(state.optimizer, Master):
            updates, inner = self.optimizer.update(gradients, state.optimizer, state.model)
            return TrainState(optax.apply_updates(state.model, updates), inner)
        weights, inner = state.optimizer
        updates, inner = self.optimizer.update(_wide(gradients), inner, weights)
        weights = optax.apply_updates(weights, updates)
        model = jax.tree.map(lambda old, new: new.astype(old.dtype), state.model, weights)
        return TrainState(model, Master(weights, inner))

    def train(
        self,
        state: TrainState,
        frozen: nnx.State[Any, Any],
        batch: Batch,
        finite: Array | bool = True,
    ) -> tuple[TrainState, Metrics]:
        """Gradient and update, and float32 scalars: the objective's, grad_norm (before clipping), finite.

        finite: 1 if it was given as true and loss and gradient are finite; else 0, and the state comes
        back as it was. Given the last step's, a step behind one that failed changes nothing either.
        """
        key = jax.random.fold_in(jax.random.key(self.seed), _count(state.optimizer))
        gradients, metrics = self.gradient(state.model, frozen, batch, key)
        norm = optax.tree.norm(_wide(gradients))
        good = jnp.asarray(finite, bool) & jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)
        state = jax.tree.map(
            lambda new, old: jnp.where(good, new, old), self.update(state, gradients), state
        )
        return state, metrics | {"grad_norm": norm, "finite": good.astype(jnp.float32)}

    def shardings(self, trained: nnx.State[Any, Any]) -> TrainState:
        """Where each array of the state lies."""
        parameters = mesh_module.parameter_shardings(self.mesh, trained)
        replicated = mesh_module.replicated(self.mesh)
        inner = optax.tree.map_params(
            self.optimizer,
            lambda _, sharding: sharding,
            jax.eval_shape(self.optimizer.init, trained),
            parameters,
            transform_non_params=lambda _: replicated,
        )
        master = self._keeps_master(trained)
        return TrainState(parameters, Master(parameters, inner) if master else inner)

    def _keeps_master(self, model: nnx.State[Any, Any]) -> bool:
        return self.master and any(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(model))

    def _on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep(Updates):
    """The train step for a model that is split into (graphdef, trained, frozen).

    Every method is a pure function of arrays, to be called as it is or under `jax.jit`; `compile` gives
    those that a run needs as programs on the mesh.

    A batch is what data comes in: see `pipeline.batches`. hyper: the objective's hyperparameters.
    accumulate: parts that a batch is computed in. master: keep a float32 copy of bfloat16 parameters with
    the optimiser. seed: of the adapters' dropout, which is drawn anew at each step. router_loss: weight of
    the load-balancing loss of a model with routed experts (`experts.balance`), which with several parts is
    the mean over them; then it is a metric too, without the weight, and no part of the metric `loss`.
    """

    graphdef: nnx.GraphDef[Any]
    optimizer: optax.GradientTransformation
    objective: Objective
    hyper: Mapping[str, Any]
    mesh: Mesh
    accumulate: int = 1
    master: bool = True
    seed: int = 0
    router_loss: float = 0.0

    def loss(
        self,
        model: nnx.State[Any, Any],
        frozen: nnx.State[Any, Any],
        batch: Batch,
        pairs: Array,
        key: Array,
    ) -> tuple[Array, Metrics]:
        """The sum of the losses of a batch's pairs, over `pairs`, and the same of each metric.

        pairs: how many the whole batch has, of which this one may be a part. key: of the dropout.
        """
        policy = nnx.merge(self.graphdef, model, frozen)
        needs, balanced = self.objective.needs, self.router_loss > 0
        with self._on_mesh():
            scores, load = scoring.score_with_load(
                policy, batch["rows"], needs, balanced, dropout=key
            )
        given = jax.tree.map(lambda x: x.reshape(-1), batch)  # [B, P] -> [B * P], as the scores
        losses, metrics = self.objective(
            scores, given["reference"], given["label_prob"], lengths=given["lengths"], **self.hyper
        )
        valid = given["rows"].pair >= 0

        def mean(values: Array) -> Array:
            return jnp.sum(jnp.where(valid, values, 0.0)) / pairs

        total, means = mean(losses), jax.tree.map(mean, metrics)
        if load is None:
            return total, means
        share = jnp.sum(valid) / pairs  # of the batch, which is in this part
        means["router_loss"] = share * experts.balance(load)
        return total + self.router_loss * means["router_loss"], means

    def scores(
        self,
        model: nnx.State[Any, Any],
        frozen: nnx.State[Any, Any],
        rows: Rows,
        *,
        adapter: bool = True,
    ) -> tuple[dict[str, Array], Array]:
        """{score: float32 [B * P]} of the policy, without dropout, and which pair each belongs to, int32
        [B * P]. adapter: False for the model without its adapters. In parts, see `in_parts`.
        """

        def of(rows: Rows) -> dict[str, Array]:
            policy = nnx.merge(self.graphdef, model, frozen)
            with self._on_mesh():
                found = scoring.score(policy, rows, self.objective.needs, adapter=adapter)
            return {name: values.reshape(rows.pair.shape) for name, values in found.items()}

        scores = self.in_parts(of, rows)
        return {name: x.reshape(-1) for name, x in scores.items()}, rows.pair.reshape(-1)

    def reference(
        self, model: nnx.State[Any, Any], frozen: nnx.State[Any, Any], rows: Rows
    ) -> tuple[dict[str, Array], Array]:
        """`scores` of the reference policy, which is the model without adapters."""
        return self.scores(model, frozen, rows, adapter=False)

    def compile(self, trained: nnx.State[Any, Any]) -> Programs:
        """`init`, `train` (its state is donated), `scores` and `reference` for parameters of these shapes.

        The optimiser's state is laid out like the parameters it belongs to; metrics and scores are on
        every process.
        """
        shardings = self.shardings(trained)
        replicated = mesh_module.replicated(self.mesh)
        return Programs(
            init=jax.jit(self.init, out_shardings=shardings.optimizer),
            train=jax.jit(self.train, donate_argnums=0, out_shardings=(shardings, replicated)),
            scores=jax.jit(self.scores, out_shardings=replicated),
            reference=jax.jit(self.reference, out_shardings=replicated),
        )


def _wide(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def _count(optimizer_state: Any) -> Array:
    """How many updates there have been; every part of the optimiser that counts says the same."""
    count: Array = optax.tree.get_all_with_path(optimizer_state, "count")[0][1]
    return count
