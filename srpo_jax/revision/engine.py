"""A model that prefills and decodes: the programs over its arrays, on its mesh, and the time they take."""

import dataclasses
import time
from typing import Any, TypeVar

import jax
import numpy as np

from srpo_jax.models.cache import Cache
from srpo_jax.models.decoder import Decoder
from srpo_jax.revision import plan, programs
from srpo_jax.revision import pool as pool_module
from srpo_jax.revision.plan import Shape, rounded
from srpo_jax.revision.pool import Pool
from srpo_jax.revision.programs import Model, Rows, Start
from srpo_jax.revision.prompt_arrays import PromptArrays, Shown
from srpo_jax.revision.queue import Done
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
        return self.without_end(tokens, lengths).as_lists()

    def pool(self, shape: Shape, prompts: PromptArrays, keys: np.ndarray, most: int) -> "Pooled":
        """An empty pool for prompts of this shape, with no more rows than `most` of them need.

        keys: [N, 2], data of a random key of each prompt.
        """
        return Pooled(self, shape, prompts, keys, self.rows(most))

    @property
    def settings(self) -> dict[str, Any]:
        """Static arguments of the programs; batch_size is none, so as to compile nothing anew for it."""
        sampling = dataclasses.replace(self.sampling, batch_size=1, refill=1.0)
        return {"sampling": sampling, "stops": self.stops}

    def without_end(self, tokens: np.ndarray, counts: np.ndarray) -> Shown:
        """Of tokens [B, G] the first ones, [B] >= 1 in number, without what ends them."""
        last = np.take_along_axis(tokens, counts[:, None] - 1, axis=1)[:, 0]
        return Shown(tokens, counts - (last[:, None] == self.stops).any(1))

    def _placed(self, record: Record) -> Record:
        """Rows over the devices of the mesh, if there is one; every process has them all."""
        if self.model.mesh is None:
            return record
        placed: Record = mesh_module.place_rows(self.model.mesh, record)
        return placed


class Pooled:
    """A pool on the engine's devices, what is put into it, and what it has decoded; see `queue.Rows`.

    prompts: all that its rows may hold. keys: uint32 [N, 2], data of a random key of each.
    """

    def __init__(
        self, engine: Engine, shape: Shape, prompts: PromptArrays, keys: np.ndarray, rows: int
    ) -> None:
        refill, mesh = engine.sampling.refill, engine.model.mesh
        self.engine, self.shape, self.rows, self.parts = engine, shape, rows, engine.parts
        self.prompts, self.keys, self.new = prompts, keys, engine.max_new_tokens
        self.size = plan.group(rows, refill, self.parts)
        # Rows of one part cannot wait for those of all others.
        whole = self.parts == 1 or refill == 1
        self.enough = self.size if whole else -(-3 * self.size // 4)
        self._own = np.arange(1) if mesh is None else mesh_module.own_parts(mesh)
        self._pool: Pool = pool_module.empty(engine.model, rows, shape, engine.settings["sampling"])
        self._shardings = jax.tree.map(lambda x: x.sharding, self._pool)

    def answer(self, chosen: np.ndarray, into: np.ndarray) -> None:
        """Prefills at most R direct prompts into these rows, and begins to answer."""
        own, where = self._places(into)
        chosen = chosen[own]
        rows = self.shape.direct(self.prompts, chosen)
        self._put(pool_module.answer, rows, chosen, np.zeros(len(own), np.int32), where)

    def improve(
        self, chosen: np.ndarray, shown: Shown, revisions: np.ndarray, into: np.ndarray
    ) -> None:
        """The same with improve prompts, in the rows of their direct ones: revision k shows y_{k-1}."""
        own, where = self._places(into)
        chosen = chosen[own]
        rows = self.shape.improve(self.prompts, chosen, shown.of(own))
        self._put(pool_module.improve, rows, chosen, revisions[own], where)

    def decode(self, done: int, asked: np.ndarray) -> Done:
        """Goes on until at least so many rows are done; of the rows asked for those that are."""
        engine, began = self.engine, time.perf_counter()
        pool, told = pool_module.decode(engine.model, self._pool, np.int32(done), **engine.settings)
        self._pool = pool_module.named_as(pool, self._shardings)
        known = mesh_module.gathered(told)[asked]
        engine.spent.decode += time.perf_counter() - began
        ended = known[:, -1] > 0
        return Done(asked[ended], engine.without_end(known[ended, :-1], known[ended, -1]))

    def _places(self, into: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What is put where, on the devices of this process: see `plan.places`."""
        chosen, where = plan.places(into, self.rows, self.parts, self.size)
        return chosen[self._own].reshape(-1), where[self._own]

    def _put(
        self,
        program: Any,
        rows: Rows[np.ndarray],
        chosen: np.ndarray,
        revisions: np.ndarray,
        where: np.ndarray,
    ) -> None:
        engine, began = self.engine, time.perf_counter()
        start = plan.start(rows, self.keys[chosen], revisions)
        given = (rows, start, where)
        mesh = engine.model.mesh
        placed = given if mesh is None else mesh_module.host_to_global(mesh, given)
        pool = program(engine.model, self._pool, *placed, **engine.settings)
        self._pool = pool_module.named_as(pool, self._shardings)
        jax.block_until_ready(self._pool.at.done)
        engine.spent.prefill += time.perf_counter() - began
