"""A decoder -> a directory that `transformers` and `peft` load.

One file of tensors at a time is in host memory; what a checkpoint holds waits on the devices.
"""

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from srpo_jax.data.tokenizer_files import files_of
from srpo_jax.models import families, huggingface, tensor_digests, weights
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.huggingface import INDEX, SINGLE, Tensor
from srpo_jax.models.weights import Adapted, Parameters
from srpo_jax.runtime import locks, storage
from srpo_jax.runtime.errors import UserError

FILE_BYTES = 2 * 10**9  # of a file of tensors at most, unless one tensor is larger
ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"


def write_model(
    directory: Path,
    config: DecoderConfig,
    described: Mapping[str, Any],
    parameters: Parameters,
    dtype: str,
    files: Path | Mapping[str, str],
    file_bytes: int = FILE_BYTES,
) -> None:
    """config.json, safetensors with a digest of each tensor, and tokenizer files, all or nothing.

    described: config.json's content. files: a directory to take the tokenizer's files from, or
    {name: content}.
    Raises UserError where the directory is not empty.
    """
    family = families.family(described["model_type"], directory / "config.json")
    shapes = {name: array.shape for name, array in parameters.items()}
    read = weights.reader(parameters)
    # The experts of a layer are tensors one after the other, and read together.
    of_experts = functools.lru_cache(maxsize=1)(read)
    with all_or_nothing(directory) as part:
        groups = list(_groups(huggingface.tensors(family, config, shapes), dtype, file_bytes))
        names = (
            [SINGLE]
            if len(groups) == 1
            else [
                f"model-{i:05}-of-{len(groups):05}.safetensors" for i in range(1, len(groups) + 1)
            ]
        )
        digests: dict[str, str] = {}
        for name, group in zip(names, groups, strict=True):
            arrays = {}
            for tensor in group:
                once = read if tensor.expert is None else of_experts
                held = {p: once(p, tensor.layer) for p in tensor.parameters}
                # safetensors writes memory as it lies; cast and put in order in one copy.
                arrays[tensor.name] = np.ascontiguousarray(tensor.pack(held), jnp.dtype(dtype))
            digests |= {name: tensor_digests.digest(array) for name, array in arrays.items()}
            save_file(arrays, part / name, metadata={"format": "pt"})
        tensor_digests.write(part, digests)
        if len(groups) > 1:
            where = {t.name: name for name, group in zip(names, groups, strict=True) for t in group}
            size = sum(_size(tensor, dtype) for group in groups for tensor in group)
            index = {"metadata": {"total_size": size}, "weight_map": where}
            (part / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        # The tensors are those of transformers' own classes; code that came with the source is not here.
        dropped = ("torch_dtype", "auto_map")
        content = {k: v for k, v in described.items() if k not in dropped} | {"dtype": dtype}
        (part / "config.json").write_text(json.dumps(content, indent=2) + "\n")
        tokenizer_files(part, files)


def write_adapter(
    directory: Path, config: DecoderConfig, model_type: str, parameters: Parameters, base: str
) -> None:
    """A LoRA adapter as `peft` keeps it, in float32; base: name or path of the model it belongs to.

    config.lora_rank and .lora_alpha are the adapter's, parameters the model's with the adapter in them.
    Where the model stores several projections as one tensor, the adapter of that tensor has their ranks
    together: their A one below the other, their B on a diagonal of blocks.
    Raises UserError where the directory is not empty, or the model has no adapter.
    """
    if not config.lora_rank:
        raise UserError(
            "there is no adapter to export: the run trained all weights (config.lora.rank=0)"
        )
    family = families.family(model_type, directory)
    shapes = {name: array.shape for name, array in parameters.items()}
    factors, ranks = {}, {}
    for tensor in huggingface.tensors(family, config, shapes):
        held = [parameters[name] for name in tensor.parameters]
        if not any(isinstance(part, Adapted) for part in held):
            continue
        if tensor.expert is not None:
            raise UserError(
                "the run's adapter is of routed experts too, for which `peft` has no file that others "
                "read: export the whole model instead (without --adapter)"
            )
        module = tensor.name.removesuffix(".weight")
        a, b = _joined(held, tensor)
        ranks[module.split(".")[-1]] = a.shape[0]
        factors[f"base_model.model.{module}.lora_A.weight"] = a
        factors[f"base_model.model.{module}.lora_B.weight"] = b
    larger = {module: rank for module, rank in ranks.items() if rank != config.lora_rank}
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.lora_rank,
        "lora_alpha": config.lora_alpha,
        "rank_pattern": larger,
        "alpha_pattern": {
            module: config.lora_alpha * rank / config.lora_rank for module, rank in larger.items()
        },
        "target_modules": sorted(ranks),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with all_or_nothing(directory) as part:
        save_file(factors, part / ADAPTER, metadata={"format": "pt"})
        (part / ADAPTER_CONFIG).write_text(json.dumps(description, indent=2) + "\n")


def _joined(held: Sequence[Any], tensor: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """A [rank, in] and B [out, rank] of one tensor, for all adapted projections in it."""
    rows, columns = [], []
    for place, part in enumerate(held):
        if not isinstance(part, Adapted):
            continue
        a, b = (x.layer(tensor.layer).astype(np.float32) for x in (part.a, part.b))
        rank = b.shape[0]
        rows.append(a.reshape(-1, rank).T)
        for i in range(rank):
            sizes = [
                math.prod(_outputs(*p)) for p in zip(tensor.parameters, tensor.shapes, strict=True)
            ]
            outputs = [np.zeros(size, np.float32) for size in sizes]
            outputs[place] = b[i].reshape(-1)
            columns.append(_column(tensor, outputs))
    # safetensors writes memory as it lies.
    a, b = np.concatenate(rows), np.stack(columns, axis=1)
    return np.ascontiguousarray(a), np.ascontiguousarray(b)


def _outputs(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[-1:] if name.endswith("output.kernel") else shape[1:]


def _column(tensor: Tensor, outputs: Sequence[np.ndarray]) -> np.ndarray:
    """The outputs of a tensor's projections in the order of its rows, as a bias has them."""
    names = tuple(f"{i}.bias" for i in range(len(outputs)))
    shapes = tuple(x.shape for x in outputs)
    bias = dataclasses.replace(tensor, parameters=names, shapes=shapes)
    return bias.pack(dict(zip(names, outputs, strict=True)))


def describe(config: DecoderConfig) -> dict[str, Any]:
    """config.json of a model that came without one: Llama's, which is what GGUF and "tiny" hold."""
    (kind,) = config.layer_kinds
    assert kind.rope is not None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_length,
        "rope_theta": kind.rope.theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


@contextlib.contextmanager
def all_or_nothing(directory: Path) -> Iterator[Path]:
    """A folder under another name until it is complete; deleted when it does not come to that.

    Raises UserError where something is there already, or another process is writing it.
    """
    check_free(directory)
    directory = directory.resolve()  # "." has no name
    part = directory.with_name(directory.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(part, os.O_RDONLY)
    try:
        if not _own(descriptor, part):
            raise UserError(
                f"another process is writing {directory}: wait for it, or give another folder"
            )
        try:
            check_free(directory)
            for left in part.iterdir():  # by one that was killed
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield part
            if directory.is_dir():
                directory.rmdir()
            os.replace(part, directory)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    finally:
        os.close(descriptor)


def _own(descriptor: int, part: Path) -> bool:
    """Whether the open folder `part` is this process's alone, until it is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        locks.say_unwatched(part.parent)
        return True
    # Before it was locked, the other may have given it its final name.
    return part.is_dir() and os.path.samestat(os.fstat(descriptor), os.stat(part))


def check_free(directory: Path) -> None:
    """UserError where something is there already, or nothing can be written."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise UserError(f"{directory} is there already: give a folder that is not, or is empty")
    storage.check_writable(directory, "--output")


def _groups(tensors: Sequence[Tensor], dtype: str, file_bytes: int) -> Iterator[list[Tensor]]:
    group: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if group and size + _size(tensor, dtype) > file_bytes:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += _size(tensor, dtype)
    yield group


def _size(tensor: Tensor, dtype: str) -> int:
    return int(np.prod(tensor.shape)) * jnp.dtype(dtype).itemsize


def tokenizer_files(part: Path, files: Path | Mapping[str, str]) -> None:
    """Copies a directory's, or writes {name: content}; code that they name does not come along.

    tokenizer.json is named as what is to be read, as it is read here: of some classes `transformers` takes
    the vocabulary alone, and puts its own spaces, or none, behind special tokens.
    """
    if not isinstance(files, Path):
        for name, content in files.items():
            (part / name).write_text(content, encoding="utf-8")
        return
    for name in files_of(files):
        (part / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(files / name, part / name)
    settings = part / "tokenizer_config.json"
    given = huggingface.read_json(settings) if settings.is_file() else {}
    said = {key: value for key, value in given.items() if key != "auto_map"}
    if (part / "tokenizer.json").is_file():
        said = {**_UNSAID, **said, "tokenizer_class": "PreTrainedTokenizerFast"}
    if said != given:
        settings.write_text(json.dumps(said, indent=2, ensure_ascii=False), encoding="utf-8")


# What this class takes otherwise where nothing is said, in some versions.
_UNSAID = {
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}
