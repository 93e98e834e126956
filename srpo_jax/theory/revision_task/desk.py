"""The task, a copy desk: six symbols come in, the right answer is a letter for each.

A letter that somebody writes is told by its *kind*, how far it is from the right one: kind 0 is right, 1
is the common mistake, 2 and 3 are two others; NONE means that there is no letter. Writers choose the kind
at each place independently, whatever the symbol is, so that an answer counts only by its *tally*: how many
places have each kind. Six places have 4^6 = 4,096 answers and 84 tallies (`exact` relies on it).

The log-odds that an answer a is preferred to b compare every letter of one with every one of the other:

    log P(a>b) / P(b>a) = [ sum_ij C[kind a_i, kind b_j] / places - (excess_a - excess_b) ] / temperature

with C antisymmetric and excess = | length - places |. Where C says only that right beats wrong the sum is
the difference in right places: the "score" preference. The "cycle" preference adds that mistakes beat
each other in a circle (1 beats 2, 2 beats 3, 3 beats 1): it is intransitive, no score gives it.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from srpo_jax.prompts import Prompt
from srpo_jax.runtime.errors import UserError

LETTERS = 4
NONE = LETTERS  # the kind of a place without a letter
SYMBOLS, RARE = 12, 3  # the last RARE symbols are seldom seen in training
RARE_SHARE = {"in": 0.1, "out": 0.8}  # of the places, in and out of distribution

# Tokens: the letters, then these, then the symbols.
DIRECT, IMPROVE, AFTER, EOS = range(LETTERS, LETTERS + 4)
FIRST_SYMBOL = LETTERS + 4
VOCABULARY = FIRST_SYMBOL + SYMBOLS

# How often a writer's letter is of kind 0, 1, 2, 3. "reference" writes what SFT is trained on: its common
# mistake is likelier than the right letter. Pairs are written by "A" or "B", as often right as each other.
WRITERS: dict[str, tuple[float, ...]] = {
    "reference": (0.40, 0.45, 0.09, 0.06),
    "A": (0.45, 0.44, 0.055, 0.055),
    "B": (0.45, 0.055, 0.055, 0.44),
    "gold": (0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3),
}
CIRCLE = {"score": 0.0, "cycle": 4.0}  # the log-odds by which a mistake beats the next one
_TABLE_SEED = 5  # of the right letters


@dataclasses.dataclass(frozen=True)
class Desk:
    """places: symbols of x, and letters of a right answer. temperature: of P. edit: how likely the editor
    writes a place anew. preference: a key of CIRCLE."""

    places: int = 6
    temperature: float = 0.5
    edit: float = 0.25
    preference: str = "score"

    def __post_init__(self) -> None:
        if self.preference not in CIRCLE:
            raise UserError(
                f"no preference is called {self.preference!r}: choose {' or '.join(CIRCLE)}"
            )

    def letters(self, symbols: np.ndarray) -> np.ndarray:
        """The right letter of each symbol (token ids of any shape)."""
        table = np.random.default_rng(_TABLE_SEED).integers(0, LETTERS, SYMBOLS)
        right: np.ndarray = table[symbols - FIRST_SYMBOL]
        return right

    def draw(self, count: int, where: str, rng: np.random.Generator) -> np.ndarray:
        """int [count, places], symbols; where: "in" or "out" of distribution."""
        rare = RARE_SHARE[where]
        shares = np.full(SYMBOLS, (1 - rare) / (SYMBOLS - RARE))
        shares[-RARE:] = rare / RARE
        return FIRST_SYMBOL + rng.choice(SYMBOLS, (count, self.places), p=shares)

    def write(self, symbols: np.ndarray, writer: str, rng: np.random.Generator) -> np.ndarray:
        """Answers int [N, places] by a writer; by "mixed", each by "A" or by "gold"."""
        if writer == "mixed":
            good = rng.random((len(symbols), 1)) < 0.5
            both = (self.write(symbols, name, rng) for name in ("gold", "A"))
            return np.where(good, *both)
        kinds = rng.choice(LETTERS, symbols.shape, p=WRITERS[writer])
        written: np.ndarray = (self.letters(symbols) + kinds) % LETTERS
        return written

    def edited(
        self, symbols: np.ndarray, draft: np.ndarray, writer: str, rng: np.random.Generator
    ) -> np.ndarray:
        """The drafts, each place written anew by `writer` with probability `edit`."""
        anew = rng.random(draft.shape) < self.edit
        return np.where(anew, self.write(symbols, writer, rng), draft)

    def tallies(
        self, symbols: np.ndarray, answers: Sequence[Sequence[int]]
    ) -> tuple[np.ndarray, np.ndarray]:
        """int [N, LETTERS + 1], how many places of each kind, and the excess [N] of each length.

        answers: token ids of any number; what stands behind the last place counts as excess only.
        """
        right = self.letters(symbols)
        kinds = np.full((len(answers), self.places), NONE)
        for row, answer in enumerate(answers):
            written = np.asarray(answer[: self.places], np.int64)
            kind = (written - right[row, : len(written)]) % LETTERS
            kinds[row, : len(written)] = np.where(written < LETTERS, kind, NONE)
        counts = (kinds[..., None] == np.arange(LETTERS + 1)).sum(axis=1)
        excess = np.abs(np.array([len(answer) for answer in answers]) - self.places)
        return counts, excess

    def preferred(
        self, a: np.ndarray, b: np.ndarray, excess: np.ndarray | float = 0.0
    ) -> np.ndarray:
        """P(a > b) [A, B] for tallies [A, kinds] and [B, kinds]; excess: of each a [A], if b has none."""
        advantage = a @ self._beats()[: a.shape[1], : b.shape[1]] @ b.T / self.places
        log_odds = (advantage - np.reshape(excess, (-1, 1))) / self.temperature
        chance: np.ndarray = 1 / (1 + np.exp(-log_odds))
        return chance

    def preferred_in_pairs(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """P(a > b) [N] for tallies [N, kinds] of answers of the right length, pair by pair."""
        advantage = np.einsum("ni,ij,nj->n", a, self._beats(), b) / self.places
        chance: np.ndarray = 1 / (1 + np.exp(-advantage / self.temperature))
        return chance

    def scores(self, symbols: np.ndarray, answers: Sequence[Sequence[int]]) -> np.ndarray:
        """float64 [N], of answers as of `tallies`: P(a > b) is the sigmoid of what a's is above b's.

        Raises UserError under the intransitive preference, which no score gives.
        """
        if CIRCLE[self.preference]:
            raise UserError(
                f"no score gives the preference {self.preference!r}, and online methods learn from one"
            )
        counts, excess = self.tallies(symbols, answers)
        found: np.ndarray = (counts[:, 0] - excess) / self.temperature
        return found

    def _beats(self) -> np.ndarray:
        """C [kinds, kinds] of the module's docstring."""
        beats = np.zeros((LETTERS + 1, LETTERS + 1))
        beats[0, 1:] = 1.0
        for winner, loser in ((1, 2), (2, 3), (3, 1)):
            beats[winner, loser] = CIRCLE[self.preference]
        return beats - beats.T


def prompt(symbols: Sequence[int] | np.ndarray) -> Prompt:
    """x as the model sees it: symbols, then what is asked for."""
    x = tuple(int(symbol) for symbol in symbols)
    return Prompt((*x, DIRECT), (*x, IMPROVE), (AFTER,))
