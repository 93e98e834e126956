"""The PyTorch peers compute what ours computes: same weights, same pairs, same loss, in float32."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks import workload
from benchmarks.workload import Workload
from srpo_jax import objectives
from srpo_jax.models import creation
from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import scoring, step
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer

NEEDS_BENCH = "the peers are an extra: install srpo_jax[bench] to run this test"
torch = pytest.importorskip("torch", reason=NEEDS_BENCH)
pytest.importorskip("transformers", reason=NEEDS_BENCH)

from benchmarks import peers_torch  # noqa: E402

SRPO, DPO = objectives.get("srpo"), objectives.get("dpo")
HYPER = {"beta": 0.1, "alpha": 0.3}
STEPS = 3
LATER = 1e-3  # AdamW divides by a gradient's size: rounding of the smallest ones grows
CONFIG = DecoderConfig(
    vocab_size=97,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    layer_kinds=(LayerKind(rope=Rope(500.0)),),
    norm_eps=1e-3,
    tied=False,
    dtype="float32",
    remat="none",
)
WORK = Workload(pairs=3, prompt=11, completion=5, vocabulary=CONFIG.vocab_size)


LEARNING_RATE = 1e-2  # large enough for a wrong gradient to show in the next loss


@pytest.fixture(scope="module")
def start():
    """graphdef and parameters, larger than at initialisation so that scores differ from each other."""
    mesh = mesh_module.make(devices=jax.devices()[:1])
    graphdef, trained, _ = creation.create(CONFIG, None, mesh, 0)
    return graphdef, jax.tree.map(lambda x: 2 * x, trained)


@pytest.fixture(scope="module")
def weights(start):
    flat = nnx.to_flat_state(start[1])
    return {".".join(map(str, path)): np.asarray(v.get_value()) for path, v in flat}


@pytest.fixture(scope="module")
def scores(start):
    """Ours from trees, [B, 6]."""
    graphdef, trained = start
    rows = workload.trees_batch(WORK, SRPO.needs)["rows"]
    score = jax.jit(lambda state: scoring.score(nnx.merge(graphdef, state), rows, SRPO.needs))
    by_name = score(trained)
    return by_pair(rows, np.stack([by_name[name] for name in SRPO.needs], -1))


@pytest.fixture(scope="module")
def reference(scores):
    """Of an imagined reference policy near the policy, [B, 6]."""
    return scores + np.random.default_rng(0).normal(size=scores.shape).astype(np.float32)


@pytest.fixture(autouse=True)
def learning_rate(monkeypatch):
    monkeypatch.setitem(peers_torch.ADAMW, "lr", LEARNING_RATE)


def by_pair(rows, values):
    """[places, ...] -> [B, ...], in the order of the pairs."""
    places = np.asarray(rows.pair).reshape(-1)
    return np.asarray(values)[np.argsort(places, kind="stable")][(places < 0).sum() :]


def our_losses(start, objective, reference, hyper):
    """Of STEPS steps on trees; reference [B, n] in the order of objective.needs."""
    graphdef, trained = start
    mesh = mesh_module.make(devices=jax.devices()[:1])
    settings = OptimizerSettings(learning_rate=LEARNING_RATE, warmup_steps=0, schedule="constant")
    optimizer, _ = make_optimizer(settings, steps=100)
    steps = step.TrainStep(graphdef, optimizer, objective, hyper, mesh).compile(trained)
    batch = workload.trees_batch(WORK, objective.needs)
    pair = batch["rows"].pair
    for i, name in enumerate(objective.needs):
        batch["reference"][name] = np.where(pair >= 0, reference[pair, i], 0).astype(np.float32)
    trained = jax.tree.map(jnp.copy, trained)  # the step donates its state
    state, losses = step.TrainState(trained, steps.init(trained)), []
    for _ in range(STEPS):
        state, metrics = steps.train(state, nnx.State({}), batch)
        losses.append(float(metrics["loss"]))
    return losses


def test_torch_model_has_the_weights_in_their_places(start, weights):
    """Against the logits of the decoder, with tied embeddings as well."""
    for tied in (False, True):
        config = dataclasses.replace(CONFIG, tied=tied)
        given = {k: v for k, v in weights.items() if not (tied and k.startswith("head."))}
        mesh = mesh_module.make(devices=jax.devices()[:1])
        here = nnx.merge(*creation.create(config, given, mesh, 0))
        ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, (1, 20))
        mask = jnp.tril(jnp.ones((1, 20, 20), bool))
        expected = here.logits(here(jnp.asarray(ids), jnp.arange(20)[None], mask))
        with torch.no_grad():
            logits = peers_torch.torch_model(given, config)(torch.from_numpy(ids)).logits
        np.testing.assert_allclose(logits, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize("project_all", [True, False])
def test_six_rows_give_the_scores_of_the_trees(weights, scores, project_all):
    pairs = WORK.sequences(SRPO.needs)
    rows = peers_torch.padded([sequence for pair in pairs for sequence in pair])
    model = peers_torch.torch_model(weights, CONFIG)
    with torch.no_grad():
        there = peers_torch.row_scores(model, rows, "float32", project_all).view(-1, 6)
    np.testing.assert_allclose(there, scores, rtol=1e-4)


def test_six_rows_take_our_steps(start, weights, reference):
    """Loss, gradient, clipping and AdamW: the losses of several steps are ours."""
    pairs = WORK.sequences(SRPO.needs)
    peer = peers_torch.torch_six_rows(weights, CONFIG, pairs, reference, **HYPER)
    expected = our_losses(start, SRPO, reference, HYPER)
    first, *later = [peer() for _ in range(STEPS)]
    np.testing.assert_allclose(first, expected[0], rtol=1e-4)
    np.testing.assert_allclose(later, expected[1:], rtol=LATER)


@pytest.mark.parametrize("precompute_reference", [True, False])
def test_trl_takes_our_dpo_steps(start, weights, scores, precompute_reference):
    """TRL's reference is the policy it starts from, so ours is given those scores."""
    pytest.importorskip("trl", reason=NEEDS_BENCH)
    from benchmarks.peers_trl import trl_dpo

    pairs = WORK.sequences(DPO.needs)
    peer = trl_dpo(weights, CONFIG, pairs, beta=0.1, precompute_reference=precompute_reference)
    expected = our_losses(start, DPO, scores[:, :2], {"beta": 0.1})
    first, *later = [peer() for _ in range(STEPS)]
    np.testing.assert_allclose(first, expected[0], rtol=1e-4)
    np.testing.assert_allclose(later, expected[1:], rtol=LATER)


def test_trl_is_given_the_tokens_and_scores_them_as_we_do(weights, scores):
    pytest.importorskip("trl", reason=NEEDS_BENCH)
    from benchmarks.peers_trl import make_trainer

    pairs = WORK.sequences(DPO.needs)
    trainer = make_trainer(weights, CONFIG, pairs, 0.1, precompute_reference=True)
    for row, ((prompt, chosen), (_, rejected)), expected in zip(
        trainer.train_dataset, pairs, scores, strict=True
    ):
        assert row["prompt_ids"] == [*prompt]
        assert (row["chosen_ids"], row["rejected_ids"]) == ([*chosen], [*rejected])
        theirs = row["ref_chosen_logps"], row["ref_rejected_logps"]
        np.testing.assert_allclose(theirs, expected[:2], rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trls_own_loop_takes_the_same_step(weights, checkpointing):
    """The step that is timed leaves the weights that `trainer.train()` leaves."""
    pytest.importorskip("trl", reason=NEEDS_BENCH)
    from benchmarks import peers_trl

    def make():
        pairs = WORK.sequences(DPO.needs)
        return peers_trl.make_trainer(weights, CONFIG, pairs, 0.1, True, checkpointing)

    looped, stepped = make(), make()
    looped.train()
    peers_trl.stepper(stepped)()
    assert stepped.model.is_gradient_checkpointing == checkpointing
    for mine, theirs in zip(stepped.model.parameters(), looped.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_adapters_alone_are_trained(weights):
    pytest.importorskip("peft", reason=NEEDS_BENCH)
    config = dataclasses.replace(CONFIG, lora_rank=2, lora_targets=("query|value", "down"))
    model = peers_torch.torch_model(weights, config)
    peers_torch.adapt(model, config)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == CONFIG.layers * 3 * 2
    assert all(re.search(r"(q_proj|v_proj|down_proj)\.lora_", name) for name in trained)
