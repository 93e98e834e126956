"""The objective's settings, their ranges, and which objective reads which."""

import dataclasses
import math
import numbers
from typing import Any

from srpo_jax.objectives.table import OBJECTIVES, get
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import Check, check, described, one_of, setting

_STRENGTH = Check(lambda value: 0 < value < math.inf, "a number > 0")
_SHARE = Check(lambda value: 0 <= value <= 1, "a number in [0, 1]")
_NOISE = Check(lambda value: 0 <= value < 0.5, "a number in [0, 0.5)")
_WEIGHT = Check(lambda value: 0 <= value < math.inf, "a number >= 0")


@dataclasses.dataclass(frozen=True)
class ObjectiveSettings:
    """The objective and its hyperparameters: each reads its own, None leaves its own default."""

    name: str = setting("srpo", "see docs/objectives.md", one_of(*OBJECTIVES))
    beta: float | None = setting(0.1, "strength of the KL term", _STRENGTH)
    alpha: float | None = setting(0.5, "SRPO: weight of the self-improvement loss", _SHARE)
    label_smoothing: float | None = setting(
        None, "DPO, robust DPO, CoPG: probability that a label is wrong", _NOISE
    )
    reduction: str | None = setting(
        None, "IPO, SFT, sft_improve: over a completion's tokens", one_of("sum", "mean")
    )
    nll_weight: float | None = setting(
        None, "SRPO (0 of itself), RPO (1): weight of the chosen one's likelihood", _WEIGHT
    )
    gamma: float | None = setting(None, "SimPO: margin between the two", _WEIGHT)
    direct_weight: float | None = setting(None, "sft_improve: weight of the direct prompt", _WEIGHT)
    odds_weight: float | None = setting(None, "ORPO: weight of the odds ratio", _WEIGHT)

    def __post_init__(self) -> None:
        check(self, "config.objective")

    def given(self) -> dict[str, Any]:
        """The hyperparameters that are not None, whether or not the objective reads them."""
        values = dataclasses.asdict(self)
        return {key: v for key, v in values.items() if key != "name" and v is not None}


def check_hyperparameters(name: str, **hyper: Any) -> None:
    """Refuses hyperparameters that objective `name` does not read, lacks, or cannot use.

    A value of None counts as not given. Values are Python numbers or strings, not traced arrays.

    Raises:
      UserError: the sentence names the objective, the key and the value.
    """
    objective = get(name)
    ranges = described(ObjectiveSettings)
    given = {key: value for key, value in hyper.items() if value is not None}
    for key, value in given.items():
        if key not in objective.hyperparameters:
            reads = ", ".join(objective.hyperparameters)
            raise UserError(f"objective {name!r} does not read {key!r}: it reads {reads}")
        in_range = ranges[key].check
        assert in_range is not None
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if is_number == (key == "reduction") or not in_range.good(value):
            raise UserError(
                f"objective.{key} of {name!r} must be {in_range.wanted}, and is {value!r}"
            )
    if missing := [key for key in objective.required if key not in given]:
        raise UserError(f"objective {name!r} has no default for {missing[0]!r}: set it")
