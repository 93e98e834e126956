"""Settings of the programs that make pairs, evaluate, and run stages one after the other."""

import dataclasses
import re
from typing import Any

from srpo_jax.data import document_sets
from srpo_jax.data.document_sets import FORMATS, DocumentSet
from srpo_jax.data.documents import SPLITS
from srpo_jax.objectives import OBJECTIVES
from srpo_jax.objectives.online import ONLINE
from srpo_jax.revision.sampling import TEMPERATURE, TOP_P
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

_SOME = Check(bool, "one at least")
_MARGIN = Check(lambda value: 0 <= value < 0.5, "in [0, 0.5)")
_UP_TO_ONE = Check(lambda value: 0 < value <= 1, "in (0, 1]")
DRAWS = ("answers", "revisions", "endings", "spans")
GOALS = ("preferences", "improve", "gold")
CHOICES = ("extremes", "nearest", "first", "all", "gold")


def _is_named(entry: str) -> bool:
    name, equals, source = entry.partition("=")
    known = name not in ("gold", "own y_0")  # what a report calls opponents that are no models
    return bool(re.fullmatch(r"\w[\w.+ -]*", name) and equals and source) and known


def _is_opponent(entry: str) -> bool:
    return entry in ("gold", "own") or bool(re.fullmatch(r"baseline:.+", entry))


def _is_stage(name: str) -> bool:
    return bool(re.fullmatch(r"\w[\w.-]*", name))


NAMED = each(Check(_is_named, "NAME=SOURCE"))


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """Program pairs: the documents, which completions of each are sampled, and what is made of them."""

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
    skip: int = setting(0, "documents passed over first: others use them", at_least(0))
    count: int = setting(200, "documents", at_least(1))
    max_prompt_tokens: int = setting(
        256, "longer documents are left out, counted and reported", at_least(1)
    )
    # What is sampled.
    samples: int = setting(2, "completions of each document", at_least(1))
    draw: str = setting(
        "answers",
        "the samples: independent answers; or one answer and revisions of it, or copies of it whose "
        "ending, or a span of which, is written anew",
        one_of(*DRAWS),
    )
    temperature: float = setting(1.0, "of the softmax", TEMPERATURE)
    top_p: float = setting(0.95, "the likeliest tokens that hold this probability", TOP_P)
    # What is made of them.
    goal: str = setting(
        "preferences",
        "pairs that the judge has labelled; drafts and edits of them, for objective sft_improve; or golds, "
        "for sft",
        one_of(*GOALS),
    )
    choose: str = setting(
        "extremes",
        "which samples meet: the best and the worst by the judge, the two nearest by words, the first and "
        "each other one, all, or the gold and each",
        one_of(*CHOICES),
    )
    margin: float = setting(
        0.0, "pairs that the judge puts nearer to 1/2 than this are left out", _MARGIN
    )
    max_distance: float = setting(
        1.0, "pairs that differ in a larger share of their words are left out", _UP_TO_ONE
    )
    labels: str = setting(
        "soft", "the judge's probability, or 1 for what it prefers", one_of("soft", "hard")
    )
    edits: str = setting(
        "any",
        "improve: as they were drawn, the first one the draft; or the better one the edit",
        one_of("any", "better"),
    )
    keep: float = setting(0.0, "improve: share of the drafts whose edit is a copy", FRACTION)

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
    skip: int = setting(0, "documents of each set passed over first", at_least(0))
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
    title: str = setting("", "of the report; empty: after the workdir")
    judge_check: int = setting(
        200, "validation documents on which the judge itself is tested", at_least(0)
    )

    def __post_init__(self) -> None:
        check(self, "config.evaluate")


@dataclasses.dataclass(frozen=True)
class StageSettings:
    """A stage of a recipe: one program with settings of its own."""

    name: str = setting(
        "", "its folder in the workdir", Check(_is_stage, "a name of letters, digits, . - and _")
    )
    program: str = setting(
        "train", "what it runs", one_of("pairs", "train", "train_online", "evaluate")
    )
    set: dict[str, Any] = setting(  # noqa: RUF009 (a field, and a new dictionary for each)
        {},
        "its settings where they differ from the file's, e.g. {'objective.beta': 0.05}; {NAME} in a text "
        "is what the earlier stage NAME made: its pairs, or its folder",
    )

    def __post_init__(self) -> None:
        check(self, "config.recipe.stages")


@dataclasses.dataclass(frozen=True)
class RecipeSettings:
    """Program recipe: its stages, one after the other."""

    stages: tuple[StageSettings, ...] = setting(
        (), "dictionaries of name, program (pairs, train, train_online or evaluate) and set"
    )

    def __post_init__(self) -> None:
        check(self, "config.recipe")


@dataclasses.dataclass(frozen=True)
class PhaseSettings:
    """A phase of train_online --alternate: one objective with settings of its own."""

    objective: str = setting(
        "srpo",
        "what is learned: online, or from pairs that the policy writes and the judge labels",
        one_of(*(name for name, one in OBJECTIVES.items() if not one.rewards), *ONLINE),
    )
    set: dict[str, Any] = setting(  # noqa: RUF009 (a field, and a new dictionary for each)
        {}, "its settings where they differ from the file's, e.g. {'train.steps': 20}"
    )

    def __post_init__(self) -> None:
        check(self, "config.alternate.phases")


@dataclasses.dataclass(frozen=True)
class AlternateSettings:
    """Program train_online --alternate: its phases, one after the other, and again."""

    phases: tuple[PhaseSettings, ...] = setting(
        (), "dictionaries of objective and set; without any srpo, then copg"
    )
    cycles: int = setting(1, "times that the phases run", at_least(1))
    reference: str = setting(
        "moved",
        "of each phase: the policy that it begins with (moved), or the one that the first began with",
        one_of("moved", "first"),
    )

    def __post_init__(self) -> None:
        check(self, "config.alternate")
