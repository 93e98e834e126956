"""What training costs: operations of the programs that run, by `runtime.flops`, padding included.

SRPO's: the reference's scores of all pairs, once, and its steps. A round of an online method's: writing
(the prompts, and every completion as long as it may be), scoring (policy and reference) and learning.
Neither counts the start, nor whoever wrote and judged the pairs or judges the answers.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from srpo_jax import objectives
from srpo_jax.revision import programs as writing
from srpo_jax.runtime import flops
from srpo_jax.theory.revision_task import network, online
from srpo_jax.theory.revision_task.desk import EOS, FIRST_SYMBOL, Desk, prompt
from srpo_jax.theory.revision_task.network import Recipe
from srpo_jax.training.step import TrainState
from srpo_jax.trees import completions


class Round(NamedTuple):
    """Operations of one round: all its updates are in `learning`."""

    writing: float
    scoring: float
    learning: float


@functools.cache
def of_srpo(desk: Desk, recipe: Recipe) -> float:
    """Operations of SRPO's training; the anchor adds none that count."""
    names = objectives.get("srpo").needs
    symbols = np.full((1, desk.places), FIRST_SYMBOL)
    pair = network.Labelled(symbols, np.zeros_like(symbols), np.ones_like(symbols))
    one = network.pair_examples(pair, names, 1, 1, 0).rows
    rows = jax.tree.map(lambda x: _shape((recipe.pairs, *x.shape[1:]), x.dtype), one)
    reference = dict.fromkeys(names, _shape((recipe.pairs, 1), np.float32))
    order = _shape((recipe.steps, recipe.batch), np.int32)
    _, trained, frozen = network.drawn(recipe, 0)
    made = network.programs(recipe.architecture(), "srpo", recipe.steps, recipe.rate)
    hyper = dict.fromkeys(("beta", "alpha", "nll_weight"), np.float32(1))
    learning = flops.count(made.fit, hyper, trained, frozen, rows | {"reference": reference}, order)
    return learning + flops.count(made.scores, trained, frozen, rows["rows"])


@functools.cache
def of_round(objective: str, desk: Desk, recipe: Recipe) -> Round:
    """Operations of a round of recipe.batch prompts."""
    made = online.learner(objective, desk, recipe, 1)
    own, step = made.step.settings, made.step
    start = network.drawn(recipe, 0)
    batch = _minibatch(objective, desk, recipe)
    policy = online.policy(objective, start.trained, recipe)
    state = TrainState(policy, jax.eval_shape(step.init, policy))
    update = flops.count(step.train, state, start.frozen, batch)
    score = flops.count(step.score, policy, start.frozen, batch["rows"], batch["targets"])
    return Round(
        writing=_of_writing(objective, desk, recipe),
        scoring=2 * own.minibatches * score,
        learning=own.epochs * own.minibatches * update,
    )


@functools.cache
def rounds(objective: str, desk: Desk, recipe: Recipe) -> int:
    """As many as cost no more than SRPO's training, and one at least."""
    return max(1, int(of_srpo(desk, recipe) // sum(of_round(objective, desk, recipe))))


def _minibatch(objective: str, desk: Desk, recipe: Recipe) -> dict[str, Any]:
    """Completions that share nothing and have no end, as `Learner` lays them out."""
    layout = online.learner(objective, desk, recipe, 1).layout
    asked = prompt(np.full(desk.places, FIRST_SYMBOL)).direct
    written = [[letter] * layout.tokens for letter in range(layout.samples)]
    trees = [completions.build(asked, written)] * layout.rows
    sums = np.zeros((layout.rows, layout.samples), np.float32)
    tokens = np.zeros((*sums.shape, layout.tokens), np.float32)
    each = np.ones(layout.rows, np.float32)
    values = {"mask": tokens == 0, "beta": each, "weight": each}
    values |= dict.fromkeys(("old_values", "advantages", "returns"), tokens)
    values |= dict.fromkeys(("reference", "rewards"), sums)
    values["old"] = tokens if objective == "ppo" else sums
    return layout.batch(trees, np.arange(layout.rows), values)


def _of_writing(objective: str, desk: Desk, recipe: Recipe) -> float:
    """The prompts once, then a step of all completions for each token behind the first."""
    drawn = online.sampling(objective, desk, recipe)
    count, width = drawn.batch_size, desk.places + 1
    model = writing.Model(*nnx.split(nnx.merge(*network.drawn(recipe, 0))), None, None)
    shapes = jax.eval_shape(lambda: model)
    ints = _shape((recipe.batch,), np.int32)
    seen = _shape((recipe.batch, width), bool)
    tokens = _shape((recipe.batch, width), np.int32)
    asked: Any = writing.Rows(tokens, ints, ints, seen, _shape((), np.int32))
    first = flops.count(writing.prefill, shapes, asked)

    _, cache = jax.eval_shape(writing.prefill, shapes, asked)
    copies = _shape((count,), np.int32)
    branch = functools.partial(writing.branch, slots=width)
    cache = jax.eval_shape(branch, shapes, cache, copies)
    keys = _shape((count, 2), np.uint32)
    begun: Any = writing.Start(keys, copies, copies, _shape((count, width), bool))
    logits = _shape((count, recipe.architecture().vocab_size), np.float32)
    write = functools.partial(writing.write, sampling=drawn, stops=(EOS,), scored=True)
    # Of the loop over tokens one step is counted.
    return first + (drawn.max_new_tokens - 1) * flops.count(write, shapes, cache, logits, begun)


def _shape(shape: tuple[int, ...], kind: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, kind)
