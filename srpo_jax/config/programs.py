"""Settings of the programs that make pairs, evaluate, and do all of it."""

import dataclasses

from srpo_jax.data.documents import SPLITS
from srpo_jax.objectives import OBJECTIVES
from srpo_jax.revision.sampling import TEMPERATURE, TOP_P
from srpo_jax.runtime.settings import POSITIVE, Check, at_least, check, each, one_of, setting

_SOME = Check(bool, "one at least")


@dataclasses.dataclass(frozen=True)
class PairSettings:
    """Program pairs: the documents, and how two completions of each are sampled."""

    documents: str = setting("wikipedia", "set of documents: wikipedia or aclsum")
    split: str = setting("train", "of the documents", one_of(*SPLITS))
    count: int = setting(200, "documents", at_least(1))
    max_prompt_tokens: int = setting(
        256, "longer documents are left out, counted and reported", at_least(1)
    )
    temperature: float = setting(1.0, "of the softmax", TEMPERATURE)
    top_p: float = setting(0.95, "the likeliest tokens that hold this probability", TOP_P)

    def __post_init__(self) -> None:
        check(self, "config.pairs")


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """Program evaluate: the documents, and how often answers to them are revised."""

    documents: tuple[str, ...] = setting(
        ("wikipedia", "aclsum"), "sets of documents; the first is in distribution", _SOME
    )
    split: str = setting("test", "of the documents", one_of(*SPLITS))
    count: int = setting(64, "documents of each set", at_least(1))
    max_prompt_tokens: int = setting(
        384, "longer documents are left out, counted and reported", at_least(1)
    )
    revisions: int = setting(3, "times that an answer is revised", at_least(0))
    samples: int = setting(8, "documents shown in the report", at_least(0))
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
