"""Checkpoints as Hugging Face keeps them: a directory with config.json, safetensors and a tokenizer.

Weights are read tensor by tensor, one layer at a time, and go straight to where they belong on a mesh.
"""

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

from srpo_jax.models import families, tensor_digests, weights
from srpo_jax.models.architecture import SCORE, DecoderConfig
from srpo_jax.models.families import Family
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Constants that some checkpoints store beside their weights.
CONSTANTS = re.compile(r".*(rotary_emb\.inv_freq|attention\.(masked_)?bias)")
# A model that sees pictures: names as published, and as transformers 5 has them in memory.
VISION = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\.")
LANGUAGE = re.compile(
    r"^(model\.language_model|language_model\.model)\.|^language_model\.(?=lm_head)"
)


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


def describe(directory: Path) -> dict[str, Any]:
    """config.json's content, of the language model alone where there is more; UserError as `read_json`."""
    return families.text_part(read_json(directory / "config.json"))


def read_config(directory: Path) -> DecoderConfig:
    """The architecture of config.json; UserError as families.architecture."""
    return families.architecture(directory / "config.json", describe(directory))


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk and the parameters in it, with the shapes they have in one layer.

    layer: its number, None outside the blocks. heads: the rows of all parameters stand together for each
    of so many heads; 0: one parameter stands after the other. expert: the number of the one whose part of
    the parameters it holds, and shapes are of; None where it holds all of them. stacked: so many experts
    stand one after the other, and shapes are of all. whole: it has the shape of its one parameter.
    """

    name: str
    layer: int | None
    parameters: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    heads: int = 0
    expert: int | None = None
    stacked: int = 0
    whole: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """[out, in] of a matrix, as torch keeps it, or [out]; experts in front."""
        if self.whole:
            return self.shapes[0]
        if self.stacked:
            return self.stacked, *self._of_one.shape
        parts = [_as_rows(*part) for part in zip(self.parameters, self.shapes, strict=True)]
        return sum(rows for rows, *_ in parts), *parts[0][1:]

    @property
    def _of_one(self) -> "Tensor":
        """The tensor that there would be for one of the stacked experts."""
        return dataclasses.replace(self, stacked=0, shapes=tuple(s[1:] for s in self.shapes))

    def unpack(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The tensor -> its parameters, or its expert's part of them."""
        if self.stacked:
            each = [self._of_one.unpack(part) for part in array]
            return {name: np.stack([part[name] for part in each]) for name in self.parameters}
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
        """`unpack` undone, of whole parameters; a view where there is nothing to join."""
        if self.stacked:
            raise NotImplementedError("experts are written one by one")
        if self.whole:
            return parameters[self.parameters[0]]
        if self.expert is not None:
            parameters = {name: parameters[name][self.expert] for name in self.parameters}
        parts = []
        for name, shape in zip(self.parameters, self.shapes, strict=True):
            rows = _as_rows(name, shape)
            array = parameters[name]
            parts.append(
                array.reshape(rows[::-1]).T if name.endswith("kernel") else array.reshape(rows)
            )
        if not self.heads:
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
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
    family: Family,
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    stacked: bool = False,
) -> list[Tensor]:
    """All tensors of a checkpoint, layer after layer. shapes: of the model's parameters, layers first.

    stacked: where all experts of a layer are one tensor, not each one of its own.
    """
    whole, layered = [], []
    names = {**family.tensors, "score.weight": (SCORE,)}
    if stacked:
        elsewhere = {p for held in family.stacked.values() for p in held}
        names = {k: held for k, held in names.items() if not elsewhere & {*held}}
        names |= family.stacked
    for name, parameters in names.items():
        held = tuple(p for p in parameters if p in shapes)
        if not held:
            continue
        heads = config.heads if name in family.by_head else 0
        if "{}" in name:
            inner = tuple(shapes[p][1:] for p in held)
            tensor = Tensor(name, 0, held, inner, heads, whole=name in family.whole)
            layered.extend(_of_experts(tensor, config))
        else:
            whole.append(Tensor(name, None, held, tuple(shapes[p] for p in held), heads))
    return whole + [
        dataclasses.replace(tensor, name=tensor.name.format(i, expert=tensor.expert), layer=i)
        for i in range(config.layers)
        for tensor in layered
    ]


def _of_experts(tensor: Tensor, config: DecoderConfig) -> list[Tensor]:
    """One tensor for each expert where its name asks for that; it as it is, if not."""
    if config.routing is None or len(tensor.shapes[0]) != 3 or "mlp" not in tensor.parameters[0]:
        return [tensor]
    experts = config.routing.experts
    if "{expert}" not in tensor.name:
        return [dataclasses.replace(tensor, stacked=experts)]
    one = tuple(shape[1:] for shape in tensor.shapes)
    return [dataclasses.replace(tensor, shapes=one, expert=i) for i in range(experts)]


class Files:
    """The safetensors of a directory: names, shapes, and tensors on demand.

    Where a model sees pictures too, only its language model, under the names that it would have alone.
    """

    def __init__(self, directory: Path):
        """Reads the headers only. Raises UserError for files that are missing, cut off or malformed."""
        self.directory = directory
        self.where: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.left_out: list[str] = []
        self._stored: dict[str, str] = {}  # the name in the file
        self._digests = tensor_digests.read(directory)
        whole = read_json(directory / "config.json").get("vision_config") is None
        for path in self._paths():
            with _opened(path) as file:
                for stored in file.keys():  # noqa: SIM118 (no mapping)
                    if not whole and VISION.match(stored):
                        self.left_out.append(stored)
                        continue
                    name = stored if whole else _alone(stored)
                    part = file.get_slice(stored)
                    self._stored[name] = stored
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
        """Raises UserError for a tensor that is not what this project has exported."""
        with _opened(self.where[name]) as file:
            return self._get(file, name)

    def _get(self, file: Any, name: str) -> np.ndarray:
        tensor: np.ndarray = file.get_tensor(self._stored[name])
        tensor_digests.check(self._digests, self._stored[name], tensor, self.where[name])
        return tensor

    def read_all(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, np.ndarray]]:
        """Each with its array, as `read`; a file is opened once for those that stand together in it."""
        for path, some in itertools.groupby(tensors, lambda tensor: self.where[tensor.name]):
            with _opened(path) as file:
                for tensor in some:
                    yield tensor, self._get(file, tensor.name)


def _alone(name: str) -> str:
    """What a tensor of a language model inside another model is called in the language model alone."""
    return LANGUAGE.sub(lambda found: "model." if found[1] else "", name)


def _opened(path: Path) -> Any:
    if not path.is_file():
        pickled = sorted(found.name for found in path.parent.glob("*.bin"))
        if pickled:
            raise UserError(
                f"{path.parent} has its weights as a pickle ({pickled[0]}), which may run any code when it "
                "is read: convert it to safetensors"
            )
        raise UserError(f"{path} is missing: the directory is no whole checkpoint in safetensors")
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is cut off or no safetensors ({error}): fetch it again") from error


@dataclasses.dataclass(frozen=True)
class Stored:
    """A parameter that is read when it is placed: one tensor, or one for each layer of its stack.

    tensors: layer after layer; of experts with tensors of their own there are several for each.
    """

    name: str
    shape: tuple[int, ...]
    files: Files
    tensors: tuple[Tensor, ...]

    def layer(self, i: int | None) -> np.ndarray:
        """Layer i of a stack, or the one array (None); in the stored dtype."""
        held = [tensor for tensor in self.tensors if i is None or tensor.layer == i]
        parts = [tensor.unpack(array)[self.name] for tensor, array in self.files.read_all(held)]
        return parts[0] if held[0].expert is None else np.stack(parts)

    @property
    def dtype(self) -> str:
        return self.files.dtypes[self.tensors[0].name]

    def place(self, dtype: Any, sharding: jax.sharding.NamedSharding) -> jax.Array:
        """On the mesh; of a stack, no more than one layer is in host memory at a time."""
        if self.tensors[0].layer is None:
            return weights.place(self.layer(None), dtype, sharding)
        shape, spec = self.shape, sharding.spec
        layer = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec[1:]))
        stack: jax.Array = jax.jit(lambda: jax.numpy.zeros(shape, dtype), out_shardings=sharding)()
        write = jax.jit(
            jax.lax.dynamic_update_index_in_dim,
            static_argnums=3,
            donate_argnums=0,
            out_shardings=sharding,
        )
        for i in range(shape[0]):
            stack = write(stack, weights.place(self.layer(i), dtype, layer), i, 0)
            # Or the host would read ahead of the devices, and hold what they have not taken yet.
            stack.block_until_ready()
        return stack


def parameters(
    directory: Path,
    config: DecoderConfig,
    shapes: Mapping[str, tuple[int, ...]],
    beside: Sequence[str] = (),
) -> dict[str, Stored]:
    """{parameter: Stored} of a checkpoint that has been checked: nothing lacks, nothing is left over.

    shapes: of the model's parameters. beside: tensors that the caller reads himself. Raises UserError
    naming the tensor that is missing, unexpected, or of another shape or dtype.
    """
    files = Files(directory)
    family = families.family(describe(directory)["model_type"], directory / "config.json")
    stacked = any(name.format(0) in files.shapes for name in family.stacked if "experts" in name)
    expected = tensors(family, config, shapes, stacked)
    _check(files, expected, config, beside)
    if files.left_out:
        status(f"{directory}: {len(files.left_out)} tensors of its vision part are left out")
    held: dict[str, list[Tensor]] = {}
    for tensor in expected:
        for name in tensor.parameters:
            held.setdefault(name, []).append(tensor)
    return {name: Stored(name, shapes[name], files, tuple(held[name])) for name in shapes}


def _check(
    files: Files, expected: Sequence[Tensor], config: DecoderConfig, beside: Sequence[str]
) -> None:
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
    known = {tensor.name for tensor in expected} | set(beside)
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
