"""Settings of the programs that make pairs, evaluate, and do all of it."""

import dataclasses
import re

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import FORMATS, DocumentSet
from srpo_jax.data.documents import SPLITS
from srpo_jax.objectives import OBJECTIVES
from srpo_jax.revision.sampling import TEMPERATURE, TOP_P
from srpo_jax.runtime.settings import POSITIVE, Check, at_least, check, each, one_of, setting

_SOME = Check(bool, "one at least")


def _is_named(entry: str) -> bool:
    name, equals, source = entry.partition("=")
    known = name not in ("gold", "own y_0")  # what a report calls opponents that are no models
    return bool(re.fullmatch(r"\w[\w.+ -]*", name) and equals and source) and known


def _is_opponent(entry: str) -> bool:
    return entry in ("gold", "own") or bool(re.fullmatch(r"baseline:.+", entry))


NAMED = each(Check(_is_named, "NAME=SOURCE"))


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """Program pairs: the documents, and how two completions of each are sampled."""

    documents: str = setting(
        "wikipedia", "a set of documents: see srpo_jax/data/document_sets.py, or a file"
    )
    format: str = setting(
        "", "how a record holds a document; empty: as usual", one_of("", *FORMATS)
    )
    fields: tuple[str, ...] = setting(
        (), "where the documents have other names, e.g. ('prompt=article',)"
    )
    split: str = setting("train", "of the documents", one_of(*SPLITS))
    count: int = setting(200, "documents", at_least(1))
    max_prompt_tokens: int = setting(
        256, "longer documents are left out, counted and reported", at_least(1)
    )
    temperature: float = setting(1.0, "of the softmax", TEMPERATURE)
    top_p: float = setting(0.95, "the likeliest tokens that hold this probability", TOP_P)

    def __post_init__(self) -> None:
        check(self, "config.pairs")

    @property
    def document_set(self) -> DocumentSet:
        """The documents."""
        own = DocumentSet(self.documents, format=self.format or "documents", fields=self.fields)
        (chosen,) = document_sets.resolve([own], self.split)
        return chosen


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Program evaluate: what is compared with what, on which documents, by how many revisions."""

    documents: tuple[str | DocumentSet, ...] = setting(
        ("wikipedia", "aclsum"),
        "sets of documents, the first in distribution: names, files, or dictionaries of what "
        "srpo_jax/data/document_sets.py lists",
        _SOME,
    )
    split: str = setting("test", "of the documents", one_of(*SPLITS))
    count: int = setting(64, "documents of each set", at_least(1))
    max_prompt_tokens: int = setting(
        384, "longer documents are left out, counted and reported", at_least(1)
    )
    revisions: int = setting(3, "times that an answer is revised", at_least(0))
    models: tuple[str, ...] = setting(
        (),
        "what revises, e.g. ('srpo=runs/a', 'dpo=runs/b@400', 'start=DIRECTORY'); without models and "
        "outputs, the workdir's run and what it started from",
        NAMED,
    )
    outputs: tuple[str, ...] = setting(
        (), "files of what others have written, e.g. ('gpt=FILE.jsonl',)", NAMED
    )
    against: tuple[str, ...] = setting(
        ("gold",),
        "what revisions meet: gold, own (y_0), baseline:NAME (a model or an output)",
        each(Check(_is_opponent, "gold, own or baseline:NAME")),
    )
    best_of: tuple[str, ...] = setting(
        (), "models whose likeliest of k + 1 samples stands beside the k-th revision"
    )
    best_by: str = setting(
        "mean", "log-probability, a token or in all, of the likeliest", one_of("mean", "sum")
    )
    best_temperature: float = setting(1.0, "of those samples", POSITIVE)
    best_top_p: float = setting(1.0, "of those samples", TOP_P)
    judge_check: int = setting(
        200, "validation documents on which the judge itself is tested", at_least(0)
    )

    def __post_init__(self) -> None:
        check(self, "config.evaluate")


@dataclasses.dataclass(frozen=True)
class QuickstartSettings:
    """Program quickstart: the methods that are compared, one entry each."""

    methods: tuple[str, ...] = setting(
        ("srpo", "dpo"),
        "objectives, trained from one start on the same pairs",
        each(one_of(*OBJECTIVES)),
    )
    beta: tuple[float, ...] = setting((0.1, 0.1), "of each method", each(POSITIVE))
    learning_rate: tuple[float, ...] = setting((1e-4, 1e-4), "of each method", each(at_least(0)))

    def __post_init__(self) -> None:
        check(self, "config.quickstart")
