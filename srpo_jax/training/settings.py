"""Which pairs are learned from, and how long."""

import dataclasses

from srpo_jax.data.documents import SPLITS
from srpo_jax.data.records import FORMATS
from srpo_jax.prompts import TEMPLATES
from srpo_jax.runtime.settings import at_least, check, each, one_of, setting
from srpo_jax.runtime.writers import WRITERS

OVERLONG = ("error", "drop")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """The preference pairs, and how they are put to the model."""

    pairs: str = setting(
        "",
        "JSON lines, Parquet, array_record, a directory of `datasets`, hub:OWNER/NAME or tfds:NAME",
    )
    format: str = setting(
        "pairs", "how a record holds a pair: see srpo_jax/data/records.py", one_of(*FORMATS)
    )
    split: str = setting("train", "of data sets that have splits")
    held_out: str = setting(
        "", "pairs for train.evaluate_every: a source as `pairs`; empty: they are taken off `pairs`"
    )
    held_out_split: str = setting(
        "", "of `held_out`, or another one of `pairs` than is trained on; empty: as `split`"
    )
    held_out_count: int = setting(
        0,
        "pairs that are held out, chosen by a hash of the prompt; 0: all of `held_out`, none of `pairs`",
        at_least(0),
    )
    fields: tuple[str, ...] = setting(
        (), "where a data set has other names, e.g. ('prompt=document', 'chosen=summary')"
    )
    template: str = setting(
        "chat",
        "of the direct and the improve prompt: see srpo_jax/prompts/templates.py",
        one_of(*TEMPLATES),
    )
    pack: bool = setting(
        True, "several pairs' trees share a row; a batch is batch_size pairs either way"
    )
    row_length: int = setting(
        0, "slots of a row; 0 makes rows as long as a batch needs", at_least(0)
    )
    overlong: str = setting(
        "error", "a pair that does not fit is an error, or dropped and counted", one_of(*OVERLONG)
    )
    cache: str = setting(
        "",
        "folder of trees and reference scores, which several runs may share; empty: the workdir, a "
        "recipe's for all its stages",
    )
    workers: int = setting(
        0, "Grain processes that prepare batches; 0 does it in this one", at_least(0)
    )

    def __post_init__(self) -> None:
        check(self, "config.data")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The training run."""

    steps: int = setting(100, "updates in all", at_least(1))
    batch_size: int = setting(8, "pairs a step, over all devices", at_least(1))
    accumulate: int = setting(1, "parts that a batch is computed in, to save memory", at_least(1))
    frozen: tuple[str, ...] = setting(
        (), "patterns of parameters that stay as they are, e.g. ('embedder.*',)"
    )
    log_every: int = setting(1, "steps between two lines of metrics.jsonl", at_least(1))
    writers: tuple[str, ...] = setting(
        ("tensorboard",), "where the lines of metrics.jsonl go too", each(one_of(*WRITERS))
    )
    project: str = setting("srpo_jax", "wandb's project, mlflow's experiment")
    checkpoint_every: int = setting(50, "steps between two checkpoints", at_least(1))
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept", at_least(1))
    keep_every: int = setting(
        0, "checkpoints of multiples of so many steps are kept too; 0: none", at_least(0)
    )
    keep_best: int = setting(
        0, "so many checkpoints with the lowest train.keep_best_by are kept too", at_least(0)
    )
    keep_best_by: str = setting(
        "held_out/loss", "a metric of metrics.jsonl that is measured at the checkpoint's step"
    )
    verify_checkpoints: bool = setting(
        True, "a resumed state is compared with the digests that were saved with it"
    )
    peak_tflops: float = setting(
        0.0,
        "of one device in bfloat16, for MFU; 0: what is known of its kind",
        at_least(0),
    )
    profile_at: int = setting(
        0,
        "step behind which a profile begins, in WORKDIR/profile; 0: only when SIGUSR1 asks",
        at_least(0),
    )
    profile_steps: int = setting(3, "steps that a profile is of", at_least(1))
    evaluate_every: int = setting(
        0,
        "steps between two evaluations: held-out pairs and a few revisions; 0 is never",
        at_least(0),
    )
    evaluate_documents: int = setting(
        16,
        "documents of the first set of evaluate.documents that are revised then, and judged by judge.name",
        at_least(0),
    )
    evaluate_split: str = setting(
        "validation", "of these documents, where the set has splits", one_of(*SPLITS)
    )

    def __post_init__(self) -> None:
        check(self, "config.train")
