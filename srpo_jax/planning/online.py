"""The programs of `train_online` on a mesh, lowered from shapes alone, and what a round runs of each.

All prompts and all completions are as long as they may be.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models import DecoderConfig
from srpo_jax.models.creation import abstract
from srpo_jax.planning import lowering
from srpo_jax.planning.compiling import Trees
from srpo_jax.planning.lowering import Held, Program
from srpo_jax.planning.workload import EOS
from srpo_jax.revision import programs
from srpo_jax.revision.plan import rounded
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training.online import VALUE, OnlineStep, ValueHead
from srpo_jax.training.settings import OnlineSettings
from srpo_jax.trees import completions
from srpo_jax.trees.completions import Layout

State = nnx.State[Any, Any]


@dataclasses.dataclass(frozen=True)
class Round:
    """N prompts [S] in token ids, in `parts` parts of a batch, and how completions of them are drawn."""

    prompts: Sequence[tuple[int, ...]]
    sampling: Sampling
    parts: int

    def layout(self, own: OnlineSettings) -> Layout:
        """Of a minibatch."""
        return Layout.of(
            len(self.prompts) // own.minibatches,
            parts=self.parts,
            longest=max(map(len, self.prompts)),
            samples=own.samples,
            tokens=self.sampling.max_new_tokens,
        )

    def said(self, own: OnlineSettings, vocabulary: int) -> dict[str, Any]:
        """What there is to say of a round, and of the rows of a minibatch."""
        end = self.minibatch(own, vocabulary)["rows"].end
        prompt, new = max(map(len, self.prompts)), self.sampling.max_new_tokens
        return {
            "prompts": len(self.prompts),
            "rows": len(end),
            "slots": end.shape[1],
            "fill": float((end > 0).mean()),
            "lengths": f"prompts of {prompt}, {own.samples} completions of {new} tokens each",
        }

    def minibatch(self, own: OnlineSettings, vocabulary: int) -> dict[str, Any]:
        """Completions drawn at random, which share nothing, as `training.online` lays them out, numpy."""
        rng, new = np.random.default_rng(0), self.sampling.max_new_tokens
        chosen = self.prompts[: len(self.prompts) // own.minibatches]
        drawn = rng.integers(10, vocabulary, size=(len(chosen), own.samples, new))
        trees = [completions.build(x, ys) for x, ys in zip(chosen, drawn.tolist(), strict=True)]
        sums, tokens = np.zeros(drawn.shape[:2], np.float32), np.zeros(drawn.shape, np.float32)
        each = np.ones(len(chosen), np.float32)
        values = {"mask": tokens == 0, "beta": each, "weight": each}
        if own.objective == "ppo":
            names = ("old", "old_values", "advantages", "returns")
            values |= dict.fromkeys(names, tokens)
        else:
            values |= dict.fromkeys(("old", "reference", "rewards"), sums)
        layout = self.layout(own)
        return layout.batch(trees, np.arange(layout.rows), values)


def lower(
    step: OnlineStep, architecture: DecoderConfig, given: Round, apart: bool = False
) -> tuple[list[Program], Held]:
    """What a round runs, the update first, and what lies in memory for it.

    apart: whether the reference is another model than the policy as it starts.
    """
    own = step.settings
    batch = given.minibatch(own, architecture.vocab_size)
    _, trained, frozen = abstract(architecture, step.mesh)
    policy = trained
    if own.objective == "ppo":
        policy = _with_value_head(trained, architecture.width, step.mesh)
    update, held = lowering.update(step, policy, frozen, batch)
    graphdef, state = nnx.split(nnx.merge(step.graphdef, trained, frozen))
    model = programs.Model.shaped(graphdef, state, step.mesh)
    update = dataclasses.replace(
        update,
        name="update",
        executions=own.epochs * own.minibatches,
        beside=lowering.stack_beside(model),
    )
    if apart or not architecture.lora_rank:
        update, held = lowering.beside_reference(update, held, apart)
    # The others leave the optimiser where it lies.
    beside = update.beside + held.optimizer
    scores = dataclasses.replace(_scores(step, policy, frozen, batch), beside=beside)
    writing = _writing(step, model, architecture.vocab_size, given)
    return [update, scores, *(dataclasses.replace(one, beside=beside) for one in writing)], held


def _scores(step: OnlineStep, policy: State, frozen: State, batch: Mapping[str, Any]) -> Program:
    """Of policy and reference, a minibatch at a time."""
    rows = batch["rows"]
    lowered = lowering.lowered(
        step.compile(policy).score,
        step.mesh,
        policy,
        frozen,
        *lowering.over_batch(step.mesh, (rows, batch["targets"])),
    )
    trees = Trees(rows.end, rows.positions)
    return Program("score", lowered, trees, executions=2 * step.settings.minibatches)


def _writing(
    step: OnlineStep, model: programs.Model, vocabulary: int, given: Round
) -> Iterator[Program]:
    """The prompts' prefill, and the decoding of their completions, of so many prompts at a time."""
    mesh, samples = step.mesh, step.settings.samples
    at_once = min(len(given.prompts), max(1, given.sampling.batch_size // samples))
    at_once = rounded(at_once, mesh_module.batch_parts(mesh))
    times = -(-len(given.prompts) // at_once)
    width, count = max(map(len, given.prompts)), at_once * samples
    rows = _prompts(at_once, width)
    trees = lowering.as_trees(rows)
    placed = lowering.over_batch(mesh, rows)
    prefill = lowering.lowered(programs.prefill, mesh, model, placed)
    yield Program("prefill", prefill, trees, executions=times)

    _, cache = jax.eval_shape(programs.prefill, dataclasses.replace(model, mesh=None), placed)
    copied = jax.eval_shape(
        functools.partial(programs.branch, slots=width),
        dataclasses.replace(model, mesh=None),
        cache,
        jax.ShapeDtypeStruct((count,), np.int32),
    )
    cache = jax.tree.map(lambda x: lowering.of_cache(mesh, x), copied)
    logits = jax.ShapeDtypeStruct((count, vocabulary), np.float32)
    keys = jax.eval_shape(programs.keys, 0, np.zeros(count, np.uint32))
    ones = np.ones(count, np.int32)
    start = programs.Start(keys, ones, ones, np.ones((count, width), bool))
    logits, start = lowering.over_batch(mesh, (logits, start))
    settings = {"sampling": given.sampling, "stops": (EOS,), "scored": True}
    write = lowering.lowered(programs.write, mesh, model, cache, logits, start, **settings)
    loops = given.sampling.max_new_tokens - 1
    yield Program("write", write, trees, executions=times, loops=loops)


def _prompts(count: int, width: int) -> programs.Rows[np.ndarray]:
    tokens = np.zeros((count, width), np.int32)
    none = np.zeros(count, np.int32)
    counts = np.full(count, width, np.int32)
    return programs.Rows(tokens, counts, none, np.zeros(tokens.shape, bool), np.array(0, np.int32))


def _with_value_head(trained: State, width: int, mesh: Mesh) -> State:
    """As `training.online.with_value_head`, of shapes."""
    whole = mesh_module.replicated(mesh)
    head = nnx.state(nnx.eval_shape(lambda: ValueHead(width)))
    flat = [
        ((VALUE, *path), v.replace(lowering.placed(v.get_value(), whole)))
        for path, v in nnx.to_flat_state(head)
    ]
    return nnx.from_flat_state([*nnx.to_flat_state(trained), *flat])
