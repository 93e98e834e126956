"""The online baselines: RLOO and PPO, with the product's own rollout and update, rewarded by the task.

They learn under the direct prompt alone, on the prompts of the pairs, from answers that they write
themselves. The reward is the score that P is made of (`Desk.scores`): with it the optimum of the reward
less beta KL(pi || reference) is DPO's closed form of the same beta. It is the true reward, of every
answer, where the offline methods see one hard label a pair.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.revision.rollout import LocalRollout
from srpo_jax.revision.sampling import Sampling
from srpo_jax.theory.revision_task import network
from srpo_jax.theory.revision_task.desk import EOS, WRITERS, Desk, prompt
from srpo_jax.theory.revision_task.measure import SAMPLED
from srpo_jax.theory.revision_task.network import Model, Recipe
from srpo_jax.training.online import VALUE, Learner, OnlineStep, with_value_head
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer
from srpo_jax.training.settings import OnlineSettings
from srpo_jax.training.step import TrainState
from srpo_jax.trees.completions import Completions, Layout

# missing_end: the task's own score says what a wrong length costs.
SETTINGS = {
    "rloo": OnlineSettings(objective="rloo", samples=4, missing_end=0.0),
    "ppo": OnlineSettings(objective="ppo", samples=4, missing_end=0.0, epochs=2),
}


def rewards(desk: Desk, symbols: np.ndarray, written: Completions) -> np.ndarray:
    """float64 [N, k]: the log-odds that each is preferred to an answer as often right as the reference
    writer's are on average. (Counted from there, a value head that begins at 0 begins where rewards do.)"""
    count, samples = written.lengths.shape
    ids = [written.ids(i, j) for i in range(count) for j in range(samples)]
    answers = [[token for token in answer if token != EOS] for answer in ids]
    scores = desk.scores(np.repeat(symbols, samples, axis=0), answers)
    usual = desk.places * WRITERS["reference"][0] / desk.temperature
    found: np.ndarray = (scores - usual).reshape(count, samples)
    return found


@functools.cache
def learner(objective: str, desk: Desk, recipe: Recipe, rounds: int) -> Learner:
    """The programs of a run of so many rounds of recipe.batch prompts, whatever beta is; `train` gives it
    its reference."""
    own, mesh = SETTINGS[objective], network.mesh()
    graphdef, trained, frozen = network.drawn(recipe, 0)
    updates = rounds * own.epochs * own.minibatches
    rate = OptimizerSettings(learning_rate=recipe.rate, warmup_steps=min(20, updates // 10))
    step = OnlineStep(graphdef, make_optimizer(rate, updates, epsilon=1e-5)[0], own, mesh)
    # A tree a row: attention over rows of many short trees costs more than all the rest.
    layout = Layout(
        rows=recipe.batch // own.minibatches,
        longest=desk.places + 1,
        samples=own.samples,
        tokens=SAMPLED.tokens(desk),
    )
    return Learner(step, step.compile(policy(objective, trained, recipe)), layout, frozen, None)


def policy(objective: str, trained: Any, recipe: Recipe) -> Any:
    """A copy of the trained parameters, with PPO's value head: what the updates may donate."""
    copied = jax.tree.map(jnp.copy, trained)
    if objective != "ppo":
        return copied
    return with_value_head(copied, recipe.width, network.mesh())


def sampling(objective: str, desk: Desk, recipe: Recipe) -> Sampling:
    """All completions of a round at once."""
    own = SETTINGS[objective]
    return Sampling(
        max_new_tokens=SAMPLED.tokens(desk),
        temperature=own.temperature,
        batch_size=recipe.batch * own.samples,
    )


def train(
    start: Model,
    objective: str,
    desk: Desk,
    recipe: Recipe,
    beta: float,
    seed: int,
    rounds: int,
) -> tuple[Model, dict[str, np.ndarray]]:
    """The start after so many rounds, and the metrics of `Learner`, [rounds] each."""
    reference = start.trained, start.frozen
    made = dataclasses.replace(
        learner(objective, desk, recipe, rounds), frozen=start.frozen, reference=reference
    )
    trained = policy(objective, start.trained, recipe)
    state = TrainState(trained, made.programs.init(trained))
    drawn = sampling(objective, desk, recipe)
    writer = LocalRollout(
        nnx.merge(*start), drawn, stops=(EOS,), width=made.layout.longest, seed=seed
    )
    metrics = []
    for number, symbols in enumerate(_prompts(desk, recipe, seed, rounds)):
        asked = [prompt(x).direct for x in symbols]
        writer.update(made.step.policy(state.model, start.frozen))
        written = writer.generate(asked, made.step.settings.samples, draw=number)
        given = rewards(desk, symbols, written)
        lessons = made.experience(state.model, asked, written, given, beta)
        state, said = made.learn(state, lessons, (seed, number))
        metrics.append(said | lessons.metrics)
    parameters = [(path, v) for path, v in nnx.to_flat_state(state.model) if path[0] != VALUE]
    model = start._replace(trained=nnx.from_flat_state(parameters))
    return model, {name: np.array([one[name] for one in metrics]) for name in metrics[0]}


def _prompts(desk: Desk, recipe: Recipe, seed: int, rounds: int) -> np.ndarray:
    """int [rounds, batch, places]: the symbols of the pairs, again and again, newly shuffled."""
    # Who wrote the answers does not matter here.
    symbols = network.labelled_pairs(desk, recipe, "A", seed).symbols
    rng = np.random.default_rng((seed, network.ONLINE))
    times = -(-rounds * recipe.batch // len(symbols))
    order = np.concatenate([rng.permutation(len(symbols)) for _ in range(times)])
    chosen: np.ndarray = symbols[order[: rounds * recipe.batch]]
    return chosen.reshape(rounds, recipe.batch, desk.places)
