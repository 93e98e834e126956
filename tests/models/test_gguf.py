"""GGUF files written here with known weights, read back; no download, no torch."""

from collections.abc import Callable
from pathlib import Path

import gguf
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import nnx

from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.models.gguf import read_config, read_parameters, read_tokenizer
from srpo_jax.runtime.errors import UserError

CONFIG = DecoderConfig(
    vocab_size=259,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=96,
    layer_kinds=(LayerKind(rope=Rope(50_000.0)),),
    norm_eps=1e-5,
    tied=False,
    max_length=128,
)
TOKENS = [
    "<|im_start|>",
    "<|im_end|>",
    *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
    "hi",
]

Tensors = dict[str, np.ndarray]


def neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """Row i and row Hd/2 + i of each head become rows 2i and 2i + 1: the order of the format."""
    first, second = np.split(np.arange(len(rows)).reshape(heads, -1), 2, axis=1)
    order = np.stack([first, second], axis=-1).ravel()
    return rows[order]


def weights() -> Tensors:
    """[out, in] matrices, each with its own random values, heads in the decoder's order."""
    rng = np.random.default_rng(0)
    c = CONFIG
    queries, keys = c.heads * c.head_dim, c.kv_heads * c.head_dim
    block: dict[str, tuple[int, ...]] = {
        "attn_norm": (c.width,),
        "attn_q": (queries, c.width),
        "attn_k": (keys, c.width),
        "attn_v": (keys, c.width),
        "attn_output": (c.width, queries),
        "ffn_norm": (c.width,),
        "ffn_gate": (c.mlp_width, c.width),
        "ffn_up": (c.mlp_width, c.width),
        "ffn_down": (c.width, c.mlp_width),
    }
    shapes = {f"blk.{i}.{name}": shape for i in range(c.layers) for name, shape in block.items()}
    shapes["token_embd"] = shapes["output"] = (c.vocab_size, c.width)
    shapes["output_norm"] = (c.width,)
    return {f"{n}.weight": rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}


def write(
    path: Path,
    tensors: Tensors,
    architecture: str = "llama",
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    pre: str = "smollm",
    quantisation: gguf.GGMLQuantizationType | None = None,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(CONFIG.layers)
    writer.add_context_length(CONFIG.max_length)
    writer.add_embedding_length(CONFIG.width)
    writer.add_feed_forward_length(CONFIG.mlp_width)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_rope_freq_base(CONFIG.kind(0).rope.theta)
    writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["h i"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template("a template")
    edit(writer)
    for name, value in tensors.items():
        heads = {"attn_q": CONFIG.heads, "attn_k": CONFIG.kv_heads}.get(name.split(".")[-2])
        value = neighbours(value, heads) if heads else value
        if quantisation is not None and value.ndim == 2:
            packed = gguf.quants.quantize(value, quantisation)
            writer.add_tensor(name, packed, raw_dtype=quantisation)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "model.gguf", weights())


def test_the_config_is_read(path):
    assert DecoderConfig(**read_config(path)) == CONFIG


def test_a_file_without_output_matrix_is_tied(tmp_path):
    tensors = {name: value for name, value in weights().items() if name != "output.weight"}
    tied = write(tmp_path / "tied.gguf", tensors)
    assert read_config(tied)["tied"] is True
    assert "head.kernel" not in read_parameters(tied)


@pytest.mark.parametrize(
    ("parameter", "name", "inputs"),
    [
        ("attention.query.kernel", "attn_q", 1),
        ("attention.key.kernel", "attn_k", 1),
        ("attention.value.kernel", "attn_v", 1),
        ("attention.output.kernel", "attn_output", 2),
        ("mlp.gate.kernel", "ffn_gate", 1),
        ("mlp.up.kernel", "ffn_up", 1),
        ("mlp.down.kernel", "ffn_down", 1),
        ("attention_norm.scale", "attn_norm", 1),
        ("mlp_norm.scale", "ffn_norm", 1),
    ],
)
def test_each_layer_computes_the_same_product(path, parameter, name, inputs):
    """x through the kernel read from the file is x through the matrix that was written."""
    kernels = read_parameters(path)[f"blocks.{parameter}"]
    for layer, kernel in enumerate(kernels):
        matrix = weights()[f"blk.{layer}.{name}.weight"]
        if matrix.ndim == 2:
            kernel = kernel.reshape(int(np.prod(kernel.shape[:inputs])), -1).T
        np.testing.assert_array_equal(kernel, matrix)


def test_embedding_and_head_are_read(path):
    parameters = read_parameters(path)
    np.testing.assert_array_equal(parameters["embedder.embedding"], weights()["token_embd.weight"])
    np.testing.assert_array_equal(parameters["head.kernel"].T, weights()["output.weight"])


def test_quantised_weights_come_in_the_asked_dtype(tmp_path):
    packed = write(tmp_path / "q8.gguf", weights(), quantisation=gguf.GGMLQuantizationType.Q8_0)
    parameters = read_parameters(packed, jnp.bfloat16)
    assert {value.dtype for value in parameters.values()} == {np.dtype(jnp.bfloat16)}
    up = parameters["blocks.mlp.up.kernel"][1].astype(np.float32)
    np.testing.assert_allclose(up.T, weights()["blk.1.ffn_up.weight"], atol=0.04)


def test_the_tokenizer_is_rebuilt(path):
    tokenizer = read_tokenizer(path)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (0, 1)
    assert (tokenizer.vocab_size, tokenizer.chat_template) == (CONFIG.vocab_size, "a template")
    ids = tokenizer.encode("<|im_start|>hi 12", special=True)
    assert [TOKENS[i] for i in ids] == ["<|im_start|>", "hi", "Ġ", "1", "2"]


def test_a_replaced_file_is_read_again(tmp_path):
    file = write(tmp_path / "model.gguf", weights())
    before = read_parameters(file)["final_norm.scale"]
    write(file, {name: value + 1 for name, value in weights().items()})
    np.testing.assert_allclose(read_parameters(file)["final_norm.scale"], before + 1, atol=1e-6)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no GGUF file .*absent\.gguf"):
        read_config(tmp_path / "absent.gguf")


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF\x03\0\0\0"])
def test_another_kind_of_file_is_refused(tmp_path, content):
    (tmp_path / "other.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"other\.gguf is not a whole GGUF file"):
        read_config(tmp_path / "other.gguf")


def test_a_cut_file_is_refused(tmp_path, path):
    whole = path.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.gguf is not a whole GGUF file"):
        read_parameters(tmp_path / "cut.gguf")


def test_another_architecture_is_refused(tmp_path):
    other = write(tmp_path / "other.gguf", {}, architecture="mamba")
    with pytest.raises(UserError, match="architecture 'mamba': only 'llama'"):
        read_config(other)


@pytest.mark.parametrize("name", ["token_embd.weight", "output_norm.weight", "blk.1.attn_k.weight"])
def test_a_missing_tensor_is_named(tmp_path, name):
    tensors = weights()
    del tensors[name]
    file = write(tmp_path / "short.gguf", tensors)
    with pytest.raises(UserError, match=f"lacks the tensor {name}"):
        read_parameters(file)


def test_a_tensor_of_another_shape_is_named(tmp_path):
    tensors = weights()
    tensors["blk.0.ffn_up.weight"] = tensors["blk.0.ffn_up.weight"][:32]
    file = write(tmp_path / "bent.gguf", tensors)
    with pytest.raises(
        UserError, match=r"blk\.0\.ffn_up\.weight has shape \(32, 64\), not \(96, 64\)"
    ):
        read_parameters(file)


def test_a_tensor_without_a_place_is_named(tmp_path):
    tensors = weights() | {"blk.0.attn_q.bias": np.zeros(64, np.float32)}
    file = write(tmp_path / "biased.gguf", tensors)
    with pytest.raises(UserError, match=r"no place for the tensor blk\.0\.attn_q\.bias"):
        read_parameters(file)


def test_scaled_rotary_positions_are_refused(tmp_path):
    scale = lambda writer: writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    file = write(tmp_path / "scaled.gguf", {}, edit=scale)
    with pytest.raises(UserError, match="only plain ones"):
        read_config(file)


def test_an_unknown_way_to_cut_words_is_refused(tmp_path):
    file = write(tmp_path / "other.gguf", {}, pre="llama-bpe")
    with pytest.raises(UserError, match=r"other\.gguf: cannot cut text into words as 'llama-bpe'"):
        read_tokenizer(file)


def test_the_parameters_are_exactly_those_of_the_decoder(path):
    model = nnx.eval_shape(lambda: Decoder(CONFIG, nnx.Rngs(0)))
    flat = nnx.to_flat_state(nnx.state(model))
    wanted = {".".join(map(str, key)): leaf.shape for key, leaf in flat}
    assert {name: value.shape for name, value in read_parameters(path).items()} == wanted
