"""The train step: the same on every mesh and in every number of parts."""

import itertools
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from srpo_jax import objectives
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models import creation
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline, scoring, step
from srpo_jax.training.optimizer import OptimizerSettings, _decayed, make_optimizer
from srpo_jax.trees.packing import RowShape

MESHES = {
    "one device": {"devices": 1},
    "fsdp 8": {"fsdp": 8},
    "fsdp 4, tensor 2": {"fsdp": 4, "tensor": 2},
    "fsdp 2, tensor 4": {"fsdp": 2, "tensor": 4},  # more than there are key heads
    "replica 2, fsdp 2, tensor 2": {"replica": 2, "fsdp": 2, "tensor": 2},
    "other rules": {
        **{"replica": 2, "fsdp": 2, "tensor": 2},
        "rules": ("embed=replica+fsdp", "vocab=None", "mlp = None", "batch=fsdp"),
    },
}
STEPS, BATCH = 4, 8


def architecture(rank: int) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=ByteTokenizer.vocab_size,
        width=32,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=8,
        mlp_width=48,
        dtype="float32",
        remat="none",
        lora_rank=rank,
        lora_targets=("query|value", "down") if rank else (),
    )


def make_mesh(name: str) -> jax.sharding.Mesh:
    sizes = dict(MESHES[name])
    return mesh_module.make(**sizes | {"devices": jax.devices()[: sizes.get("devices", 8)]})


@pytest.fixture(scope="module")
def data():
    """Pairs with reference scores near those of the model."""
    pairs = [Pair(f"{i}", "yes" if i % 2 else "oh", "no", 0.9) for i in range(12)]
    needs = objectives.get("srpo").needs
    data = pipeline.prepare(pairs, Renderer("plain", ByteTokenizer()), needs, max_length=512)
    rng = np.random.default_rng(0)
    lengths = np.array([tree.lengths for tree in data.trees]).T
    data.reference = {
        name: (-5.6 * n + rng.normal(size=len(data))).astype(np.float32)
        for name, n in zip(needs, lengths, strict=True)
    }
    return data


@pytest.fixture(scope="module")
def batches(data):
    """One pair a row, as numpy."""
    packing = data.packing(BATCH, 0, packed=False)
    return list(itertools.islice(pipeline.batches(data, packing, 0), STEPS))


class Run(NamedTuple):
    """What a few steps left behind."""

    metrics: list[dict[str, float]]
    before: dict[str, np.ndarray]
    after: dict[str, np.ndarray]
    state: step.TrainState
    frozen_changed: bool
    donated: bool


def arrays(state: Any) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(state)
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in flat}


@pytest.fixture(scope="module")
def run(batches):
    kept: dict[Any, Run] = {}

    def one(mesh_name: str, rank: int = 0, accumulate: int = 1) -> Run:
        key = (mesh_name, rank, accumulate)
        if key not in kept:
            kept[key] = make_run(*key)
        return kept[key]

    def make_run(mesh_name: str, rank: int, accumulate: int) -> Run:
        mesh = make_mesh(mesh_name)
        settings = OptimizerSettings(learning_rate=3e-3, warmup_steps=1, weight_decay=0.01)
        graphdef, trained, frozen = creation.create(architecture(rank), None, mesh, 0)
        optimizer, _ = make_optimizer(settings, STEPS)
        hyper = {"beta": 0.1, "alpha": 0.5}
        steps = step.TrainStep(
            graphdef, optimizer, objectives.get("srpo"), hyper, mesh, accumulate=accumulate
        ).compile(trained)
        before, frozen_before = arrays(trained), arrays(frozen)
        state, metrics = step.TrainState(trained, steps.init(trained)), []
        del trained
        for batch in batches:
            given = jax.tree.leaves(state)
            state, values = steps.train(state, frozen, mesh_module.host_to_global(mesh, batch))
            metrics.append({name: float(value) for name, value in values.items()})
        donated = all(leaf.is_deleted() for leaf in given)
        changed = any((frozen_before[k] != v).any() for k, v in arrays(frozen).items())
        return Run(metrics, before, arrays(state.model), state, changed, donated)

    return one


@pytest.mark.parametrize(
    ("mesh_name", "rank"),
    [
        ("fsdp 2, tensor 4", 0),
        ("fsdp 8", 4),
        ("replica 2, fsdp 2, tensor 2", 4),
        ("other rules", 0),
        pytest.param("fsdp 8", 0, marks=pytest.mark.slow),
        pytest.param("replica 2, fsdp 2, tensor 2", 0, marks=pytest.mark.slow),
        pytest.param("fsdp 4, tensor 2", 0, marks=pytest.mark.slow),
        pytest.param("fsdp 4, tensor 2", 4, marks=pytest.mark.slow),
    ],
)
def test_every_mesh_takes_the_same_steps(run, mesh_name, rank):
    """Losses and gradients to 1e-4 relative: float32 sums of another order, then 4 steps of Adam."""
    here, there = run(mesh_name, rank), run("one device", rank)
    for name, before in there.before.items():
        np.testing.assert_allclose(here.before[name], before, atol=1e-6, err_msg=name)
        moved = np.abs(here.after[name] - here.before[name]).max()
        assert moved > 1e-3, f"{name} did not move"
    for i in range(STEPS):
        for name in ("loss", "loss_generative", "loss_improve", "grad_norm", "log_ratio"):
            here_value, there_value = here.metrics[i][name], there.metrics[i][name]
            np.testing.assert_allclose(here_value, there_value, rtol=1e-4, err_msg=f"{i} {name}")
    assert here.metrics[-1]["loss"] < 0.9 * here.metrics[0]["loss"]


def test_arrays_lie_as_the_rules_of_the_run_say(run):
    """Width over four devices, heads over two, vocabulary and MLP whole; the optimiser's state too."""
    state = run("other rules").state
    flat = nnx.to_flat_state(state.model)
    placed = {".".join(map(str, path)): variable.get_value() for path, variable in flat}

    def parts(x: jax.Array) -> list[float]:
        return np.divide(x.shape, x.addressable_shards[0].data.shape).tolist()

    embedding = placed["embedder.embedding"]
    assert parts(embedding) == [1, 4]
    assert parts(placed["blocks.attention.query.kernel"]) == [1, 4, 2, 1]
    assert parts(placed["blocks.mlp.down.kernel"]) == [1, 1, 4]
    moments = [x for x in jax.tree.leaves(state.optimizer) if x.shape == embedding.shape]
    assert [parts(x) for x in moments] == [[1, 4], [1, 4]]


@pytest.mark.parametrize("rank", [0, 4], ids=["all weights", "adapters"])
def test_only_what_is_trained_changes(run, rank):
    result = run("one device", rank)
    assert not result.frozen_changed
    assert all(("lora_" in name) == bool(rank) for name in result.after)


@pytest.mark.parametrize("mesh_name", ["one device", "fsdp 2, tensor 4"])
def test_the_state_is_donated(run, mesh_name):
    assert run(mesh_name).donated


def test_accumulated_gradients_are_those_of_the_whole_batch(run):
    whole, parts = run("one device"), run("one device", accumulate=4)
    for one, other in zip(whole.metrics, parts.metrics, strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose([*one.values()], [*other.values()], rtol=1e-4, atol=1e-5)


def test_scores_of_parts_are_those_of_the_whole_batch(data, batches):
    mesh = make_mesh("one device")
    graphdef, trained, frozen = creation.create(architecture(0), None, mesh, 0)
    optimizer, _ = make_optimizer(OptimizerSettings(), STEPS)
    rows, found, held = mesh_module.host_to_global(mesh, batches[0]["rows"]), [], []
    for parts in (1, BATCH):
        one = step.TrainStep(
            graphdef, optimizer, objectives.get("srpo"), {}, mesh, accumulate=parts
        )
        program = jax.jit(one.reference).lower(trained, frozen, rows).compile()
        held.append(program.memory_analysis().temp_size_in_bytes)
        scores, pair = program(trained, frozen, rows)
        found.append(scores)
        np.testing.assert_array_equal(pair, batches[0]["rows"].pair.reshape(-1))
    for name, values in found[0].items():
        assert len(np.unique(values)) == BATCH
        np.testing.assert_allclose(found[1][name], values, rtol=1e-5, err_msg=name)
    assert held[1] < 0.5 * held[0], "what fits in training must fit here"


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_packed_batch_has_the_loss_and_gradient_of_the_same_pairs_apart(data, accumulate):
    """On 2 x 2 devices, 5 pairs in 4 rows against 5 rows on one. Float32 sums in another order."""
    optimizer, _ = make_optimizer(OptimizerSettings(), steps=100)
    objective, hyper = objectives.get("srpo"), {"beta": 0.1, "alpha": 0.5}
    shape = RowShape(384, 160, 3)
    layouts = {
        "apart": ({"devices": 1}, [[i] for i in range(5)]),
        "packed": ({"devices": 4, "fsdp": 2, "tensor": 2}, [[0, 3], [1], [4, 2], []]),
    }
    results = {}
    for name, (sizes, rows) in layouts.items():
        mesh = mesh_module.make(**sizes | {"devices": jax.devices()[: sizes["devices"]]})
        graphdef, trained, frozen = creation.create(architecture(0), None, mesh, 0)
        parts = accumulate if name == "packed" else 1
        steps = step.TrainStep(
            graphdef, optimizer, objective, hyper, mesh, accumulate=parts
        ).compile(trained)
        batch = pipeline.collate([data.row(row, shape) for row in rows])
        state = step.TrainState(trained, steps.init(trained))
        state, metrics = steps.train(state, frozen, mesh_module.host_to_global(mesh, batch))
        adam = next(p for p in jax.tree.leaves(state.optimizer, is_leaf=_adam) if _adam(p))
        results[name] = metrics, arrays(adam.mu)
    (packed, moments), (apart, expected) = results["packed"], results["apart"]
    assert packed.keys() == apart.keys()
    for name in packed:
        np.testing.assert_allclose(packed[name], apart[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for name, value in expected.items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(moments[name], value, atol=1e-4 * scale, err_msg=name)


def test_the_parts_of_a_step_can_be_called_alone(batches):
    """The gradient's slope along a direction is the loss's, by central differences in float32.

    To 1e-3 of a slope of about 1: what is cubic in the step, and rounding over the step, are both below.
    """
    mesh, rate = make_mesh("one device"), 0.5
    graphdef, trained, frozen = creation.create(architecture(0), None, mesh, 0)
    hyper = {"beta": 0.1, "alpha": 0.5}
    one = step.TrainStep(graphdef, optax.sgd(rate), objectives.get("srpo"), hyper, mesh)
    batch = mesh_module.host_to_global(mesh, batches[0])
    key, pairs = jax.random.key(0), np.sum(batches[0]["rows"].pair >= 0)
    loss = jax.jit(lambda model: one.loss(model, frozen, batch, pairs, key)[0])
    gradients, metrics = jax.jit(one.gradient)(trained, frozen, batch, key)
    np.testing.assert_allclose(loss(trained), metrics["loss"], rtol=1e-6)
    norm = optax.tree.norm(gradients)
    along = lambda size: jax.tree.map(lambda x, g: x + size * g / norm, trained, gradients)
    slope = (loss(along(1e-2)) - loss(along(-1e-2))) / 2e-2
    np.testing.assert_allclose(slope, norm, rtol=1e-3)
    state = one.update(step.TrainState(trained, one.init(trained)), gradients)
    expected = jax.tree.map(lambda x, g: x - rate * g, trained, gradients)
    for name, value in arrays(expected).items():
        np.testing.assert_allclose(arrays(state.model)[name], value, atol=1e-6, err_msg=name)


def _adam(part):
    return hasattr(part, "mu")


def test_the_optimizers_state_lies_where_the_parameters_do(run):
    def where(tree):
        return {path: v.get_value().sharding for path, v in nnx.to_flat_state(tree)}

    state = run("fsdp 2, tensor 4").state
    parts = jax.tree.leaves(state.optimizer, is_leaf=lambda x: hasattr(x, "mu"))
    adam = next(part for part in parts if hasattr(part, "mu"))
    assert where(adam.mu) == where(adam.nu) == where(state.model)
    spec = where(adam.mu)["blocks", "mlp", "up", "kernel"].spec
    assert spec == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert adam.count.sharding.is_fully_replicated
    assert adam.count == STEPS


def test_adapters_start_as_the_base_and_the_reference_ignores_them(batches):
    rows = batches[0]["rows"]
    mesh = make_mesh("one device")
    objective = objectives.get("srpo")
    base, weights, _ = creation.create(architecture(0), None, mesh, 0)
    names = objective.needs
    plain = jax.jit(scoring.scorer(base, names, adapter=True))(weights, rows)

    graphdef, trained, frozen = creation.create(architecture(4), arrays(weights), mesh, 0)
    both = nnx.merge_state(trained, frozen)
    start = jax.jit(scoring.scorer(graphdef, names, adapter=True))(both, rows)
    for name in names:
        np.testing.assert_array_equal(start[name], plain[name])

    optimizer, _ = make_optimizer(OptimizerSettings(), steps=100)
    steps = step.TrainStep(graphdef, optimizer, objective, {}, mesh).compile(trained)
    moved = jax.tree.map(lambda x: x + 0.1, trained)
    scores, pair = steps.reference(moved, frozen, mesh_module.host_to_global(mesh, rows))
    adapted = scoring.score(nnx.merge(graphdef, moved, frozen), rows, names)
    np.testing.assert_array_equal(pair, rows.pair[:, 0])
    for name in names:
        np.testing.assert_allclose(scores[name], plain[name], rtol=1e-6)
        assert np.abs(adapted[name] - plain[name]).max() > 1e-2


def test_the_learning_rate_warms_up_and_decays():
    _, schedule = make_optimizer(OptimizerSettings(learning_rate=1.0, warmup_steps=4), 20)
    rates = [float(schedule(i)) for i in range(21)]
    np.testing.assert_allclose(rates[:5], [0.2, 0.4, 0.6, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(rates[12], 0.5, rtol=1e-6)
    assert rates[20] == pytest.approx(0, abs=1e-6)
    assert 0 < rates[19] < 0.02
    constant = OptimizerSettings(learning_rate=1.0, schedule="constant", warmup_steps=0)
    _, schedule = make_optimizer(constant, 20)
    assert [float(schedule(i)) for i in (0, 5, 19)] == [1.0, 1.0, 1.0]
    with pytest.raises(UserError, match=r"config\.optimizer\.schedule='linear'"):
        OptimizerSettings(schedule="linear")


def test_weight_decay_leaves_the_norms_alone():
    _, trained, _ = creation.create(architecture(0), None, make_mesh("one device"), 0)
    decayed = arrays(_decayed(trained))
    assert not any(decayed[name] for name in decayed if "norm" in name)
    assert all(decayed[name] for name in decayed if "norm" not in name)
