"""What a trained network writes and revises: win rates, edits, distances from the reference.

The win rate is exact given an answer: the mean of P(answer > gold) over all that the gold writer may write.
Shapes: N prompts, R revisions + 1.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.revision.loop import revise_ids
from srpo_jax.revision.sampling import Sampling
from srpo_jax.theory.revision_task.desk import EOS, Desk, prompt
from srpo_jax.theory.revision_task.exact import Table
from srpo_jax.theory.revision_task.network import Model

Answers = list[list[int]]
ROOM = 2  # letters that an answer of free length may have too many


@dataclasses.dataclass(frozen=True)
class Way:
    """How answers are decoded. length: "free", the model ends them, or "fixed", cut off when complete."""

    temperature: float = 1.0
    length: str = "free"

    def tokens(self, desk: Desk) -> int:
        return desk.places + (ROOM if self.length == "free" else 0)


SAMPLED = Way()  # at temperature 1, free length: what most tables show


@dataclasses.dataclass(frozen=True)
class Written:
    """Means over prompts, in percent, by revision: win_rate, wrong_length [R]; unchanged, edits (share of
    places) [R - 1]; kinds [R, LETTERS + 1], shares of places."""

    win_rate: list[float]
    wrong_length: list[float]
    unchanged: list[float]
    edits: list[float]
    kinds: list[list[float]]


@functools.cache
def gold_table(desk: Desk) -> Table:
    return Table.of(desk)


def win_rates(desk: Desk, symbols: np.ndarray, answers: Answers) -> np.ndarray:
    """[N] in percent, each answer against the gold writer's whole distribution."""
    table = gold_table(desk)
    tallies, excess = desk.tallies(symbols, answers)
    wins: np.ndarray = 100 * desk.preferred(tallies, table.tallies, excess) @ table.gold
    return wins


def write(
    model: Model, desk: Desk, symbols: np.ndarray, way: Way, revisions: int, seed: int
) -> list[Answers]:
    """[R][N] answers, token ids."""
    sampling = Sampling(
        max_new_tokens=way.tokens(desk), temperature=way.temperature, batch_size=len(symbols)
    )
    asked = [prompt(x) for x in symbols]
    rows = revise_ids(nnx.merge(*model), asked, revisions, sampling, eos=EOS, seed=seed)
    return [[row[k] for row in rows] for k in range(revisions + 1)]


def judged(desk: Desk, symbols: np.ndarray, written: Sequence[Answers]) -> Written:
    kinds = [desk.tallies(symbols, answers)[0].mean(axis=0) / desk.places for answers in written]
    pairs = list(itertools.pairwise(written))
    width = max(len(y) for answers in written for y in answers)

    def edits(before: Answers, after: Answers) -> float:
        a, b = (np.array([[*y, *[-1] * (width - len(y))] for y in ys]) for ys in (before, after))
        return 100 * float((a != b).sum() / (len(a) * desk.places))

    def share(flags: Sequence[bool]) -> float:
        return 100 * float(np.mean(flags))

    return Written(
        win_rate=[float(win_rates(desk, symbols, answers).mean()) for answers in written],
        wrong_length=[share([len(y) != desk.places for y in answers]) for answers in written],
        unchanged=[share([a == b for a, b in zip(*two, strict=True)]) for two in pairs],
        edits=[edits(*two) for two in pairs],
        kinds=[row.tolist() for row in kinds],
    )


# --- probabilities --------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What a model says where each token of an answer and its end stand: log_probs [N, T, V]; tokens
    int [N, T]; known bool [N, T]."""

    log_probs: np.ndarray
    tokens: np.ndarray
    known: np.ndarray

    def log_likelihood(self) -> np.ndarray:
        """[N], of the answers."""
        each = np.take_along_axis(self.log_probs, self.tokens[..., None], axis=2)[..., 0]
        total: np.ndarray = np.where(self.known, each, 0.0).sum(axis=1)
        return total


def told(model: Model, contexts: Sequence[tuple[int, ...]], answers: Answers, room: int) -> Told:
    """room: tokens that an answer may have at most; one of so many has no end to be predicted."""
    length = max(map(len, contexts)) + room
    rows = np.full((len(answers), length), EOS, np.int32)
    sources = np.zeros((len(answers), room), np.int32)
    tokens = np.full((len(answers), room), EOS, np.int32)
    for i, (context, answer) in enumerate(zip(contexts, answers, strict=True)):
        rows[i, : len(context) + len(answer)] = (*context, *answer)
        sources[i] = len(context) - 1 + np.arange(room)
        tokens[i, : len(answer)] = answer
    known = np.arange(room) <= np.array([len(y) for y in answers])[:, None]
    log_probs = _log_probs(model.graphdef, model.trained, model.frozen, rows, sources)
    return Told(np.asarray(log_probs, np.float64), tokens, known)


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(graphdef: Any, trained: Any, frozen: Any, rows: Any, sources: Any) -> jax.Array:
    model = nnx.merge(graphdef, trained, frozen)
    positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
    causal = positions[:, :, None] >= positions[:, None, :]
    hidden = model(rows, positions, causal)
    picked = jnp.take_along_axis(hidden, sources[..., None], axis=1)
    return jax.nn.log_softmax(model.logits(picked))


def kl(
    policy: Model,
    reference: Model,
    contexts: Sequence[tuple[int, ...]],
    answers: Answers,
    room: int,
) -> float:
    """KL(policy || reference) in nats, the mean over contexts; `answers` are samples of the policy.

    Of each token the whole distribution counts, so that which tokens come before alone is left to chance.
    """
    mine, its = (told(model, contexts, answers, room) for model in (policy, reference))
    each = (np.exp(mine.log_probs) * (mine.log_probs - its.log_probs)).sum(axis=-1)
    return float(np.where(mine.known, each, 0.0).sum(axis=1).mean())


def distances(
    policy: Model, reference: Model, desk: Desk, symbols: np.ndarray, written: Sequence[Answers]
) -> list[float]:
    """KL of each step from the reference's, nats: of y_0's direct prompt, then of each revision given its
    draft. written: samples at temperature 1 and free length."""
    asked = [prompt(x) for x in symbols]
    room = SAMPLED.tokens(desk)
    found = [kl(policy, reference, [p.direct for p in asked], written[0], room)]
    for shown, answers in itertools.pairwise(written):
        contexts = [p.improve(y) for p, y in zip(asked, shown, strict=True)]
        found.append(kl(policy, reference, contexts, answers, room))
    return found


def best_of(model: Model, desk: Desk, symbols: np.ndarray, count: int, seed: int) -> float:
    """Win rate in percent of that of `count` samples which is likeliest under the model."""
    way = SAMPLED
    repeated = np.repeat(symbols, count, axis=0)
    (answers,) = write(model, desk, repeated, way, 0, seed)
    contexts = [prompt(x).direct for x in repeated]
    likelihood = told(model, contexts, answers, way.tokens(desk)).log_likelihood()
    chosen = likelihood.reshape(-1, count).argmax(axis=1) + count * np.arange(len(symbols))
    return float(win_rates(desk, repeated[chosen], [answers[i] for i in chosen]).mean())
