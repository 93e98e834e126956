"""What may be trained, and in which dtype: frozen parts, bfloat16 with a master, dropout of adapters."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax import objectives
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models import creation, loading
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.models.settings import LoraSettings, ModelSettings
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline, scoring, step
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer

pytestmark = pytest.mark.usefixtures("compiled_once")
SMALL = DecoderConfig(
    vocab_size=ByteTokenizer.vocab_size,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
    remat="none",
)
LORA = dataclasses.replace(SMALL, lora_rank=4, lora_targets=("query", "down"), lora_dropout=0.5)


@pytest.fixture(scope="module")
def batches():
    pairs = [Pair(f"{i}", "yes" if i % 2 else "oh", "no", 0.9) for i in range(8)]
    data = pipeline.prepare(pairs, Renderer("plain", ByteTokenizer()), ("w", "l"), max_length=512)
    data.reference = {name: np.full(len(data), -12.0, np.float32) for name in ("w", "l")}
    return list(itertools.islice(pipeline.batches(data, data.packing(8, 0, packed=False), 0), 6))


def run(architecture, batches, *, rate=1e-3, mesh=None, seed=0, **options):
    """The parameters before and after, {name: array}, and the losses."""
    mesh = mesh or mesh_module.make(devices=jax.devices()[:1])
    settings = OptimizerSettings(learning_rate=rate, warmup_steps=0, schedule="constant")
    graphdef, trained, frozen = creation.create(architecture, None, mesh, 0)
    optimizer, _ = make_optimizer(settings, steps=100)
    objective = objectives.get("dpo")
    steps = step.TrainStep(
        graphdef, optimizer, objective, {"beta": 0.1}, mesh, seed=seed, **options
    ).compile(trained)
    flat = lambda state: {
        ".".join(map(str, p)): np.array(v.get_value()) for p, v in nnx.to_flat_state(state)
    }
    before, losses = flat(trained), []
    state = step.TrainState(trained, steps.init(trained))
    for batch in batches:
        state, metrics = steps.train(state, frozen, mesh_module.host_to_global(mesh, batch))
        losses.append(float(metrics["loss"]))
    return before, flat(state.model), losses


def test_frozen_parts_have_no_optimiser_and_stay(batches):
    config = dataclasses.replace(SMALL, frozen=("embedder.*", r"blocks\.mlp\..*"))
    before, after, _ = run(config, batches[:2])
    assert not any(name.startswith(("embedder", "blocks.mlp.")) for name in after)
    assert all((before[name] != after[name]).any() for name in after)
    assert "blocks.attention.query.kernel" in after


@pytest.mark.parametrize(
    ("frozen", "rank", "message"),
    [
        (("nothing.*",), 0, "'nothing.*' matches no parameter; there are blocks.attention"),
        ((".*",), 0, "leaves nothing to train"),
        (("(",), 0, "is no pattern"),
        (("embedder.*",), 4, "means nothing with LoRA"),
    ],
)
def test_patterns_that_make_no_sense_are_named(frozen, rank, message):
    with pytest.raises(UserError) as error:
        loading.decoder_config(ModelSettings(source="tiny"), LoraSettings(rank=rank), frozen)
    assert message in str(error.value)


@pytest.mark.slow
def test_a_master_keeps_what_bfloat16_rounds_away(batches):
    """Steps of 1e-6 vanish in bfloat16 weights of order 0.2, and add up in their float32 copy."""
    config = dataclasses.replace(SMALL, parameters="bfloat16")
    name = "blocks.mlp.up.kernel"
    exact = run(SMALL, batches, rate=1e-4)
    kept = run(config, batches, rate=1e-4)
    lost = run(config, batches, rate=1e-4, master=False)
    assert kept[1][name].dtype == jnp.bfloat16
    assert kept[1]["final_norm.scale"].dtype == np.float32
    moved = lambda result: result[1][name].astype(np.float32) - result[0][name].astype(np.float32)
    goal = moved(exact)
    # Both are rounded to bfloat16 at the end; only the one without a master loses every small step.
    assert np.abs(moved(kept) - goal).mean() < 0.8 * np.abs(moved(lost) - goal).mean()
    # Scores of 12 nats from weights of 8 bits.
    np.testing.assert_allclose(kept[2], exact[2], atol=0.05)


def test_what_the_backward_pass_keeps_changes_no_number(batches):
    _, expected, _ = run(SMALL, batches[:2])
    for remat in ("dots", "full", "offload"):
        _, found, _ = run(dataclasses.replace(SMALL, remat=remat), batches[:2])
        for name, value in found.items():
            said = f"{remat}: {name}"
            np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-6, err_msg=said)


def test_a_step_that_is_not_finite_changes_nothing_nor_does_one_behind_it(batches):
    mesh = mesh_module.make(devices=jax.devices()[:1])
    graphdef, trained, frozen = creation.create(SMALL, None, mesh, 0)
    optimizer, _ = make_optimizer(OptimizerSettings(warmup_steps=0), steps=100)
    steps = step.TrainStep(graphdef, optimizer, objectives.get("dpo"), {"beta": 0.1}, mesh)
    programs = steps.compile(trained)
    kept = lambda state: [np.array(x) for x in jax.tree.leaves(state)]
    state = step.TrainState(trained, programs.init(trained))
    good = mesh_module.host_to_global(mesh, batches[0])
    bad = good | {"label_prob": good["label_prob"] * np.nan}
    finite, states, said = mesh_module.replicate(mesh, step.FINITE), [], []
    for batch in (good, bad, good):
        state, metrics = programs.train(state, frozen, batch, finite)
        finite = metrics["finite"]
        states.append(kept(state))
        said.append((float(finite), bool(np.isfinite(metrics["loss"]))))
    assert said == [(1.0, True), (0.0, False), (0.0, True)]
    assert programs.train._cache_size() == 1, "compiled once"
    for first, second, third in zip(*states, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)


@pytest.mark.slow
def test_dropout_is_drawn_anew_each_step_and_the_same_on_a_mesh(batches):
    same = [batches[0]] * 3
    _, one, losses = run(LORA, same, rate=1e-2)
    _, again, _ = run(LORA, same, rate=1e-2)
    _, other, _ = run(LORA, same, rate=1e-2, seed=1)
    _, several, _ = run(LORA, same, rate=1e-2, mesh=mesh_module.make(fsdp=4, tensor=2))
    name = "blocks.mlp.down.lora_b"
    np.testing.assert_array_equal(one[name], again[name])
    assert (one[name] != other[name]).any()
    np.testing.assert_allclose(one[name], several[name], atol=1e-4)
    assert len(set(losses)) == 3


def test_dropout_is_for_training_only(batches):
    graphdef, adapters, base = nnx.split(Decoder(LORA, nnx.Rngs(0)), creation.trainable(LORA), ...)
    model = nnx.merge(graphdef, jax.tree.map(lambda a: a + 0.1, adapters), base)
    rows = batches[0]["rows"]
    plain = scoring.score(model, rows, ("w", "l"))["w"]
    np.testing.assert_array_equal(plain, scoring.score(model, rows, ("w", "l"))["w"])
    key = jax.random.key(0)
    drawn = scoring.score(model, rows, ("w", "l"), dropout=key)["w"]
    assert (drawn != plain).all()
    off = scoring.score(model, rows, ("w", "l"), adapter=False, dropout=key)["w"]
    np.testing.assert_array_equal(off, scoring.score(model, rows, ("w", "l"), adapter=False)["w"])


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 4}, {"fsdp": 4, "tensor": 2}])
def test_a_fresh_adapter_is_the_base_exactly_on_a_mesh(batches, sizes):
    config = dataclasses.replace(LORA, heads=8, kv_heads=4)
    mesh = mesh_module.make(**sizes)
    graphdef, adapters, base = creation.create(config, None, mesh, 0)
    rows = mesh_module.host_to_global(mesh, batches[0]["rows"])

    def scores(adapters, base, rows, adapter):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            model = nnx.merge(graphdef, adapters, base)
            return scoring.score(model, rows, ("w", "l"), adapter=adapter)

    program = jax.jit(scores, static_argnums=3)
    with_adapter, without = (program(adapters, base, rows, on) for on in (True, False))
    np.testing.assert_array_equal(with_adapter["w"], without["w"])
