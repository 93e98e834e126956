"""What a report contains: plain frozen records, and their way to JSON and back.

Shares, rates and probabilities are fractions in [0, 1]; lengths are words. A curve's tuples are
indexed by the number of revisions k = 0 … N. `documents` names a set of documents ("Wikipedia"),
the same way in every record of a report.
"""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from srpo_jax.runtime.errors import UserError

Role = Literal["in distribution", "out of distribution"]


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, fractions. Raises ValueError outside [0, 1]."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        _require_fractions("interval", (self.mean, self.low, self.high))


@dataclass(frozen=True)
class Curve:
    """One method on one set of documents; entry k of each tuple is for k revisions.

    `unchanged` is the share of documents whose revision k equals revision k - 1 (0 for k = 0).
    Raises ValueError where the tuples are empty, differ in length or hold impossible values.
    """

    method: str
    documents: str
    role: Role
    win_rates: tuple[Interval, ...]
    mean_words: tuple[float, ...]
    unchanged: tuple[float, ...]

    def __post_init__(self) -> None:
        lengths = {len(self.win_rates), len(self.mean_words), len(self.unchanged)}
        if len(lengths) != 1 or lengths == {0}:
            raise ValueError(
                f"curve {self.method!r} on {self.documents!r} needs win_rates, mean_words and "
                f"unchanged of one length >= 1, got lengths {sorted(lengths)}"
            )
        if self.role not in typing.get_args(Role):
            raise ValueError(f"role must be one of {typing.get_args(Role)}, got {self.role!r}")
        _require_fractions("unchanged", self.unchanged)
        _require_lengths("mean_words", self.mean_words)

    @property
    def change(self) -> float:
        """Win rate at the last revision less that at none, a fraction in [-1, 1]."""
        return self.win_rates[-1].mean - self.win_rates[0].mean


@dataclass(frozen=True)
class Sample:
    """One document, its human-written gold, and what each method made of it.

    `revisions[method][k]` is revision k; `probabilities[method][k]` is the judged
    P(revision k better than gold). Raises ValueError where the two do not match.
    """

    documents: str
    prompt: str
    gold: str
    revisions: dict[str, tuple[str, ...]]
    probabilities: dict[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        texts = {method: len(entries) for method, entries in self.revisions.items()}
        judged = {method: len(entries) for method, entries in self.probabilities.items()}
        if texts != judged:
            raise ValueError(
                f"a sample needs one probability per revision, got {judged} for {texts}"
            )
        for probabilities in self.probabilities.values():
            _require_fractions("probabilities", probabilities)


@dataclass(frozen=True)
class JudgeCheck:
    """How often the judge prefers the gold to a damaged text, on `count` held-out documents."""

    damage: str
    documents: str
    rate: float
    low: float
    high: float
    count: int

    def __post_init__(self) -> None:
        _require_fractions("judge check", (self.rate, self.low, self.high))


@dataclass(frozen=True)
class Report:
    """Everything that is written at the end of an evaluation.

    `gold_words` (mean words of the gold completions) and `document_counts` (documents judged)
    have an entry for each document set. `interval` says what the win rates' intervals are.
    `facts` are (label, value) lines: machine, versions, settings, timings. `command` repeats the
    run. Raises ValueError where curves are absent, given twice, or of an undescribed set.
    """

    title: str
    judge_name: str
    judge_description: str
    judge_is_proxy: bool
    gold_words: dict[str, float]
    document_counts: dict[str, int]
    checks: tuple[JudgeCheck, ...]
    curves: tuple[Curve, ...]
    samples: tuple[Sample, ...]
    facts: tuple[tuple[str, str], ...]
    command: str
    interval: str = "95 % score interval over documents"

    def __post_init__(self) -> None:
        if not self.curves:
            raise ValueError("a report needs at least one curve")
        keys = [(curve.method, curve.documents) for curve in self.curves]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"curves given twice (method, documents): {twice}")
        for documents in self.documents:
            if documents not in self.gold_words or documents not in self.document_counts:
                raise ValueError(f"gold_words and document_counts need an entry for {documents!r}")
            if len({curve.role for curve in self.on(documents)}) > 1:
                raise ValueError(f"the curves on {documents!r} disagree on its role")
        _require_lengths("gold_words", tuple(self.gold_words.values()))

    @property
    def documents(self) -> tuple[str, ...]:
        """The document sets that have curves, in their order of appearance."""
        return tuple(dict.fromkeys(curve.documents for curve in self.curves))

    def on(self, documents: str) -> tuple[Curve, ...]:
        """The curves on one set of documents."""
        return tuple(curve for curve in self.curves if curve.documents == documents)

    def revisions(self, documents: str) -> range:
        """The numbers of revisions 0 … N that some curve on these documents reaches."""
        return range(max(len(curve.win_rates) for curve in self.on(documents)))

    @property
    def proxy_warning(self) -> str:
        """The sentence a reader must see where the judge is a proxy, else the empty string."""
        if not self.judge_is_proxy:
            return ""
        return (
            f"{self.judge_name} is a proxy: it stands in for human readers, has not been validated "
            "against them, and its win rates compare the methods here and nothing else."
        )


def to_json(report: Report) -> str:
    """The report as JSON text; `from_json` restores an equal report."""
    text = json.dumps(dataclasses.asdict(report), indent=2, ensure_ascii=False, allow_nan=False)
    return text + "\n"


def from_json(text: str) -> Report:
    """Restores what `to_json` wrote. Raises UserError where the text is not a report."""
    try:
        return typing.cast(Report, _decode(json.loads(text), Report, "report"))
    except ValueError as error:  # json.JSONDecodeError is one too
        raise UserError(
            f"this is not a report's results.json ({error}); write it again with srpo_jax.evaluate"
        ) from error


def _decode(value: Any, kind: Any, where: str) -> Any:
    """JSON value -> `kind`: a dataclass, tuple[X, …], dict[str, X], Literal, or a scalar."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_record(_checked(value, dict, where), kind, where)
    if origin is tuple:
        items = _checked(value, list, where)
        kinds = (arguments[0],) * len(items) if arguments[-1] is Ellipsis else arguments
        if len(items) != len(kinds):
            raise ValueError(f"{where} needs {len(kinds)} entries, got {len(items)}")
        return tuple(
            _decode(item, each, f"{where}[{i}]")
            for i, (item, each) in enumerate(zip(items, kinds, strict=True))
        )
    if origin is dict:
        entries = _checked(value, dict, where).items()
        return {key: _decode(item, arguments[1], f"{where}.{key}") for key, item in entries}
    if origin is Literal:
        return _checked(value, str, where)  # the record itself checks which
    if kind is float:
        return float(_checked(value, int | float, where))
    return _checked(value, kind, where)


def _decode_record(value: dict[str, Any], kind: type, where: str) -> Any:
    kinds = typing.get_type_hints(kind)
    if set(value) != set(kinds):
        missing, unknown = sorted(set(kinds) - set(value)), sorted(set(value) - set(kinds))
        raise ValueError(f"{where} lacks the keys {missing} and has the unknown keys {unknown}")
    return kind(**{key: _decode(value[key], kinds[key], f"{where}.{key}") for key in kinds})


def _checked(value: Any, kind: type | types.UnionType, where: str) -> Any:
    # JSON's true is a Python int, but a report's numbers are never booleans.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r:.60}, which is no {getattr(kind, '__name__', kind)}")
    return value


def _require_fractions(name: str, values: tuple[float, ...]) -> None:
    if not all(0.0 <= value <= 1.0 for value in values):  # NaN fails the comparison
        raise ValueError(f"{name} must lie in [0, 1], got {values}")


def _require_lengths(name: str, values: tuple[float, ...]) -> None:
    if not all(math.isfinite(value) and value >= 0 for value in values):
        raise ValueError(f"{name} must be finite and not negative, got {values}")
