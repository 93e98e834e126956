"""What a report contains: the evidence, and the numbers derived from it. Plain frozen records.

Shares, rates and probabilities are fractions in [0, 1], differences in [-1, 1]; lengths are words. A
tuple by revision has an entry for k = 0 … K.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from srpo_jax.reporting.evidence import Documents, Evidence
from srpo_jax.reporting.verdicts import GOLD, OWN, Key

SIGNIFICANT = 0.05  # of a p-value after Holm's correction
MANY_MISSING = 0.05  # share of verdicts that a reader must be told of
MANY_CUT = 0.05  # share of completions cut off, likewise
MANY_EDITS = 0.6  # share of words, of the revisions that change something


@dataclass(frozen=True)
class Interval:
    """A mean with its interval, fractions. Raises ValueError outside [0, 1] or out of order."""

    mean: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(0.0 <= value <= 1.0 for value in (self.mean, self.low, self.high)):
            raise ValueError(f"an interval must lie in [0, 1], got {self}")  # NaN fails, too
        if self.low > self.high:
            raise ValueError(f"an interval's low end lies above its high end: {self}")


@dataclass(frozen=True)
class Cell:
    """One revision in one comparison. The three numbers are None where nothing was judged.

    count: verdicts that the rate is over; wins, ties and losses are those above, at and below 1/2, and
    `missing` the documents without a verdict.
    controlled: the length-controlled rate, also None where lengths cannot be compared.
    spread: the standard deviation of the rate over bootstrap resamples, as the paper gives it.
    """

    count: int
    wins: int
    ties: int
    losses: int
    missing: int
    rate: Interval | None
    controlled: Interval | None = None
    spread: float | None = None


@dataclass(frozen=True)
class Curve:
    """A model's win rates by revision in one comparison."""

    key: Key
    cells: tuple[Cell, ...]

    @property
    def last(self) -> Interval | None:
        """The win rate of the last revision that has one."""
        return next((cell.rate for cell in reversed(self.cells) if cell.rate), None)


@dataclass(frozen=True)
class Difference:
    """Win rate of `model` at `revision` less that of `baseline`, over documents both were judged on.

    p: of the sign test on the same pairs; adjusted: after Holm's correction over the report's
    differences under the same judge and opponent. wins, losses: documents on which `model` does better, and
    worse, those about one text as one; 0 in a report made before they were kept.
    """

    documents: str
    judge: str
    opponent: str
    model: str
    revision: int
    baseline: str
    baseline_revision: int
    mean: float
    low: float
    high: float
    count: int
    p: float
    adjusted: float
    wins: int = 0
    losses: int = 0

    @property
    def contrary(self) -> bool:
        """Whether most documents that differ say the opposite of the mean, which few large ones make."""
        return (self.wins - self.losses) * self.mean < 0

    @property
    def significant(self) -> bool:
        """Whether it is told from zero at SIGNIFICANT, the other tests allowed for.

        Not where it is contrary: the test is of signs, and would tell the opposite.
        """
        return self.adjusted < SIGNIFICANT and not self.contrary

    @property
    def by_revision(self) -> bool:
        """Whether it compares a model with its own y_0, not with another model."""
        return self.model == self.baseline


@dataclass(frozen=True)
class Change:
    """A mean of differences, in [-1, 1], with its interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Style:
    """How one model's texts on one set look, by revision.

    unchanged: share equal to the revision before; edits: mean share of the words changed from it, over
    those of the longer, () in a report made before it was measured; repetition: mean share of word trigrams
    seen before in the same text; cut: share that ended at the token limit, () where it is not known.
    overlap: mean F1 of the words shared with the gold (ROUGE-1), over documents whose gold is there;
    nearer: that of the last revision less that of y_0. () and None where there is none, or in a report made
    before it was measured.
    """

    model: str
    documents: str
    mean_words: tuple[float, ...]
    unchanged: tuple[float, ...]
    repetition: tuple[float, ...]
    cut: tuple[float, ...] = ()
    edits: tuple[float, ...] = ()
    overlap: tuple[float, ...] = ()
    nearer: Change | None = None


@dataclass(frozen=True)
class Position:
    """Whether a judge's two orders agree, over `count` pairs of different texts.

    agreement: share of pairs on which both orders prefer the same text, None where there is no pair;
    chance: the share that looking at nothing but the position gives; first: how often it prefers what
    is shown first, None where it prefers nothing. `warning` is a sentence where it is not shown to
    judge, else "".
    """

    judge: str
    count: int
    agreement: Interval | None
    chance: float
    first: Interval | None
    warning: str


@dataclass(frozen=True)
class Concord:
    """Two judges on the same `count` pairs of different texts: share of equal verdicts, Cohen's kappa.

    kappa is None where it is not defined: both always say the same.
    """

    first: str
    second: str
    count: int
    share: Interval
    kappa: float | None


@dataclass(frozen=True)
class Absence:
    """A judge's missing verdicts: how many of those `asked` for, and why."""

    judge: str
    asked: int
    missing: int
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Missing over asked."""
        return self.missing / self.asked if self.asked else 0.0


@dataclass(frozen=True)
class Rules:
    """How the numbers are made.

    missing_as_ties: a missing verdict counts as 1/2, else not at all. resamples, seed: of the spread.
    """

    missing_as_ties: bool = False
    resamples: int = 20
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that is written at the end of an evaluation; `assemble.assemble` makes it by its rules.

    `notes` say what the rules are, by name: interval, controlled, spread, test, missing; and decoding where
    reports were compared that differ in it.
    """

    evidence: Evidence
    rules: Rules
    curves: tuple[Curve, ...]
    differences: tuple[Difference, ...]
    styles: tuple[Style, ...]
    positions: tuple[Position, ...]
    concords: tuple[Concord, ...]
    absences: tuple[Absence, ...]
    notes: dict[str, str]

    @property
    def views(self) -> tuple[tuple[str, str], ...]:
        """The (judge, opponent) pairs that have curves; the first is what the summary shows."""
        return tuple(dict.fromkeys((each.key.judge, each.key.opponent) for each in self.curves))

    @property
    def sets(self) -> tuple[Documents, ...]:
        """The document sets, in distribution first."""
        return tuple(sorted(self.evidence.sets, key=lambda each: each.role != "in distribution"))

    def on(self, documents: str, view: tuple[str, str]) -> tuple[Curve, ...]:
        """The curves of one (judge, opponent) on one set."""
        return tuple(
            each
            for each in self.curves
            if each.key.documents == documents and (each.key.judge, each.key.opponent) == view
        )

    def compared(self, documents: str, view: tuple[str, str]) -> tuple[Difference, ...]:
        """The differences of one (judge, opponent) on one set."""
        return tuple(
            each
            for each in self.differences
            if each.documents == documents and (each.judge, each.opponent) == view
        )

    def gain(self, curve: Curve) -> Difference | None:
        """The difference of a curve's last revision from no revision."""
        wanted = (curve.key.model, len(curve.cells) - 1, curve.key.model, 0)
        for each in self.compared(curve.key.documents, (curve.key.judge, curve.key.opponent)):
            if (each.model, each.revision, each.baseline, each.baseline_revision) == wanted:
                return each
        return None

    def styled(self, documents: str) -> tuple[Style, ...]:
        """The styles of all models on one set."""
        return tuple(each for each in self.styles if each.documents == documents)


def judged(curves: Sequence[Curve]) -> int:
    """How many documents these rates are over, at most: of a set, some may have no gold to meet."""
    return max(cell.count for curve in curves for cell in curve.cells)


def opponent_phrase(opponent: str) -> str:
    """An opponent in a sentence: "the human gold", "its own y_0" or the model's name."""
    return {GOLD: "the human gold", OWN: "its own completion before revision"}.get(
        opponent, opponent
    )
