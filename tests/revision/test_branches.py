"""Completions behind shared prompts against the loop that prefills every row for itself."""

import dataclasses

import jax
import pytest
from flax import nnx

from srpo_jax import revision
from srpo_jax.models.architecture import LayerKind
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.prompts import Prompt
from srpo_jax.revision import Branch, Sampling, Trunks, programs
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError

CONFIG = DecoderConfig(
    vocab_size=14,
    width=32,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    dtype="float32",
    max_length=96,
)
EOS = 2
TRUNKS = [(3, 4, 5, 6), (3, 11, 12, 4, 5, 6, 6), (5, 6)]
# The prompt itself, more behind it, another way from its middle, nothing in common, a part of it.
BRANCHES = [
    Branch(1, TRUNKS[1], 6),
    Branch(1, (*TRUNKS[1], 8, 9, 8, 9, 8), 1),
    Branch(0, (3, 4, 9, 9), 4),
    Branch(2, (8,), 2),
    Branch(1, TRUNKS[1][:3], 0),
    Branch(1, TRUNKS[1], 3),
    Branch(0, TRUNKS[0], 5),
]
SAMPLING = Sampling(max_new_tokens=6, temperature=2.0, top_p=0.95, batch_size=4)


def made(config=CONFIG):
    graphdef, state = nnx.split(Decoder(config, nnx.Rngs(0)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: 3 * x, state))


@pytest.fixture(scope="module")
def model():
    return made()


def apart(model):
    """Each branch as a prompt of its own."""
    prompts = [Prompt(branch.ids, branch.ids, ()) for branch in BRANCHES]
    rows = [branch.row for branch in BRANCHES]
    written = revision.revise_ids(model, prompts, 0, SAMPLING, eos=EOS, seed=1, rows=rows)
    return [ys[0] for ys in written]


def together(model):
    trunks = Trunks.of(model, TRUNKS, SAMPLING, eos=(EOS,), seed=1)
    return [trunks.write(BRANCHES), trunks.write(BRANCHES)]


def test_what_follows_a_shared_prompt_is_what_follows_it_alone(model):
    want = apart(model)
    assert len({tuple(y) for y in want}) > 4
    assert want[0] != want[5], "two of one prompt are drawn apart"
    # Twice: the prompts stay in the cache.
    assert together(model) == [want, want]


def test_layers_with_a_window_know_the_positions_of_a_shared_prompt():
    windowed = made(dataclasses.replace(CONFIG, layer_kinds=(LayerKind(window=3),)))
    assert apart(windowed) != apart(made())
    assert together(windowed)[0] == apart(windowed)


def test_layers_in_one_array_change_nothing(model, monkeypatch):
    want = apart(model)
    monkeypatch.setattr(programs, "_unrolled", lambda graphdef, state: None)
    assert together(model)[0] == want


def test_a_mesh_changes_nothing(model):
    graphdef, state = nnx.split(model)
    mesh = mesh_module.make(fsdp=2, tensor=2, devices=jax.devices()[:4])
    sharded = jax.device_put(state, mesh_module.parameter_shardings(mesh, state))
    assert together(nnx.merge(graphdef, sharded))[0] == apart(model)


def test_a_prompt_is_prefilled_once_and_a_branch_from_where_it_departs(model, monkeypatch):
    seen = []

    def spied(name):
        program = getattr(programs, name)

        def spy(*arguments):
            seen.append((name, arguments[-1].tokens.shape))
            return program(*arguments)

        return spy

    for name in ("prefill", "extend"):
        monkeypatch.setattr(programs, name, spied(name))
    trunks = Trunks.of(model, TRUNKS[1:2], SAMPLING, eos=(EOS,), seed=0)
    trunks.write([Branch(0, (*TRUNKS[1], 8), row) for row in range(4)])
    assert seen == [("prefill", (1, 8)), ("extend", (4, 4))]


def test_a_branch_too_long_for_the_models_positions_is_refused(model):
    trunks = Trunks.of(model, TRUNKS, SAMPLING, eos=(EOS,), seed=0)
    with pytest.raises(UserError, match="prompt 1 needs 94 tokens"):
        trunks.write([BRANCHES[0], Branch(0, (*TRUNKS[0], *[8] * 90), 1)])
