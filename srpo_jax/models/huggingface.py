"""Checkpoints as Hugging Face keeps them: a directory with config.json, safetensors and a tokenizer.

Weights are read tensor by tensor, one layer at a time, and go straight to where they belong on a mesh.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from srpo_jax.errors import UserError
from srpo_jax.models import families
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.families import Family

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Constants that some checkpoints store beside their weights.
CONSTANTS = re.compile(r".*(rotary_emb\.inv_freq|attention\.(masked_)?bias)")


def read_json(path: Path) -> dict[str, Any]:
    """UserError where the file is missing or is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read {path} ({error.strerror}): a model's directory has one"
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object: fetch it again")
    return content


def read_config(directory: Path) -> DecoderConfig:
    """The architecture of config.json; UserError as families.architecture."""
    path = directory / "config.json"
    return families.architecture(path, read_json(path))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk and the parameters in it, with the shapes they have in one layer.

    layer: its number, None outside the blocks. heads: the rows of all parameters stand together for each
    of so many heads; 0: one parameter stands after the other.
    """

    name: str
    layer: int | None
    parameters: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    heads: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in] of a matrix, as torch keeps it, or [out]."""
        parts = [_as_rows(*part) for part in zip(self.parameters, self.shapes, strict=True)]
        return sum(rows for rows, *_ in parts), *parts[0][1:]

    def unpack(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The tensor -> its parameters."""
        sizes = [_as_rows(*part)[0] for part in zip(self.parameters, self.shapes, strict=True)]
        if self.heads:
            apart = array.reshape(self.heads, len(sizes), -1, *array.shape[1:])
            parts = [apart[:, i].reshape(-1, *array.shape[1:]) for i in range(len(sizes))]
        else:
            parts = np.split(array, np.cumsum(sizes)[:-1])
        named = zip(self.parameters, parts, self.shapes, strict=True)
        return {
            name: (rows.T if name.endswith("kernel") else rows).reshape(shape)
            for name, rows, shape in named
        }

    def pack(self, parameters: Mapping[str, np.ndarray]) -> np.ndarray:
        """`unpack` undone."""
        parts = []
        for name, shape in zip(self.parameters, self.shapes, strict=True):
            rows = _as_rows(name, shape)
            array = parameters[name]
            parts.append(
                array.reshape(rows[::-1]).T if name.endswith("kernel") else array.reshape(rows)
            )
        if not self.heads:
            return np.concatenate(parts)
        apart = [part.reshape(self.heads, -1, *part.shape[1:]) for part in parts]
        return np.stack(apart, axis=1).reshape(self.shape)


def _as_rows(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Kernels [*inputs, *outputs] are stored as [out, in]; the embedding as it is, all else flat."""
    if name.endswith("embedding"):
        return shape
    if not name.endswith("kernel"):
        return (math.prod(shape),)
    inputs = math.prod(shape[:-1]) if name.endswith("output.kernel") else shape[0]
    return math.prod(shape) // inputs, inputs


def tensors(
    family: Family, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]
) -> list[Tensor]:
    """All tensors of a checkpoint, layer after layer. shapes: of the model's parameters, layers first."""
    whole, layered = [], []
    for name, parameters in family.tensors.items():
        held = tuple(p for p in parameters if p in shapes)
        if not held:
            continue
        heads = config.heads if name in family.by_head else 0
        if "{}" in name:
            layered.append(Tensor(name, 0, held, tuple(shapes[p][1:] for p in held), heads))
        else:
            whole.append(Tensor(name, None, held, tuple(shapes[p] for p in held), heads))
    return whole + [
        dataclasses.replace(tensor, name=tensor.name.format(i), layer=i)
        for i in range(config.layers)
        for tensor in layered
    ]


class Files:
    """The safetensors of a directory: names, shapes, and tensors on demand."""

    def __init__(self, directory: Path):
        """Reads the headers only. Raises UserError for files that are missing, cut off or malformed."""
        self.directory = directory
        self.where: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        for path in self._paths():
            with _opened(path) as file:
                for name in file.keys():  # noqa: SIM118 (no mapping)
                    part = file.get_slice(name)
                    self.where[name] = path
                    self.shapes[name] = tuple(part.get_shape())
                    self.dtypes[name] = DTYPES.get(part.get_dtype(), part.get_dtype())

    def _paths(self) -> list[Path]:
        index = self.directory / INDEX
        if not index.is_file():
            return [self.directory / SINGLE]
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict):
            raise UserError(f"{index} has no 'weight_map': fetch it again")
        return [self.directory / name for name in sorted(set(names.values()))]

    def read(self, name: str) -> np.ndarray:
        with _opened(self.where[name]) as file:
            return file.get_tensor(name)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path} is missing: the directory is no whole checkpoint in safetensors")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is cut off or no safetensors ({error}): fetch it again") from error


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is read when it is placed: one tensor, or one for each layer of its stack."""

    name: str
    shape: tuple[int, ...]
    files: Files
    tensors: tuple[Tensor, ...]

    def layers(self) -> Iterator[np.ndarray]:
        """Of a stack each layer in turn, else the one array; in the stored dtype."""
        for tensor in self.tensors:
            yield tensor.unpack(self.files.read(tensor.name))[self.name]

    @property
    def dtype(self) -> str:
        return self.files.dtypes[self.tensors[0].name]

    def place(self, dtype: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
        """On the mesh; of a stack, no more than one layer is in host memory at a time."""
        if self.tensors[0].layer is None:
            return _put(next(self.layers()), dtype, sharding)
        shape, spec = self.shape, sharding.spec
        layer = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec[1:]))
        stack = jax.jit(lambda: jax.numpy.zeros(shape, dtype), out_shardings=sharding)()
        write = jax.jit(
            jax.lax.dynamic_update_index_in_dim,
            static_argnums=3,
            donate_argnums=0,
            out_shardings=sharding,
        )
        for i, array in enumerate(self.layers()):
            stack = write(stack, _put(array, dtype, layer), i, 0)
            # Or the host would read ahead of the devices, and hold what they have not taken yet.
            stack.block_until_ready()
        return stack


def _put(array: np.ndarray, dtype: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Each process hands over only the parts that its own devices hold."""
    return jax.make_array_from_callback(
        array.shape, sharding, lambda index: array[index].astype(dtype)
    )


def parameters(directory: Path, config: DecoderConfig, shapes: Mapping[str, tuple[int, ...]]):
    """{parameter: Stored} of a checkpoint that has been checked: nothing lacks, nothing is left over.

    shapes: of the model's parameters. Raises UserError naming the tensor that is missing, unexpected, or
    of another shape or dtype.
    """
    files = Files(directory)
    content = read_json(directory / "config.json")
    family = families.family(content["model_type"], directory / "config.json")
    expected = tensors(family, config, shapes)
    _check(files, expected, config)
    held: dict[str, list[Tensor]] = {}
    for tensor in expected:
        for name in tensor.parameters:
            held.setdefault(name, []).append(tensor)
    return {name: Stored(name, shapes[name], files, tuple(held[name])) for name in shapes}


def _check(files: Files, expected: Sequence[Tensor], config: DecoderConfig) -> None:
    for tensor in expected:
        if tensor.name not in files.shapes:
            raise UserError(f"{files.directory} lacks the tensor {tensor.name}: fetch it again")
        found = files.shapes[tensor.name]
        if found != tensor.shape:
            raise UserError(
                f"{files.where[tensor.name]}: {tensor.name} has the shape {found}, not {tensor.shape} as "
                "config.json says"
            )
        if files.dtypes[tensor.name] not in DTYPES.values():
            raise UserError(
                f"{files.where[tensor.name]}: {tensor.name} is stored as {files.dtypes[tensor.name]}: only "
                f"{', '.join(DTYPES.values())} can be read"
            )
    known = {tensor.name for tensor in expected}
    for name in sorted(set(files.shapes) - known):
        if CONSTANTS.fullmatch(name) or (config.tied and _is_copy(files, name, expected)):
            continue
        raise UserError(f"{files.where[name]}: the model that config.json describes has no {name}")


def _is_copy(files: Files, name: str, expected: Sequence[Tensor]) -> bool:
    """Whether this is the vocabulary projection of a tied model, stored once more."""
    if name not in ("lm_head.weight", "embed_out.weight"):
        return False
    embedding = next(t.name for t in expected if t.parameters == ("embedder.embedding",))
    return bool(np.array_equal(files.read(name), files.read(embedding)))
