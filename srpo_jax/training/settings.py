"""Which pairs are learned from, and how long."""

import dataclasses

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import DocumentSet
from srpo_jax.data.documents import SPLITS
from srpo_jax.data.records import FORMATS
from srpo_jax.objectives.online import ONLINE
from srpo_jax.prompts import TEMPLATES, Arguments
from srpo_jax.prompts.environment import DATE, is_argument, is_date
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import (
    FRACTION,
    POSITIVE,
    Check,
    at_least,
    check,
    each,
    one_of,
    setting,
)
from srpo_jax.runtime.writers import WRITERS

OVERLONG = ("error", "drop")
WHEN = ("before", "first_epoch")
REWARDS = ("score", "gold", "others")
_SHARE = Check(lambda value: 0 <= value <= 1, "in [0, 1]")
_WEIGHT = Check(lambda value: value >= 0, "0 or more")


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
        "of the direct and the improve prompt; dialogue adds nothing to a prompt, chat and plain ask for a "
        "description or summary: see docs/running.md",
        one_of(*TEMPLATES),
    )
    template_arguments: tuple[str, ...] = setting(
        (),
        "what the tokenizer's chat template is given beside the messages, e.g. ('enable_thinking=false', "
        "'date_string=26 Jul 2024'); values are JSON or texts",
        each(Check(is_argument, "NAME=VALUE")),
    )
    template_date: str = setting(
        DATE,
        "the day that a chat template is told it is, if it asks",
        Check(is_date, "YYYY-MM-DD"),
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
    refused: str = setting(
        "error",
        "a pair that the chat template or the tokenizer cannot take is an error, or dropped and counted",
        one_of(*OVERLONG),
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
        if self.template_arguments and not TEMPLATES[self.template].chat:
            raise UserError(
                "config.data.template_arguments are for chat templates, and "
                f"config.data.template={self.template!r} is none"
            )

    @property
    def arguments(self) -> Arguments:
        """What the chat template is given beside the messages."""
        return Arguments(self.template_arguments, self.template_date)


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The training run."""

    steps: int = setting(100, "updates in all", at_least(1))
    batch_size: int = setting(8, "pairs a step, over all devices", at_least(1))
    accumulate: int = setting(1, "parts that a batch is computed in, to save memory", at_least(1))
    frozen: tuple[str, ...] = setting(
        (), "patterns of parameters that stay as they are, e.g. ('embedder.*',)"
    )
    router_loss: float = setting(
        0.0,
        "weight of the load-balancing loss of a model with routed experts, whatever its own config says",
        _WEIGHT,
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
        0, "so many checkpoints with the best train.keep_best_by are kept too", at_least(0)
    )
    keep_best_by: str = setting(
        "held_out/loss",
        "a metric of metrics.jsonl that is measured at the checkpoint's step; the lowest loss, the highest "
        "accuracy, margin, win rate or reward is the best",
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


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """The reference, which objectives compare the policy with: whose scores, and when they are computed."""

    when: str = setting(
        "before",
        "the first step all are computed, or each in the first_epoch's step that needs it, at the price of "
        "a second copy of the trained weights until then",
        one_of(*WHEN),
    )
    source: str = setting(
        "",
        "whose scores they are, as config.model.source names it; empty: the policy's as it starts",
    )

    def __post_init__(self) -> None:
        check(self, "config.reference")


@dataclasses.dataclass(frozen=True)
class OnlineSettings:
    """Program train_online: what is written, what it is worth, and how it is learned from.

    config.train.steps are its rounds, config.train.batch_size the prompts of one.
    """

    objective: str = setting("rloo", "see docs/online.md", one_of(*ONLINE))
    # What is written.
    documents: str = setting(
        "wikipedia", "a set of documents: see srpo_jax/data/document_sets.py, or a file"
    )
    format: str = setting(
        "", "how a record holds a document; empty: as usual", one_of("", *document_sets.FORMATS)
    )
    fields: tuple[str, ...] = setting(
        (), "where the documents have other names, e.g. ('prompt=article',)"
    )
    split: str = setting("train", "of the documents", one_of(*SPLITS))
    count: int = setting(200, "documents", at_least(1))
    max_prompt_tokens: int = setting(
        256, "longer documents are left out, counted and reported", at_least(1)
    )
    samples: int = setting(4, "completions of each prompt", at_least(2))
    temperature: float = setting(
        1.0, "of the softmax that is drawn from, and of the one that is learned", POSITIVE
    )
    # What it is worth.
    reward: str = setting(
        "score",
        "of config.judge: its score of a completion, its P(better than the gold), or its mean P(better "
        "than the other completions of the prompt)",
        one_of(*REWARDS),
    )
    missing_end: float = setting(
        1.0, "taken off the reward of a completion that met the limit without its end", _WEIGHT
    )
    beta: float = setting(0.05, "coefficient of the KL to the reference", POSITIVE)
    kl_target: float = setting(
        0.0, "nats a completion that the coefficient is adapted to; 0: it stays", _WEIGHT
    )
    kl_rate: float = setting(0.1, "by which it is adapted after a round", FRACTION)
    # How it is learned from.
    epochs: int = setting(1, "times that a round's completions are learned from", at_least(1))
    minibatches: int = setting(1, "updates of an epoch", at_least(1))
    clip: float = setting(0.2, "RLOO, PPO: how far from 1 a ratio is pushed", POSITIVE)
    value_clip: float = setting(
        0.0, "PPO: how far a value is pushed from the old one; 0: as far as it goes", _WEIGHT
    )
    value_weight: float = setting(0.1, "PPO: of the values' loss", _WEIGHT)
    discount: float = setting(1.0, "PPO: of later rewards, a token", _SHARE)
    trace: float = setting(0.95, "PPO: lambda of the advantages' estimate", _SHARE)
    whiten: bool = setting(True, "PPO: advantages have mean 0 and variance 1 over a round")

    def __post_init__(self) -> None:
        check(self, "config.online")

    @property
    def document_set(self) -> DocumentSet:
        """The documents."""
        own = DocumentSet(self.documents, format=self.format or "documents", fields=self.fields)
        (chosen,) = document_sets.resolve([own], self.split)
        return chosen
