"""A model that prefills and decodes: the programs over its arrays, on its mesh, and the time they take."""

import dataclasses
import time
from typing import TypeVar

import jax
import numpy as np

from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder
from srpo_jax.revision import programs
from srpo_jax.revision.plan import rounded
from srpo_jax.revision.programs import Model, Rows, Start
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
Record = TypeVar("Record")


@dataclasses.dataclass
class Spent:
    """Seconds spent in prefill (of prompts) and decode (of completions), compilation included."""

    prefill: float = 0.0
    decode: float = 0.0

    def __str__(self) -> str:
        total = max(self.prefill + self.decode, 1e-9)
        prefill, decode = self.prefill / total, self.decode / total
        return f"{prefill:.0%} of {total:.0f} s in prefill, {decode:.0%} in decode"


@dataclasses.dataclass(frozen=True)
class Engine:
    """stops: whatever ends a completion. The time taken is added to `spent`."""

    model: Model
    sampling: Sampling
    stops: tuple[int, ...]
    spent: Spent

    @classmethod
    def of(
        cls, decoder: Decoder, sampling: Sampling, stops: tuple[int, ...], spent: Spent
    ) -> "Engine":
        return cls(Model.of(decoder), sampling, stops, spent)

    @property
    def max_new_tokens(self) -> int:
        return self.sampling.max_new_tokens

    def rows(self, prompts: int) -> int:
        """Rows of a batch; every device gets equally many."""
        mesh = self.model.mesh
        parts = 1 if mesh is None else mesh_module.batch_parts(mesh)
        return rounded(min(self.sampling.batch_size, prompts), parts)

    def prefill(self, rows: Rows[np.ndarray]) -> tuple[Array, Cache]:
        """Logits [B, V] behind the last token of each row, and a new cache."""
        began = time.perf_counter()
        result: tuple[Array, Cache] = programs.prefill(self.model, self._placed(rows))
        jax.block_until_ready(result)
        self.spent.prefill += time.perf_counter() - began
        return result

    def extend(self, cache: Cache, rows: Rows[np.ndarray]) -> tuple[Array, Cache]:
        """The same for more tokens of the rows. The cache is donated."""
        began = time.perf_counter()
        result: tuple[Array, Cache] = programs.extend(self.model, cache, self._placed(rows))
        jax.block_until_ready(result)
        self.spent.prefill += time.perf_counter() - began
        return result

    def branch(self, cache: Cache, indices: np.ndarray, slots: int) -> Cache:
        """The cache's rows at `indices` [B], each as often as it is named, with `slots` slots."""
        placed = self._placed(indices)
        result: Cache = programs.branch(self.model, cache, placed, slots)
        return result

    def decode(
        self, cache: Cache, logits: Array, start: Start[np.ndarray]
    ) -> tuple[list[list[int]], Cache]:
        """A completion of each row, without end of sequence, and its own cache of G slots."""
        began = time.perf_counter()
        sampling = dataclasses.replace(self.sampling, batch_size=1)  # compile nothing anew for it
        settings = {"sampling": sampling, "stops": self.stops}
        placed = self._placed(start)
        tokens, own = programs.decode(self.model, cache, logits, placed, **settings)
        decoded = mesh_module.gathered(tokens)
        self.spent.decode += time.perf_counter() - began
        return [[int(t) for t in row[: np.sum(row != self.stops[0])]] for row in decoded], own

    def _placed(self, record: Record) -> Record:
        """Rows over the devices of the mesh, if there is one; every process has them all."""
        if self.model.mesh is None:
            return record
        placed: Record = mesh_module.place_rows(self.model.mesh, record)
        return placed
