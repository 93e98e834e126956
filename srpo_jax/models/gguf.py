"""Llama-architecture models from a GGUF file: config, parameters, tokenizer.

The `gguf` package parses the file and dequantises; here its names and layouts become ours.
Shapes: L layers, D width, H query heads, K key/value heads, Hd head size, F MLP width,
V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from srpo_jax.data.byte_level import byte_level_bpe
from srpo_jax.data.tokenizer import Tokenizer, TokenizersTokenizer
from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class _File:
    """An open GGUF: metadata in Python values; tensors still on disk, mapped into memory."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, gguf.ReaderTensor]

    def get(self, key: str) -> Any:
        if key not in self.metadata:
            raise UserError(f"{self.path} lacks the entry {key}: the file is incomplete")
        return self.metadata[key]

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor, dequantised; shape is [out, in] as the weights of x -> x Wᵀ."""
        if name not in self.tensors:
            raise UserError(f"{self.path} lacks the tensor {name}: the file is incomplete")
        tensor = self.tensors[name]
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise UserError(
                f"{self.path}: tensor {name} has shape {found}, not {shape} as its config says"
            )
        try:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise UserError(
                f"{self.path}: tensor {name} is stored as {kind}, which cannot be dequantised "
                "here: use a file in another quantisation"
            ) from error


def _open(path: str | Path) -> _File:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no GGUF file {path}: check the path")
    status = path.stat()
    return _parse(path, status.st_mtime_ns, status.st_size)


# Parsing takes seconds, nearly all of it for the vocabulary, and config, parameters and tokenizer
# are asked for one after the other; the time and size notice a file that was replaced.
@functools.lru_cache(maxsize=1)
def _parse(path: Path, modified_ns: int, size: int) -> _File:
    try:
        reader = gguf.GGUFReader(path)
        metadata = {key: field.contents() for key, field in reader.fields.items()}
    except Exception as error:  # a broken header surfaces as almost any exception
        raise UserError(f"{path} is not a whole GGUF file ({error}): fetch it again") from error
    file = _File(path, metadata, {tensor.name: tensor for tensor in reader.tensors})
    architecture = file.get("general.architecture")
    if architecture != "llama":
        raise UserError(
            f"{path} holds a model of the architecture {architecture!r}: only 'llama' can be read"
        )
    return file


def read_config(path: str | Path) -> dict[str, Any]:
    """The architecture as keyword arguments of DecoderConfig.

    Raises UserError where the file is missing, no GGUF, of another architecture than llama, or uses
    a kind of rotary positions the decoder does not have.
    """
    file = _open(path)
    heads = file.get("llama.attention.head_count")
    width = file.get("llama.embedding_length")
    head_dim = file.metadata.get("llama.attention.key_length", width // heads)
    rotated = file.metadata.get("llama.rope.dimension_count", head_dim)
    scaling = file.metadata.get("llama.rope.scaling.type", "none")
    if rotated != head_dim or scaling != "none" or "rope_freqs.weight" in file.tensors:
        raise UserError(
            f"{path} asks for scaled or partial rotary positions: the decoder has only plain ones"
        )
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{path} lacks the tensor token_embd.weight: the file is incomplete")
    return {
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
        "width": width,
        "layers": file.get("llama.block_count"),
        "heads": heads,
        "kv_heads": file.metadata.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "mlp_width": file.get("llama.feed_forward_length"),
        "layer_kinds": (
            LayerKind(rope=Rope(_shortest(file.metadata.get("llama.rope.freq_base", 10_000.0)))),
        ),
        "norm_eps": _shortest(file.get("llama.attention.layer_norm_rms_epsilon")),
        "tied": "output.weight" not in file.tensors,
        "max_length": file.get("llama.context_length"),
    }


def _shortest(value: float) -> float:
    """The decimal number that was meant by a float32: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _split_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads * Hd, D] in the file's order of rotary pairs -> [D, heads, Hd] in the decoder's.

    The file keeps the two partners of a rotary pair next to each other; the decoder, like Hugging
    Face, keeps all first partners in one half of the head and all second ones in the other.
    """
    width = rows.shape[-1]
    neighbours = rows.reshape(heads, -1, 2, width)
    return neighbours.swapaxes(1, 2).reshape(heads, -1, width).transpose(2, 0, 1)


# How one tensor of the file becomes one (layer of one) parameter.
_Layout = tuple[str, tuple[int, ...], Callable[[np.ndarray], np.ndarray]]


def _block_layouts(config: Mapping[str, Any]) -> dict[str, _Layout]:
    """Parameter below `blocks.` -> name below `blk.N.`, shape there, and change of layout."""
    width, mlp = config["width"], config["mlp_width"]
    heads, kv_heads, head_dim = config["heads"], config["kv_heads"], config["head_dim"]
    queries, keys = heads * head_dim, kv_heads * head_dim

    def same(x: np.ndarray) -> np.ndarray:
        return x

    return {
        "attention_norm.scale": ("attn_norm.weight", (width,), same),
        "attention.query.kernel": (
            "attn_q.weight",
            (queries, width),
            lambda x: _split_halves(x, heads),
        ),
        "attention.key.kernel": (
            "attn_k.weight",
            (keys, width),
            lambda x: _split_halves(x, kv_heads),
        ),
        "attention.value.kernel": (
            "attn_v.weight",
            (keys, width),
            lambda x: x.T.reshape(width, kv_heads, head_dim),
        ),
        "attention.output.kernel": (
            "attn_output.weight",
            (width, queries),
            lambda x: x.T.reshape(heads, head_dim, width),
        ),
        "mlp_norm.scale": ("ffn_norm.weight", (width,), same),
        "mlp.gate.kernel": ("ffn_gate.weight", (mlp, width), np.transpose),
        "mlp.up.kernel": ("ffn_up.weight", (mlp, width), np.transpose),
        "mlp.down.kernel": ("ffn_down.weight", (width, mlp), np.transpose),
    }


def read_parameters(path: str | Path, dtype: npt.DTypeLike = np.float32) -> dict[str, np.ndarray]:
    """Flat parameter name -> array of dtype, layers stacked first, as the decoder names them.

    One tensor at a time is dequantised (to float32), so the peak is the result and one tensor more.
    Raises UserError as read_config does, and where a tensor is missing, has another shape than the
    file's config says, or has no place in the decoder (biases, experts).
    """
    config = read_config(path)
    file = _open(path)
    vocabulary, width, layers = config["vocab_size"], config["width"], config["layers"]
    blocks = _block_layouts(config)

    whole: dict[str, _Layout] = {
        "embedder.embedding": ("token_embd.weight", (vocabulary, width), lambda x: x),
        "final_norm.scale": ("output_norm.weight", (width,), lambda x: x),
    }
    if not config["tied"]:
        whole["head.kernel"] = ("output.weight", (vocabulary, width), np.transpose)

    known = {name for name, _, _ in whole.values()}
    known |= {f"blk.{i}.{name}" for i in range(layers) for name, _, _ in blocks.values()}
    if unknown := sorted(set(file.tensors) - known):
        raise UserError(f"{path}: the decoder has no place for the tensor {unknown[0]}")

    def stacked(layout: _Layout) -> np.ndarray:
        name, shape, change = layout
        first = change(file.array(f"blk.0.{name}", shape))
        stack = np.empty((layers, *first.shape), dtype)
        stack[0] = first
        for i in range(1, layers):
            stack[i] = change(file.array(f"blk.{i}.{name}", shape))
        return stack

    parameters = {
        target: np.array(change(file.array(name, shape)), dtype, order="C")
        for target, (name, shape, change) in whole.items()
    }
    return parameters | {f"blocks.{target}": stacked(layout) for target, layout in blocks.items()}


def read_tokenizer(path: str | Path) -> Tokenizer:
    """The file's byte-level BPE with its chat template and the ids it names for eos and bos.

    Words are cut as the file's `tokenizer.ggml.pre` says. (transformers 5 ignores
    "smollm" there, and so gives other ids where a digit follows several spaces or line ends, and
    for digits like ½ after a space.)
    Raises UserError as read_config does, and where the tokenizer is of another kind.
    """
    file = _open(path)
    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise UserError(
            f"{path} has a tokenizer of the kind {kind!r}: only byte-level BPE ('gpt2') can be read"
        )
    tokens, types = file.get("tokenizer.ggml.tokens"), file.get("tokenizer.ggml.token_type")
    merges = [merge.split(" ") for merge in file.get("tokenizer.ggml.merges")]
    pre_tokenizer = file.get("tokenizer.ggml.pre")
    eos_id = file.get("tokenizer.ggml.eos_token_id")
    control, added = (
        [token for token, t in zip(tokens, types, strict=True) if t == wanted]
        for wanted in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
    )
    try:
        return TokenizersTokenizer(
            byte_level_bpe(tokens, merges, control, pre_tokenizer, added),
            eos_id=eos_id,
            bos_id=file.metadata.get("tokenizer.ggml.bos_token_id"),
            chat_template=file.metadata.get("tokenizer.chat_template"),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
