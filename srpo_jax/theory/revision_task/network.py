"""The task with a transformer: the product's decoder, prefix trees, packing order and train step.

First SFT teaches the start both prompts: answers by the reference writer under the direct prompt, and
under the improve prompt, which shows a draft by that writer, the draft lightly edited. The editor does not
know what is right. Then an objective trains on labelled pairs of answers.

All pairs are laid out once as one batch of rows, a tree a row; a whole run is one program, a scan over the
steps, whose batches are picked by index. The hyperparameters are arguments of the program, so that an
objective is compiled once for all of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax import objectives, prompts
from srpo_jax.models import creation
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.theory.revision_task.desk import EOS, VOCABULARY, Desk, prompt
from srpo_jax.training import pipeline
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer
from srpo_jax.training.step import TrainState, TrainStep
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.forest import Forest
from srpo_jax.trees.order import EARLIER
from srpo_jax.trees.packing import RowShape

State = nnx.State[Any, Any]
SCORED_AT_ONCE = 250  # rows, when the reference scores all pairs
HEADS = 4
# What each draw is for; (seed, one of these) seeds it.
SFT, PAIRS, ORDER, ONLINE = range(4)
# Prompts are the same for all seeds; those of validation are not those of the test.
PROMPTS_SEED = {"validation": 7, "test": 17}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Sizes of the network, of its data and of its training.

    sft_examples: under each of the two prompts. sft_slips: the share of the drafts shown in SFT that lack
    a letter or have one twice; what follows them has the right length: the editor mends such a slip and
    carries it no further. drafts: the two answers of a pair are "independent", or the second is the first
    one "edited". rate, sft_rate: learning rates, cosine to zero.
    """

    width: int = 64
    layers: int = 2
    sft_examples: int = 10_000
    sft_steps: int = 400
    sft_batch: int = 64
    sft_rate: float = 5e-3
    sft_slips: float = 0.3
    pairs: int = 2_000
    steps: int = 250
    batch: int = 32
    rate: float = 2e-3
    drafts: str = "independent"

    def start(self) -> "Recipe":
        """The recipe with only what the start depends on: equal for all trainings from one start."""
        mine = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {key: v for key, v in mine.items() if key in ("width", "layers") or "sft" in key}
        return Recipe(**kept)

    def architecture(self) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=VOCABULARY,
            width=self.width,
            layers=self.layers,
            heads=HEADS,
            kv_heads=HEADS,
            head_dim=self.width // HEADS,
            mlp_width=2 * self.width,
            max_length=64,
            dtype="float32",
            remat="none",
        )


class Model(NamedTuple):
    """A decoder in parts, as `creation.create` makes it."""

    graphdef: nnx.GraphDef[Any]
    trained: State
    frozen: State


class Examples(NamedTuple):
    """names: of the scores. rows: all pairs as one batch (see `pipeline.batches`), a pair a row. order:
    int [steps, batch], which rows form the batch of each step."""

    names: tuple[str, ...]
    rows: dict[str, Any]
    order: np.ndarray


# --- the data -----------------------------------------------------------------------------------------


def sft_examples(desk: Desk, recipe: Recipe, seed: int) -> Examples:
    # To numpy the seeds (17, 0) and 17 are one: SFT would be on the very prompts of the test.
    apart = (1,) if seed == PROMPTS_SEED["test"] else ()
    rng = np.random.default_rng((seed, SFT, *apart))
    direct, shown = (desk.draw(recipe.sft_examples, "in", rng) for _ in range(2))
    answers = desk.write(direct, "reference", rng)
    drafts = desk.write(shown, "reference", rng)
    better = desk.edited(shown, drafts, "reference", rng)
    sequences = [[(prompt(x).direct, _ended(y))] for x, y in zip(direct, answers, strict=True)]
    slips = rng.random(len(drafts)) < recipe.sft_slips
    places = rng.integers(0, desk.places, len(drafts))
    twice = rng.random(len(drafts)) < 0.5
    for i, (x, y) in enumerate(zip(shown, better, strict=True)):
        draft = drafts[i].tolist()
        if slips[i]:
            draft[places[i] : places[i] + 1] = [draft[places[i]]] * (2 if twice[i] else 0)
        sequences.append([(prompt(x).improve(draft), _ended(y))])
    return _laid_out(("w",), sequences, recipe.sft_steps, recipe.sft_batch, seed)


class Labelled(NamedTuple):
    """Pairs of answers with hard labels drawn from P; each int [N, places]."""

    symbols: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


def labelled_pairs(desk: Desk, recipe: Recipe, writer: str, seed: int) -> Labelled:
    rng = np.random.default_rng((seed, PAIRS))
    symbols = desk.draw(recipe.pairs, "in", rng)
    first = desk.write(symbols, writer, rng)
    if recipe.drafts == "edited":
        second = desk.edited(symbols, first, writer, rng)
    else:
        second = desk.write(symbols, writer, rng)
    tallies = [desk.tallies(symbols, answers.tolist())[0] for answers in (first, second)]
    wins = (rng.random(len(symbols)) < desk.preferred_in_pairs(*tallies))[:, None]
    return Labelled(symbols, np.where(wins, first, second), np.where(wins, second, first))


def pair_examples(
    pairs: Labelled, names: tuple[str, ...], steps: int, batch: int, seed: int
) -> Examples:
    sequences = [
        prompts.sequences(prompt(x), w.tolist(), l.tolist(), names, EOS)
        for x, w, l in zip(*pairs, strict=True)
    ]
    return _laid_out(names, sequences, steps, batch, seed)


def _ended(answer: np.ndarray) -> tuple[int, ...]:
    return (*answer.tolist(), EOS)


def _laid_out(
    names: tuple[str, ...], sequences: Sequence[Any], steps: int, batch: int, seed: int
) -> Examples:
    trees = Forest.of(prefix_tree.build(parts) for parts in sequences)
    data = pipeline.PairTrees(names, trees, np.ones(len(trees), np.float32))
    # The order of the published figures. Two seeds share no pairs here, so they may share an order of them.
    packing = data.packing(batch, seed + ORDER, packed=False, rule=EARLIER)
    # No wider than the largest tree: these rows are short, and rounding up would double some.
    shape = RowShape(int(packing.slots.max()), int(packing.targets.max()), 1)
    order = [[pairs[0] for pairs in packing.batch(step).rows] for step in range(steps)]
    rows = pipeline.collate([data.row([i], shape) for i in range(len(data))])
    return Examples(names, rows, np.array(order))


# --- training -----------------------------------------------------------------------------------------


def mesh() -> Any:
    return mesh_module.make(devices=jax.local_devices()[:1])


class Programs(NamedTuple):
    """fit(hyper, model, frozen, rows, order) -> (model, metrics [steps]); scores(model, frozen, rows) ->
    {name: [rows]}."""

    fit: Callable[..., tuple[State, dict[str, jax.Array]]]
    scores: Callable[[State, State, Any], dict[str, jax.Array]]


@functools.cache
def programs(architecture: DecoderConfig, objective: str, steps: int, rate: float) -> Programs:
    graphdef = creation.create(architecture, None, mesh(), 0)[0]
    settings = OptimizerSettings(learning_rate=rate, warmup_steps=min(20, steps // 10))
    optimizer, _ = make_optimizer(settings, steps)
    step = TrainStep(graphdef, optimizer, objectives.get(objective), {}, mesh())

    def fit(
        hyper: Mapping[str, Any], model: State, frozen: State, rows: Any, order: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        mine = dataclasses.replace(step, hyper=hyper)

        def one(state: TrainState, chosen: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
            return mine.train(state, frozen, jax.tree.map(lambda x: x[chosen], rows))

        state, metrics = jax.lax.scan(one, TrainState(model, mine.init(model)), order)
        return state.model, metrics

    def scores(model: State, frozen: State, rows: Any) -> dict[str, jax.Array]:
        def one(row: Any) -> dict[str, jax.Array]:
            found = step.scores(model, frozen, jax.tree.map(lambda x: x[None], row))[0]
            return {name: score[0] for name, score in found.items()}

        whole: dict[str, jax.Array] = jax.lax.map(one, rows, batch_size=SCORED_AT_ONCE)
        return whole

    return Programs(jax.jit(fit), jax.jit(scores))


def scored(model: Model, examples: Examples) -> Examples:
    """The examples with the reference's scores, the model being the reference."""
    program = programs(_architecture_of(model), _scorer(examples.names), 1, 1e-3).scores
    scores = program(model.trained, model.frozen, examples.rows["rows"])
    reference = {name: np.asarray(score)[:, None] for name, score in scores.items()}
    return examples._replace(rows=examples.rows | {"reference": reference})


def _scorer(names: tuple[str, ...]) -> str:
    """An objective that needs these scores."""
    return next(name for name, o in objectives.OBJECTIVES.items() if o.needs == names)


def _architecture_of(model: Model) -> DecoderConfig:
    config: DecoderConfig = nnx.merge(*model).config
    return config


def train(
    model: Model,
    objective: str,
    examples: Examples,
    recipe: Recipe,
    hyper: Mapping[str, float],
    *,
    sft: bool = False,
) -> tuple[Model, dict[str, np.ndarray]]:
    """The model trained on the examples, and its metrics, [steps] each.

    examples: with the reference's scores where the objective reads them. hyper: numbers, traced.
    """
    steps, rate = (recipe.sft_steps, recipe.sft_rate) if sft else (recipe.steps, recipe.rate)
    fit = programs(recipe.architecture(), objective, steps, rate).fit
    traced = {name: jnp.float32(value) for name, value in hyper.items()}
    trained, metrics = fit(traced, model.trained, model.frozen, examples.rows, examples.order)
    return model._replace(trained=trained), jax.device_get(metrics)


@functools.cache
def drawn(recipe: Recipe, seed: int) -> Model:
    """A network that has learned nothing."""
    return Model(*creation.create(recipe.architecture(), None, mesh(), seed))


def begin(desk: Desk, recipe: Recipe, seed: int, kept: Path | None = None) -> Model:
    """The start, SFT on both prompts; read from the file `kept` if it is there, else written to it."""
    if kept is not None and kept.is_file():
        with np.load(kept) as file:
            return Model(*creation.create(recipe.architecture(), dict(file), mesh(), seed))
    examples = sft_examples(desk, recipe, seed)
    model, _ = train(drawn(recipe, seed), "sft", examples, recipe, {}, sft=True)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        flat = nnx.to_flat_state(model.trained)
        arrays = {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in flat}
        part = kept.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        part.replace(kept)
    return model
