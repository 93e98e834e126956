"""Any number of completions behind a few prompts: what they share with their prompt is prefilled once.

For drawing training pairs: several answers to a prompt, revisions of its answer, other endings of it. All
begin with the prompt's tokens, and need a prefill of their own only from where they depart from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder
from srpo_jax.revision import plan, programs
from srpo_jax.revision.engine import Engine, Spent
from srpo_jax.revision.sampling import Sampling

T = TypeVar("T")


@dataclass(frozen=True)
class Branch:
    """A completion to write. trunk: index of its prompt; ids: the tokens that it follows; row: its number
    among all that is drawn."""

    trunk: int
    ids: tuple[int, ...]
    row: int


@dataclass(frozen=True)
class Trunks:
    """Prompts in a cache. `of` prefills them; `write` goes on behind them, as often as it is asked.

    slots: of the cache. max_length: the model's positions.
    """

    engine: Engine
    prompts: tuple[tuple[int, ...], ...]
    cache: Cache
    slots: int
    max_length: int
    seed: int

    @classmethod
    def of(
        cls,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        eos: Sequence[int],
        seed: int,
    ) -> "Trunks":
        """Prompts in token ids, all prefilled together. eos: what ends a completion."""
        engine = Engine.of(model, sampling, tuple(eos), Spent())
        kept = tuple(map(tuple, prompts))
        rows = plan.opening(_filled(kept, engine.rows(len(kept))))
        _, cache = engine.prefill(rows)
        return cls(engine, kept, cache, rows.valid.shape[1], model.config.max_length, seed)

    def write(self, branches: Sequence[Branch]) -> list[list[int]]:
        """The completion of each branch in token ids, without end of sequence.

        What is drawn depends on seed and the branch's row alone, as in `revise_ids`. Raises UserError when
        a branch and its completion do not fit the model's positions.
        """
        engine, size = self.engine, self.engine.sampling.batch_size
        lengths = [len(branch.ids) for branch in branches]
        plan.check_fit(lengths, engine.max_new_tokens, self.max_length)
        written: list[list[int]] = []
        for first in range(0, len(branches), size):
            batch = branches[first : first + size]
            # A short last batch repeats a branch rather than compile another program.
            written += self._write(_filled(batch, engine.rows(len(branches))))[: len(batch)]
        return written

    def _write(self, batch: Sequence[Branch]) -> list[list[int]]:
        trunks = [self.prompts[branch.trunk] for branch in batch]
        rows = plan.departing(trunks, [branch.ids for branch in batch], self.slots)
        indices = np.array([branch.trunk for branch in batch])
        cache = self.engine.branch(self.cache, indices, rows.valid.shape[1])
        logits, cache = self.engine.extend(cache, rows)
        keys = np.asarray(programs.keys(self.seed, np.array([b.row for b in batch], np.uint32)))
        return self.engine.decode(cache, logits, plan.start(rows, keys, [0] * len(batch)))


def _filled(items: Sequence[T], count: int) -> list[T]:
    """The items, the last one repeated until there are `count`."""
    return [*items, *[items[-1]] * (count - len(items))]
