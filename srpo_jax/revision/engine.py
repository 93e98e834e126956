"""A model that prefills and decodes: the programs over its arrays, on its mesh, and the time they take."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.revision import plan, programs
from srpo_jax.revision import pool as pool_module
from srpo_jax.revision.plan import Shape, rounded
from srpo_jax.revision.pool import Pool
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
        return rounded(min(self.sampling.batch_size, prompts), self.parts)

    @property
    def parts(self) -> int:
        """In how many parts rows are over the devices."""
        return 1 if self.model.mesh is None else mesh_module.batch_parts(self.model.mesh)

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

    def decode(self, cache: Cache, logits: Array, start: Start[np.ndarray]) -> list[list[int]]:
        """A completion of each row, without end of sequence."""
        began = time.perf_counter()
        placed = self._placed(start)
        written = programs.write(self.model, cache, logits, placed, **self.settings)
        tokens, lengths = map(mesh_module.gathered, (written.tokens, written.lengths))
        self.spent.decode += time.perf_counter() - began
        return [self._completion(*row) for row in zip(tokens, lengths, strict=True)]

    def pool(self, shape: Shape, prompts: int) -> "Pooled":
        """An empty pool for prompts of this shape, with no more rows than these need."""
        return Pooled(self, shape, self.rows(prompts))

    @property
    def settings(self) -> dict[str, Any]:
        """Static arguments of the programs; batch_size is none, so as to compile nothing anew for it."""
        sampling = dataclasses.replace(self.sampling, batch_size=1, refill=1.0)
        return {"sampling": sampling, "stops": self.stops}

    def _completion(self, tokens: np.ndarray, count: int) -> list[int]:
        """Of tokens [G] the first ones, without what ends them."""
        ids: list[int] = tokens[:count].tolist()
        return ids[:-1] if ids[-1] in self.stops else ids

    def _placed(self, record: Record) -> Record:
        """Rows over the devices of the mesh, if there is one; every process has them all."""
        if self.model.mesh is None:
            return record
        placed: Record = mesh_module.place_rows(self.model.mesh, record)
        return placed


class Pooled:
    """A pool on the engine's devices, what is put into it, and what it has decoded; see `queue.Rows`."""

    def __init__(self, engine: Engine, shape: Shape, rows: int) -> None:
        refill = engine.sampling.refill
        self.engine, self.shape, self.rows, self.parts = engine, shape, rows, engine.parts
        self.size = plan.group(rows, refill, self.parts)
        # Rows of one part cannot wait for those of all others.
        whole = self.parts == 1 or refill == 1
        self.enough = self.size if whole else -(-3 * self.size // 4)
        self._pool: Pool = pool_module.empty(engine.model, rows, shape, engine.settings["sampling"])

    def answer(self, prompts: Sequence[Prompt], keys: np.ndarray, into: Sequence[int]) -> None:
        """Prefills at most R direct prompts, a random key each, into these rows, and begins to answer."""
        self._put(pool_module.answer, self.shape.direct(prompts), keys, [0] * len(into), into)

    def improve(
        self,
        prompts: Sequence[Prompt],
        shown: Sequence[Sequence[int]],
        revisions: Sequence[int],
        keys: np.ndarray,
        into: Sequence[int],
    ) -> None:
        """The same with improve prompts, in the rows of their direct ones: revision k shows y_{k-1}."""
        self._put(pool_module.improve, self.shape.improve(prompts, shown), keys, revisions, into)

    def decode(self, done: int, asked: Sequence[int]) -> dict[int, list[int]]:
        """Goes on until at least so many rows are done; of the rows asked for that are, the completion."""
        engine, began = self.engine, time.perf_counter()
        self._pool = pool_module.decode(engine.model, self._pool, np.int32(done), **engine.settings)
        at = self._pool.at
        ended, tokens, counts = map(mesh_module.gathered, (at.done, at.tokens, at.counts))
        engine.spent.decode += time.perf_counter() - began
        return {row: engine._completion(tokens[row], counts[row]) for row in asked if ended[row]}

    def _put(
        self,
        program: Any,
        rows: Rows[np.ndarray],
        keys: np.ndarray,
        revisions: Sequence[int],
        into: Sequence[int],
    ) -> None:
        engine, began = self.engine, time.perf_counter()
        start = plan.start(rows, keys, revisions)
        each, share = self.rows // self.parts, self.size // self.parts
        # Where nothing is put, a prompt is repeated, for a row that is not there.
        chosen, where = np.zeros(self.size, int), np.full((self.parts, share), each, np.int32)
        taken = [0] * self.parts
        for i, row in enumerate(into):
            part = row // each
            chosen[part * share + taken[part]], where[part, taken[part]] = i, row % each
            taken[part] += 1
        filled = jax.tree.map(lambda x: x[chosen] if x.ndim else x, (rows, start))
        rows, start, placed = engine._placed((*filled, where))
        self._pool = program(engine.model, self._pool, rows, start, placed, **engine.settings)
        jax.block_until_ready(self._pool.at.done)
        engine.spent.prefill += time.perf_counter() - began
