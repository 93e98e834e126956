"""Reward models: a decoder whose hidden state at a text's last token becomes one number.

A source is a directory as Hugging Face keeps sequence classifiers (LlamaForSequenceClassification …) with
one output, its head `score.weight` [1, D] with or without `score.bias` [1]; or the workdir of a run
with the objective "reward", WORKDIR@STEP for another checkpoint than the newest.
Shapes: B rows, S tokens, D width.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.models import batches, creation, huggingface, loading, weights
from srpo_jax.models.architecture import SCORE, DecoderConfig
from srpo_jax.models.batches import Sequences, Tokens
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.huggingface import Files
from srpo_jax.models.weights import Parameters
from srpo_jax.runtime import files
from srpo_jax.runtime.errors import UserError

Array = jax.Array
WEIGHT, BIAS = "score.weight", "score.bias"
KIND = "ForSequenceClassification"
SCALE = "reward_scale.json"  # beside a run's checkpoints, or an exported model


@dataclasses.dataclass(frozen=True)
class RewardScale:
    """Of a reward model's numbers over reference completions: their mean and standard deviation.

    completions: how many there were. checkpoint: the step whose numbers they are.
    """

    mean: float
    deviation: float
    completions: int
    checkpoint: int

    @staticmethod
    def of(rewards: np.ndarray, checkpoint: int) -> "RewardScale":
        """rewards: float [N]. Equal ones keep their unit."""
        wide = rewards.astype(np.float64)
        return RewardScale(
            float(wide.mean()), float(wide.std()) or 1.0, len(wide), checkpoint=checkpoint
        )

    @staticmethod
    def read(directory: Path) -> "RewardScale | None":
        """That of a directory; None where there is none. UserError for a damaged file."""
        path = directory / SCALE
        if not path.is_file():
            return None
        said = files.read_json(path, "delete it to take the model's numbers as they are")
        try:
            return RewardScale(**said)
        except TypeError as error:
            raise UserError(f"{path} is no scale of rewards: {error}") from error

    def write(self, directory: Path) -> None:
        """Into a directory. For process 0."""
        files.write_json(directory / SCALE, dataclasses.asdict(self))

    def normalised(self, rewards: np.ndarray) -> np.ndarray:
        """With mean 0 and deviation 1 over the reference completions."""
        return (rewards - self.mean) / self.deviation


@dataclasses.dataclass(frozen=True)
class RewardSource:
    """What a directory says of its reward model, before any weight is read.

    config: without vocabulary projection, which such models do not have. pad: the id that fills texts up.
    name: the directory, of a run with the checkpoint that is read. Of a run: the section "data" of its
    settings, which says how prompts were put, and how to read its parameters. scale: None where the
    directory says none, or that of another checkpoint.
    """

    name: str
    directory: Path
    config: DecoderConfig
    tokenizer: Tokenizer
    pad: int | None
    data: Mapping[str, Any] | None = None
    read: Callable[[], Parameters] | None = None
    scale: RewardScale | None = None


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """weight: float32 [D]; bias: of the score. pad: see `RewardSource`."""

    decoder: Decoder
    weight: np.ndarray
    bias: float
    pad: int | None

    def scores(self, texts: Sequence[Tokens], batch_size: int) -> np.ndarray:
        """float64 [N], of token ids of whole texts; as `transformers`, read at the last that is no padding.

        Where padding is the end of sequence, a text is thus read before its last such token. Called by all
        processes of the mesh.
        """
        graphdef, state = nnx.split(self.decoder)

        def rows(chosen: list[int]) -> _Rows:
            some = [texts[i] for i in chosen]
            last = np.array([_last(ids, self.pad) for ids in some], np.int32)
            return _Rows(batches.padded(some), last)

        program = functools.partial(_score, graphdef, state, self.weight)
        lengths = [len(ids) for ids in texts]
        return batches.in_batches(state, lengths, batch_size, rows, program) + self.bias


@flax.struct.dataclass
class _Rows:
    """last: int32 [B], the slot whose hidden state is scored."""

    whole: Sequences
    last: Any


@jax.jit
def _score(
    graphdef: nnx.GraphDef[Decoder], state: nnx.State[Any, Any], weight: Array, rows: _Rows
) -> Array:
    hidden = batches.hidden_states(nnx.merge(graphdef, state), rows.whole)
    states = jnp.take_along_axis(hidden, rows.last[:, None, None], axis=1)[:, 0]
    # Elementwise: a product of matrices would round its inputs on a TPU.
    return jnp.sum(states.astype(jnp.float32) * weight, axis=-1)


def _last(ids: Tokens, pad: int | None) -> int:
    return max((i for i, token in enumerate(ids) if token != pad), default=0)


def open_source(source: str | Path) -> RewardSource:
    """Raises UserError naming what is missing, or is no sequence classifier with one output."""
    directory, _ = loading.split_step(str(source))
    if directory.is_dir() and loading.is_run(directory):
        return _open_run(str(source), directory)
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}: a reward model is one")
    said = huggingface.describe(directory)
    path = directory / "config.json"
    # The kind of a model that sees pictures too is said outside its language model.
    kinds = huggingface.read_json(path).get("architectures") or []
    if not any(str(kind).endswith(KIND) for kind in kinds):
        raise UserError(
            f"{path} describes {', '.join(map(str, kinds)) or 'no architecture'}, not a sequence "
            f"classifier (…{KIND}): give the directory of a reward model"
        )
    config = dataclasses.replace(huggingface.read_config(directory), tied=True)
    outputs, width = _head(directory)
    if outputs != 1:
        raise UserError(f"{directory} has num_labels={outputs}: a reward model has one output")
    if width != config.width:
        raise UserError(
            f"{directory}: {WEIGHT} is of width {width}, not {config.width} as config.json says"
        )
    tokenizer = loading.within(read_tokenizer(directory), config, directory)
    pad, scale = said.get("pad_token_id"), RewardScale.read(directory)
    return RewardSource(str(directory), directory, config, tokenizer, pad, scale=scale)


def _open_run(source: str, directory: Path) -> RewardSource:
    _, step = loading.split_step(source)
    step = loading.checkpoint(directory, step)
    name = f"{directory}@{step}"
    opened = loading.open_source(name, rewards=True)
    if not opened.config.rewards:
        raise UserError(
            f"{directory} is the run of a language model: give one of config.objective.name=reward"
        )
    # The head stands beside the decoder, as in a directory; no token of a text is padding.
    config = dataclasses.replace(opened.config, tied=True, rewards=False)
    data, read = huggingface.read_json(directory / "config.json")["data"], opened.read_parameters
    scale = RewardScale.read(directory)
    scale = scale if scale is not None and scale.checkpoint == step else None
    return RewardSource(name, directory, config, opened.tokenizer, None, data, read, scale)


def _head(directory: Path) -> tuple[int, int]:
    """(outputs, D) of the head."""
    shape = Files(directory).shapes.get(WEIGHT)
    if shape is None or len(shape) != 2:
        raise UserError(f"{directory} lacks the tensor {WEIGHT}: it is no whole reward model")
    return shape[0], shape[1]


def load(source: RewardSource, dtype: str, mesh: Mesh) -> RewardModel:
    """With its parameters on the mesh, in `dtype` but for norms and head; UserError as in `huggingface`."""
    config = dataclasses.replace(source.config, dtype=dtype, parameters=dtype, remat="none")
    parameters: Parameters
    if source.read is None:
        shapes = loading.parameter_shapes(config)
        parameters = huggingface.parameters(source.directory, config, shapes, (WEIGHT, BIAS))
        files = Files(source.directory)
        weight = files.read(WEIGHT)[0].astype(np.float32)
        bias = float(files.read(BIAS)[0]) if BIAS in files.shapes else 0.0
    else:
        parameters = source.read()
        weight, bias = weights.reader(parameters)(SCORE, None)[:, 0], 0.0
        parameters = {name: held for name, held in parameters.items() if name != SCORE}
    decoder: Decoder = nnx.merge(*creation.create(config, parameters, mesh, seed=0))
    return RewardModel(decoder, weight, bias, source.pad)
