"""Every setting there is, with its default and what it means.

A file in configs/ starts from `default()` and changes what it needs; the command line overrides both
with --config.key=value. The dictionary is locked: a key that is not here is an error.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from srpo_jax.runtime.errors import UserError


def default() -> ConfigDict:
    """The settings of all programs; each program reads the sections it needs."""
    config = ConfigDict()
    config.seed = 0  # of initialisation, data order and sampling

    model = config.model = ConfigDict()
    model.source = "smollm2-135m-instruct"  # or "tiny" (random, bytes), or a workdir to start from
    model.dtype = "bfloat16"  # of matrix products; sums and parameters stay float32
    model.parameters = "float32"  # or "bfloat16", with config.optimizer.master; norms stay float32
    # What the backward pass computes again: "none", "dots" (all but projections and attention), "full".
    model.remat = "full"
    model.attention = "auto"  # "dense", "blockwise" or "pallas" (TPU): see docs/performance.md

    lora = config.lora = ConfigDict()
    lora.rank = 0  # 0 trains all weights; else only adapters, and the reference is the adapter off
    lora.alpha = 32.0  # adapters are scaled by alpha / rank
    lora.dropout = 0.0  # of what adapters see, in training
    lora.targets = ("query", "key", "value", "output", "gate", "up", "down")  # patterns

    mesh = config.mesh = ConfigDict()
    mesh.replica = 1  # copies of the model, the only axis that crosses slices
    mesh.fsdp = -1  # parameters and batch are split over these devices; -1 is all that are left
    mesh.tensor = 1  # heads, MLP and vocabulary are split over these

    data = config.data = ConfigDict()
    # JSON lines, Parquet, array_record, a directory of `datasets`, hub:OWNER/NAME, tfds:NAME
    data.pairs = ""
    data.format = "pairs"  # or "summarize", "dialogue": see srpo_jax/data/records.py
    data.split = "train"  # of data sets that have splits
    data.fields = ()  # where a data set has other names, e.g. ("prompt=document", "chosen=summary")
    data.template = "chat"  # or "chained", "dialogue", "plain", "tldr": see srpo_jax/prompts.py
    data.pack = True  # several pairs' trees share a row; a batch is batch_size pairs either way
    data.row_length = 0  # slots of a row; 0 makes rows as long as a batch needs
    data.overlong = "error"  # a pair that does not fit: "error" or "drop" (counted and reported)
    data.workers = 0  # Grain processes that prepare batches; 0 does it in this one

    objective = config.objective = ConfigDict()
    objective.name = "srpo"  # see srpo_jax/objectives.py
    # Each objective reads those in its docstring; None leaves its own default.
    objective.beta = 0.1  # strength of the KL term
    objective.alpha = 0.5  # SRPO: weight of the self-improvement loss
    objective.label_smoothing = placeholder(float)
    objective.reduction = placeholder(str)  # IPO, SFT: "sum" or "mean" over a completion's tokens
    objective.nll_weight = placeholder(float)
    objective.gamma = placeholder(float)
    objective.odds_weight = placeholder(float)

    train = config.train = ConfigDict()
    train.steps = 100
    train.batch_size = 8  # pairs a step, over all devices
    train.accumulate = 1  # parts a batch is computed in, to save memory
    train.frozen = ()  # patterns of parameters that stay as they are, e.g. ("embedder.*",)
    train.log_every = 1
    train.checkpoint_every = 50
    train.keep_checkpoints = 2

    optimizer = config.optimizer = ConfigDict()
    optimizer.learning_rate = 1e-4
    optimizer.warmup_steps = 10
    optimizer.schedule = "cosine"  # after warm-up: "cosine" (to zero) or "constant"
    optimizer.weight_decay = 0.0
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.master = True  # for bfloat16 parameters, a float32 copy that small steps add up in
    optimizer.clip_norm = 1.0  # of the whole gradient

    sampling = config.sampling = ConfigDict()
    sampling.max_new_tokens = 32
    sampling.temperature = 0.0  # 0 is greedy
    sampling.top_p = 1.0
    sampling.batch_size = 32

    pairs = config.pairs = ConfigDict()  # program `pairs`
    pairs.documents = "wikipedia"
    pairs.split = "train"
    pairs.count = 200  # documents
    pairs.max_prompt_tokens = 256  # longer documents are left out, counted and reported
    pairs.temperature = 1.0
    pairs.top_p = 0.95

    evaluate = config.evaluate = ConfigDict()  # program `evaluate`
    evaluate.documents = ("wikipedia", "aclsum")  # the first is in distribution
    evaluate.split = "test"
    evaluate.count = 64  # documents of each
    evaluate.max_prompt_tokens = 384
    evaluate.revisions = 3
    evaluate.samples = 8  # documents shown in the report
    evaluate.judge_check = 200  # validation documents on which the judge itself is tested

    judge = config.judge = ConfigDict()
    judge.name = "embedding"  # or "llm": an OpenAI-compatible endpoint
    judge.base_url = ""  # llm: where it listens; empty is the client's default
    judge.model = ""  # llm: its model's name
    judge.api_key_env = "OPENAI_API_KEY"  # llm: variable that holds the key; "" for none
    judge.concurrency = 8  # llm: requests under way at once
    judge.cache = "judge_cache.sqlite"  # llm: verdicts already paid for, in the workdir

    quickstart = config.quickstart = ConfigDict()  # program `quickstart`
    quickstart.methods = ("srpo", "dpo")  # trained from one start on the same pairs
    quickstart.beta = (0.1, 0.1)  # of each method
    quickstart.learning_rate = (1e-4, 1e-4)  # of each method
    return config.lock()


def save(config: ConfigDict, path: Path) -> None:
    """Writes the resolved settings as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config.to_dict(), indent=2) + "\n")


def read(path: Path) -> ConfigDict:
    """Settings written by `save`; UserError for a missing file and for a key unknown today."""
    if not path.is_file():
        raise UserError(f"{path} is missing: not the workdir of a training run")
    config = default()
    update(config, json.loads(path.read_text()), str(path))
    return config


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
