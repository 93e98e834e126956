"""Which model, how it is computed, and what of it an adapter changes."""

import dataclasses
import math

from srpo_jax.models.attention.mask import KINDS
from srpo_jax.models.lora import PROJECTIONS, check_targets
from srpo_jax.runtime.settings import FRACTION, Check, at_least, check, one_of, setting


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """The model and how it is computed."""

    source: str = setting(
        "smollm2-135m-instruct",
        "a model's directory or GGUF file, the workdir of a run to start from, a built-in name, or "
        "tiny (random weights, bytes as tokens)",
    )
    dtype: str = setting(
        "bfloat16",
        "of matrix products; sums stay float32",
        one_of("float32", "bfloat16"),
    )
    parameters: str = setting(
        "float32",
        "dtype of what is trained, bfloat16 with config.optimizer.master; norms stay float32",
        one_of("float32", "bfloat16"),
    )
    remat: str = setting(
        "full",
        "what the backward pass computes again: nothing, all but projections and attention, or all; "
        "offload: as dots, with what is kept in the host's memory",
        one_of("none", "dots", "full", "offload"),
    )
    attention: str = setting(
        "auto",
        "how attention is computed, pallas on TPUs only: see docs/performance.md",
        one_of(*KINDS),
    )

    def __post_init__(self) -> None:
        check(self, "config.model")


@dataclasses.dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters: with them the reference is the model with its adapter off."""

    rank: int = setting(0, "0 trains all weights, else only adapters of this rank", at_least(0))
    alpha: float = setting(
        32.0,
        "adapters are scaled by alpha / rank",
        Check(lambda value: 0 < value < math.inf, "a number > 0"),
    )
    dropout: float = setting(0.0, "of what adapters see, in training", FRACTION)
    targets: tuple[str, ...] = setting(
        PROJECTIONS, "patterns of the projections that get an adapter"
    )

    def __post_init__(self) -> None:
        check(self, "config.lora", ranges=self.rank != 0)
        if self.rank:
            check_targets(self.targets)
