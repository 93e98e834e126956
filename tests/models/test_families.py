"""Every family against `transformers` in float32: the same directory, the same logits, the same text."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srpo_jax import revision
from srpo_jax.models import creation, families, huggingface, loading
from srpo_jax.prompts import Prompt
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import scoring
from srpo_jax.trees import prefix_tree
from tests.checkpoints import CASES, LLAMA3_ROPE, SMALL, save

NEEDS_DEV = "the yardstick is an extra: install srpo_jax[dev] to run this test"
torch = pytest.importorskip("torch", reason=NEEDS_DEV)
transformers = pytest.importorskip("transformers", reason=NEEDS_DEV)


def load_here(directory, mesh=None, dtype="float32"):
    config = dataclasses.replace(huggingface.read_config(directory), dtype=dtype, remat="none")
    parameters = huggingface.parameters(directory, config, loading.parameter_shapes(config))
    mesh = mesh or mesh_module.make(devices=jax.devices()[:1])
    return nnx.merge(*creation.create(config, parameters, mesh, seed=0))


# What the cache and the trees do with the others is what they do with one of these.
DIFFERENT = ("llama", "gemma3", "cohere2", "gpt-neox", "qwen3, yarn", "qwen3-moe")
MARKED = [n if n in DIFFERENT else pytest.param(n, marks=pytest.mark.slow) for n in CASES]


@pytest.fixture(scope="module")
def both(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("family")
    there = save(request.param, directory)
    return directory, there, load_here(directory)


@pytest.mark.parametrize("both", list(CASES), indirect=True)
def test_logits_of_a_padded_batch_are_equal(both):
    _, there, here = both
    rng = np.random.default_rng(0)
    ids, lengths = rng.integers(3, 300, (3, 40)), np.array([40, 23, 31])
    there_mask = np.arange(40) < lengths[:, None]
    with torch.no_grad():
        expected = there(
            torch.from_numpy(ids), attention_mask=torch.from_numpy(there_mask.astype(int))
        ).logits.numpy()
    positions = jnp.broadcast_to(jnp.arange(40), ids.shape)
    seen = np.tril(np.ones((40, 40), bool)) & there_mask[:, None]
    got = here.logits(here(jnp.asarray(ids, jnp.int32), positions, jnp.asarray(seen)))
    assert expected.std() > 0.3
    np.testing.assert_allclose(
        np.where(there_mask[..., None], got, 0.0),
        np.where(there_mask[..., None], expected, 0.0),
        atol=2e-4,
        rtol=0,
    )


@pytest.mark.parametrize("both", MARKED, indirect=True)
def test_fifty_greedy_tokens_are_equal(both):
    """Through the cache, from prompts of different lengths in one batch."""
    _, there, here = both
    rng = np.random.default_rng(1)
    prompts = [tuple(int(t) for t in rng.integers(3, 300, n)) for n in (5, 17, 11)]
    sampling = Sampling(max_new_tokens=50, batch_size=3)
    got = revision.revise_ids(here, [Prompt(p, p, ()) for p in prompts], 0, sampling, eos=-1)
    there.generation_config.eos_token_id = None  # no token ends a text, on either side
    settings = transformers.GenerationConfig(max_new_tokens=50, do_sample=False, pad_token_id=0)
    for prompt, (written,) in zip(prompts, got, strict=True):
        with torch.no_grad():
            expected = there.generate(torch.tensor([prompt]), generation_config=settings)
        assert written == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("both", MARKED, indirect=True)
def test_packed_trees_score_as_separate_rows_do(both):
    """Windows, soft caps and rotation reach the packed rows, dense and blockwise, as plain ones."""
    _, there, here = both
    rng = np.random.default_rng(2)
    draw = lambda n: [int(t) for t in rng.integers(3, 300, n)]

    def four(x, tail, a, b):
        return [(x, a), (x, b), ([*x, *tail], a), ([*x, *tail], b)]

    pairs = [four(draw(21), draw(4), draw(9), draw(6)), four(draw(15), draw(3), draw(5), draw(8))]
    rows = prefix_tree.stack([prefix_tree.pack([*map(prefix_tree.build, pairs)], 128, 80)])
    for kind in ("dense", "blockwise"):
        here.config = dataclasses.replace(here.config, attention=kind)
        got = scoring.score(here, rows, ("0", "1", "2", "3"))
        for place, pair in enumerate(pairs):
            for i, (prompt, completion) in enumerate(pair):
                ids = torch.tensor([[*prompt, *completion]])
                with torch.no_grad():
                    logp = there(ids).logits[0].log_softmax(-1)
                places = range(len(prompt) - 1, ids.shape[1] - 1)
                expected = sum(logp[p, ids[0, p + 1]].item() for p in places)
                np.testing.assert_allclose(got[str(i)][place], expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2", "olmo2", "gpt-neox"])
def test_a_mesh_changes_no_score(name, tmp_path):
    """8 devices, parameters cut along both axes; sums in another order."""
    save(name, tmp_path)
    mesh = mesh_module.make(fsdp=4, tensor=2)
    rng = np.random.default_rng(3)
    draw = lambda n: [int(t) for t in rng.integers(3, 300, n)]
    trees = [prefix_tree.build([(x := draw(12), draw(5)), (x, draw(5))]) for _ in range(4)]
    rows = prefix_tree.stack([prefix_tree.pad(tree, 32, 16) for tree in trees])
    one = scoring.score(load_here(tmp_path), rows, ("w", "l"))
    model = load_here(tmp_path, mesh)
    graphdef, state = nnx.split(model)

    def scores(state, rows):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return scoring.score(nnx.merge(graphdef, state), rows, ("w", "l"))

    several = jax.jit(scores)(state, mesh_module.host_to_global(mesh, rows))
    for score in ("w", "l"):
        np.testing.assert_allclose(several[score], one[score], atol=1e-4)


OLD_STYLE = {
    "llama": {
        "rope_theta": 300.0,
        "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"},
    },
    "gemma3": {
        "rope_theta": 900.0,
        "rope_local_base_freq": 100.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window_pattern": 6,
    },
    "gpt-neox": {"rotary_pct": 0.25, "rotary_emb_base": 10000},
}


@pytest.mark.parametrize(
    ("name", "new"), [("llama", "llama 3.1"), ("gemma3",) * 2, ("gpt-neox",) * 2]
)
def test_configs_from_before_transformers_5_mean_the_same(name, new):
    """Published checkpoints keep rope_theta and rope_scaling apart, and no layer_types."""
    kind, changes = CASES[new]
    content = getattr(transformers, kind)(**SMALL | changes).to_dict()
    old = {k: v for k, v in content.items() if k not in ("rope_parameters", "layer_types")}
    path = "config.json"
    assert families.architecture(path, old | OLD_STYLE[name]) == families.architecture(
        path, content
    )


def test_the_text_part_of_a_config_that_says_little_is_what_transformers_takes_it_for():
    """As Gemma 3 4B is published: only what differs from the defaults of `transformers`."""
    said = {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}
    said |= {"model_type": "gemma3_text", "sliding_window": 1024}
    said |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    content = {"model_type": "gemma3", "torch_dtype": "bfloat16", "eos_token_id": [1, 106]}
    content |= {"text_config": said, "vision_config": {"hidden_size": 1152}}
    ours = families.text_part(content)
    theirs = transformers.Gemma3TextConfig(**said).to_dict()
    assert families.architecture("config.json", ours) == families.architecture(
        "config.json", theirs
    )
    assert (ours["eos_token_id"], ours["torch_dtype"]) == ([1, 106], "bfloat16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "holds a model of the kind 'mamba'; known are llama, mistral"),
        ({"hidden_act": "relu2"}, "asks for the activation 'relu2'"),
        ({"attention_dropout": 0.1}, r"asks for attention_dropout=0\.1"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}}, "of the kind 'dynamic'"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rotary positions lacks 'factor'"),
        (
            {"num_local_experts": 8},
            "asks for num_local_experts=8, which this decoder does not know",
        ),
        ({"quantization_config": {"bits": 4}}, "its weights are quantised"),
        ({"layer_types": ["chunked_attention"] * 4}, "layers of the type 'chunked_attention'"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
    ],
)
def test_what_the_decoder_does_not_have_is_refused_by_name(changes, message):
    content = transformers.LlamaConfig(**SMALL).to_dict() | changes
    with pytest.raises(UserError, match=message):
        families.architecture("config.json", content)
    json.dumps(changes)
