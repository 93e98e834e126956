"""All settings in one record, and the ConfigDict in which users see them.

A file in configs/ starts from `default()` and changes what it needs; the command line overrides both
with --config.key=value. The dictionary is locked: a key that is not here is an error. Programs turn it
into `Settings` once, by `checked`; from there on a type checker sees every value.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from srpo_jax.config.programs import (
    AlternateSettings,
    EvaluateSettings,
    PairSettings,
    RecipeSettings,
)
from srpo_jax.judges.settings import JudgeSettings
from srpo_jax.models.settings import LoraSettings, ModelSettings
from srpo_jax.objectives import ObjectiveSettings
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import files
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.mesh import MeshSettings
from srpo_jax.runtime.settings import Check, build, check, kinds, setting, without_none
from srpo_jax.training.optimizer import OptimizerSettings
from srpo_jax.training.settings import (
    DataSettings,
    OnlineSettings,
    ReferenceSettings,
    TrainSettings,
)

# What JAX's programs take; a larger one would end in its traceback, or draw as a smaller one does.
_SEED = Check(lambda value: 0 <= value < 2**31, "in [0, 2147483648)")
# Beginnings of the keys that say how something is computed or watched, and not what: a run, a set of pairs
# and a finished stage of a recipe go on with other values of these.
HOW = (
    *("mesh.", "model.attention", "model.remat", "data.cache", "data.workers", "reference.when"),
    *("sampling.batch_size", "sampling.refill", "train.log_every", "train.checkpoint_"),
    *("train.keep_", "train.verify_", "train.profile_", "train.peak_tflops", "train.evaluate_"),
    *("train.writers", "train.project"),
)
# Programs pairs and train_online put their own in place of these: config.pairs.temperature, say.
REPLACED = ("sampling.temperature", "sampling.top_p")
RETIRED = ("quickstart",)  # sections that earlier versions wrote and no program reads any more


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of all programs; each program reads the sections it needs."""

    seed: int = setting(0, "of initialisation, data order and sampling", _SEED)
    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    lora: LoraSettings = dataclasses.field(default_factory=LoraSettings)
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    objective: ObjectiveSettings = dataclasses.field(default_factory=ObjectiveSettings)
    reference: ReferenceSettings = dataclasses.field(default_factory=ReferenceSettings)
    train: TrainSettings = dataclasses.field(default_factory=TrainSettings)
    optimizer: OptimizerSettings = dataclasses.field(default_factory=OptimizerSettings)
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    pairs: PairSettings = dataclasses.field(default_factory=PairSettings)
    online: OnlineSettings = dataclasses.field(default_factory=OnlineSettings)
    evaluate: EvaluateSettings = dataclasses.field(default_factory=EvaluateSettings)
    judge: JudgeSettings = dataclasses.field(default_factory=JudgeSettings)
    recipe: RecipeSettings = dataclasses.field(default_factory=RecipeSettings)
    alternate: AlternateSettings = dataclasses.field(default_factory=AlternateSettings)

    def __post_init__(self) -> None:
        check(self, "config")


def default() -> ConfigDict:
    """The defaults, to start a file of configs/ from."""
    return config_dict(Settings())


def config_dict(settings: Settings) -> ConfigDict:
    """The settings as users change them: locked, and what is None waits for a value of its type."""
    return _config_dict(settings).lock()


def _config_dict(settings: Any) -> ConfigDict:
    config = ConfigDict()
    for key, kind in kinds(type(settings)).items():
        value = getattr(settings, key)
        if dataclasses.is_dataclass(kind):
            value = _config_dict(value)
        config[key] = placeholder(without_none(kind)) if value is None else value
    return config


def checked(config: ConfigDict) -> Settings:
    """The settings a user has made; UserError, naming the key, for the first that cannot be used."""
    return build(Settings, config.to_dict(), "config")


def save(settings: Settings, path: Path) -> None:
    """Writes the resolved settings as JSON, whole or not at all."""
    files.write_json(path, dataclasses.asdict(settings))


def read(path: Path) -> Settings:
    """Settings written by `save`; what is new since has its default, and a section of old is passed over.

    Raises UserError for a missing or damaged file, for a key unknown today, and for a value that cannot be
    used.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: not the workdir of a training run")
    kept = files.read_json(
        path,
        "delete it and start `train` once more with the settings of this run, which writes it anew",
    )
    try:
        return build(Settings, {k: v for k, v in kept.items() if k not in RETIRED}, "config")
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def update(config: ConfigDict, changes: Mapping[str, Any], origin: str) -> None:
    """Sets nested or dotted keys; a key that does not exist is a UserError naming it and origin."""
    for key, value in flatten(changes).items():
        section, _, name = f".{key}".rpartition(".")
        target: Any = config
        try:
            for part in filter(None, section.split(".")):
                target = target[part]
            if name not in target:
                raise KeyError(key)
            if isinstance(target[name], tuple) and isinstance(value, list):
                value = tuple(value)
            target[name] = value
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{origin}: {key}={value!r} is not a setting, or not of its type"
            ) from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
