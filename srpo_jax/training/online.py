"""Learning from what the policy itself wrote: scores, advantages, updates.

One round: completions and their rewards become an `Experience` (a prompt and its completions one tree; the
log-probabilities of policy and reference, by the trainer's own scorer; for PPO values and advantages), and
each of its minibatches an update. See `objectives.online` for the losses.

Shapes: N prompts, k completions of each, G tokens at most; B rows, P places for trees, T targets of a row.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models.decoder import Decoder
from srpo_jax.objectives import online
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import scoring
from srpo_jax.training.settings import OnlineSettings
from srpo_jax.training.step import FINITE, Batch, Metrics, TrainState, Updates
from srpo_jax.trees import completions
from srpo_jax.trees.completions import Completions, Layout
from srpo_jax.trees.prefix_tree import Rows, Tree

Array = jax.Array
State = nnx.State[Any, Any]
VALUE = "value"  # in the trained state: the value head, beside the policy's parameters


class ValueHead(nnx.Module):
    """V of a state, a linear function of the hidden state [D]; 0 before it has learned anything."""

    def __init__(self, width: int):
        self.kernel = nnx.Param(jnp.zeros(width))
        self.bias = nnx.Param(jnp.zeros(()))


def with_value_head(trained: State, width: int, mesh: Mesh) -> State:
    """The trained state with a value head of its own."""
    head = jax.device_put(nnx.state(ValueHead(width)), mesh_module.replicated(mesh))
    flat = [((VALUE, *path), variable) for path, variable in nnx.to_flat_state(head)]
    return nnx.from_flat_state([*nnx.to_flat_state(trained), *flat])


class Scored(NamedTuple):
    """Of each token: its log-probability at the sampling temperature, and V of the state before it.

    float32 [B, P, k, G], or [N, k, G] of a round, numpy or jax; values are 0 without a value head. Behind a
    completion they mean nothing.
    """

    logp: Any
    values: Any


class OnlinePrograms(NamedTuple):
    """The compiled, sharded programs of one run; see `OnlineStep.compile`."""

    init: Callable[[State], Any]
    train: Callable[..., tuple[TrainState, Metrics]]
    score: Callable[[State, State, Rows, Array], Scored]
    reference: Callable[[State, State, Rows, Array], Scored]


@dataclasses.dataclass(frozen=True, eq=False)
class OnlineStep(Updates):
    """The update for a model that is split into (graphdef, trained, frozen); see `TrainStep`.

    A batch is a `Minibatch` laid out. Adapters' dropout is off: a policy that is not the one that wrote
    would begin with ratios other than 1.
    """

    graphdef: nnx.GraphDef[Any]
    optimizer: optax.GradientTransformation
    settings: OnlineSettings
    mesh: Mesh
    accumulate: int = 1
    master: bool = True
    seed: int = 0

    def policy(self, model: State, frozen: State) -> Decoder:
        """The decoder, without value head."""
        flat = [(path, v) for path, v in nnx.to_flat_state(model) if path[0] != VALUE]
        decoder: Decoder = nnx.merge(self.graphdef, nnx.from_flat_state(flat), frozen)
        return decoder

    def score(
        self,
        model: State,
        frozen: State,
        rows: Rows,
        targets: Array,
        *,
        adapter: bool = True,
    ) -> Scored:
        """targets: int32 [B, P, k, G], of `completions.Layout.batch`. adapter: as of `scoring.score`."""
        temperature = self.settings.temperature
        with self._on_mesh():
            states, logp = scoring.targets(
                self.policy(model, frozen), rows, adapter=adapter, temperature=temperature
            )

        def of_tokens(values: Array) -> Array:
            flat = targets.reshape(len(targets), -1)
            return jnp.take_along_axis(values, flat, axis=1).reshape(targets.shape)

        if VALUE not in model:
            return Scored(of_tokens(logp), jnp.zeros(targets.shape))
        head: Any = model[VALUE]
        # Elementwise: a product of matrices would round its inputs on a TPU.
        values = (states.astype(jnp.float32) * head["kernel"][...]).sum(-1) + head["bias"][...]
        return Scored(of_tokens(logp), of_tokens(values))

    def scored(
        self, model: State, frozen: State, rows: Rows, targets: Array, *, adapter: bool = True
    ) -> Scored:
        """`score` of a batch of training, in its parts."""
        score = functools.partial(self.score, model, frozen, adapter=adapter)
        return self.in_parts(lambda batch: score(*batch), (rows, targets))

    def loss(
        self, model: State, frozen: State, batch: Batch, pairs: Array, key: Array
    ) -> tuple[Array, Metrics]:
        """The sum of the losses of a batch's prompts, over `pairs`, and the same of each metric."""
        scored = self.score(model, frozen, batch["rows"], batch["targets"])
        losses, metrics = LOSSES[self.settings.objective](scored, batch, self.settings)
        valid = batch["rows"].pair >= 0

        def mean(values: Array) -> Array:
            return jnp.sum(jnp.where(valid, values, 0.0)) / pairs

        return mean(losses), jax.tree.map(mean, metrics | {"loss": losses})

    def compile(self, trained: State) -> OnlinePrograms:
        """For parameters of these shapes. reference: the model with its adapters off."""
        shardings = self.shardings(trained)
        whole = mesh_module.replicated(self.mesh)
        reference = functools.partial(self.scored, adapter=False)
        return OnlinePrograms(
            init=jax.jit(self.init, out_shardings=shardings.optimizer),
            train=jax.jit(self.train, donate_argnums=0, out_shardings=(shardings, whole)),
            score=jax.jit(self.scored, out_shardings=whole),
            reference=jax.jit(reference, out_shardings=whole),
        )


# --- the losses of a batch, [B, P] --------------------------------------------------------------------


def _sequence_sums(scored: Scored, batch: Batch) -> Array:
    sums: Array = jnp.where(batch["mask"], scored.logp, 0.0).sum(-1)
    return sums


def _rloo(scored: Scored, batch: Batch, own: OnlineSettings) -> tuple[Array, Metrics]:
    scores = _sequence_sums(scored, batch)
    given = (batch[name] for name in ("old", "reference", "rewards"))
    # An array: the coefficient changes where it is adapted.
    return online.rloo(scores, *given, beta=batch["beta"][..., None], clip=own.clip)


def _copg(scored: Scored, batch: Batch, own: OnlineSettings) -> tuple[Array, Metrics]:
    scores, beta = _sequence_sums(scored, batch), batch["beta"][..., None, None]
    return online.copg(scores, batch["reference"], batch["rewards"], beta=beta)


def _ppo(scored: Scored, batch: Batch, own: OnlineSettings) -> tuple[Array, Metrics]:
    """Means over the tokens of the whole minibatch: weight is a minibatch's prompts over its tokens."""
    given = (batch[name] for name in ("old", "old_values", "advantages", "returns", "mask"))
    losses, metrics = online.ppo(
        scored.logp,
        scored.values,
        *given,
        clip=own.clip,
        value_clip=own.value_clip,
        value_weight=own.value_weight,
    )

    def weighted(values: Array) -> Array:
        summed: Array = values.sum((-2, -1)) * batch["weight"]
        return summed

    return weighted(losses), jax.tree.map(weighted, metrics)


LOSSES = {"rloo": _rloo, "copg": _copg, "ppo": _ppo}


# --- what a round learns from -------------------------------------------------------------------------


class Minibatch(NamedTuple):
    """Some trees of a round, and their part of `Experience`; values "weight" [n] too, see `_ppo`."""

    trees: list[Tree]
    values: dict[str, np.ndarray]
    used: np.ndarray


@dataclasses.dataclass(frozen=True)
class Experience:
    """What a round learns from, whole on every process.

    trees: N of them. used: bool [N], whose completions all have a reward. values: {name: [N, …]}, what the
    loss reads. metrics: of the round, before its updates.
    """

    trees: Sequence[Tree]
    used: np.ndarray
    values: dict[str, np.ndarray]
    metrics: dict[str, float]

    def minibatches(self, own: OnlineSettings, seed: tuple[int, ...]) -> Iterator[Minibatch]:
        """own.epochs times all prompts, newly shuffled, in own.minibatches."""
        for epoch in range(own.epochs):
            order = np.random.default_rng((*seed, epoch)).permutation(len(self.trees))
            for chosen in order.reshape(own.minibatches, -1):
                values = {name: value[chosen] for name, value in self.values.items()}
                used = self.used[chosen]
                tokens = values["mask"][used].sum()
                weight = used.sum() / max(tokens, 1)
                values["weight"] = np.full(len(chosen), weight, np.float32)
                if used.any():  # else there is nothing to learn
                    yield Minibatch([self.trees[i] for i in chosen], values, used)


@dataclasses.dataclass(frozen=True)
class Learner:
    """The programs of a run and how its batches are laid out.

    reference: its parameters, (trained, frozen); None where it is the policy without its adapters.
    """

    step: OnlineStep
    programs: OnlinePrograms
    layout: Layout
    frozen: State
    reference: tuple[State, State] | None

    def experience(
        self,
        model: State,
        prompts: Sequence[Sequence[int]],
        written: Completions,
        rewards: np.ndarray,
        beta: float,
    ) -> Experience:
        """What there is to learn from completions of N prompts. Called by all processes.

        rewards: [N, k], NaN where there is none; a completion without its end loses own.missing_end. beta:
        the KL's coefficient.
        """
        own = self.step.settings
        trees = [
            completions.build(prompt, [written.ids(i, j) for j in range(own.samples)])
            for i, prompt in enumerate(prompts)
        ]
        used, mask = np.isfinite(rewards).all(axis=1), written.valid
        policy = model, self.frozen
        old = self._scored(self.programs.score, policy, trees)
        before = self._scored(self.programs.reference, self.reference or policy, trees)
        logp, reference = (np.where(mask, x.logp, 0) for x in (old, before))
        given = np.where(written.ended, rewards, rewards - own.missing_end)
        given = np.where(used[:, None], given, 0).astype(np.float32)
        values = {"mask": mask, "beta": np.full(len(trees), beta, np.float32)}
        metrics = _said(written, rewards, logp, reference, used)
        if own.objective == "ppo":
            there = mask & used[:, None, None]
            found = _estimated(given, logp, reference, old.values, there, beta, own)
            values |= {"old": logp, "old_values": old.values} | jax.device_get(found)
            metrics["explained_variance"] = float(values.pop("explained_variance"))
        else:
            sums = {"old": logp.sum(-1), "reference": reference.sum(-1)}
            values |= sums | {"rewards": given}
        return Experience(trees, used, values, metrics)

    def learn(
        self, state: TrainState, experience: Experience, seed: tuple[int, ...]
    ) -> tuple[TrainState, dict[str, float]]:
        """The updates of a round, and the means of their metrics; `finite` is 0 if one was not."""
        mesh, found = self.step.mesh, []
        finite: Any = mesh_module.replicate(mesh, FINITE)
        rows = mesh_module.own_rows(mesh, self.layout.rows)
        for part in experience.minibatches(self.step.settings, seed):
            batch = self.layout.batch(part.trees, rows, part.values, part.used)
            batch = mesh_module.host_to_global(mesh, batch)
            state, metrics = self.programs.train(state, self.frozen, batch, finite)
            finite = metrics["finite"]
            found.append(metrics)
        taken = [jax.device_get(metrics) for metrics in found]
        names = taken[0] if taken else ()
        return state, {name: float(np.mean([one[name] for one in taken])) for name in names}

    def _scored(
        self, program: Callable[..., Scored], weights: tuple[State, State], trees: Sequence[Tree]
    ) -> Scored:
        """[N, k, G], numpy, on every process; as many prompts at a time as a minibatch has."""
        mesh, parts = self.step.mesh, []
        own = mesh_module.own_rows(mesh, self.layout.rows)
        size = len(trees) // self.step.settings.minibatches
        for first in range(0, len(trees), size):
            some = trees[first : first + size]
            batch = mesh_module.host_to_global(mesh, self.layout.batch(some, own, {}))
            scored = program(*weights, batch["rows"], batch["targets"])
            numbers = self.layout.numbers(some)
            parts.append([completions.restored(numbers, np.asarray(x), size) for x in scored])
        return Scored(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@functools.partial(jax.jit, static_argnames="own")
def _estimated(
    rewards: Array,
    old: Array,
    reference: Array,
    values: Array,
    mask: Array,
    beta: Array | float,
    own: OnlineSettings,
) -> dict[str, Array]:
    """Advantages and returns of all N prompts at once: they are whitened over the whole batch."""
    given = online.token_rewards(rewards, old, reference, mask, beta=beta)
    found = online.gae(given, values, mask, discount=own.discount, trace=own.trace)
    advantages = online.whiten(found.advantages, mask) if own.whiten else found.advantages
    explained = online.explained_variance(values, found.returns, mask)
    return {
        "advantages": advantages,
        "returns": found.returns,
        "explained_variance": explained,
    }


def _said(
    written: Completions,
    rewards: np.ndarray,
    logp: np.ndarray,
    reference: np.ndarray,
    used: np.ndarray,
) -> dict[str, float]:
    """The metrics of what was written, before anything is learned from it; docs/online.md lists them."""
    tokens = written.valid.sum()
    return {
        "reward": float(rewards[used].mean()) if used.any() else float("nan"),
        "reward_spread": float(rewards[used].std(axis=1).mean()) if used.any() else float("nan"),
        "unjudged": float(1 - used.mean()),
        "kl": float((logp - reference).sum(-1).mean()),
        "entropy": float(-logp.sum() / tokens),
        "length": float(written.lengths.mean()),
        "ended": float(written.ended.mean()),
        "rollout_gap": float(np.abs(logp - written.log_probabilities)[written.valid].max()),
    }
