"""How fast a run is, and what it waits for: the figures of an interval of steps."""

import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np
from flax import nnx

from srpo_jax.models import Decoder, DecoderConfig
from srpo_jax.models.creation import trainable
from srpo_jax.runtime import flops
from srpo_jax.training import scoring
from srpo_jax.training.loop import Done
from srpo_jax.trees.prefix_tree import Rows

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Speed:
    """Adds up steps until `take` is asked for their figures.

    pairs: of a batch, over all devices. began: when this start of the run did, of time.perf_counter. work:
    operations of a step on rows of this process, see
    `model_flops`; None leaves out MFU. peak: operations per second of all devices together.
    """

    def __init__(
        self,
        pairs: int,
        began: float,
        work: Callable[[Rows], float] | None = None,
        peak: float = 0.0,
    ) -> None:
        self._pairs, self._work, self._peak = pairs, work, peak
        self._began: float | None = began
        self._saving = 0.0
        self._known: dict[Any, float] = {}
        self._sums: dict[str, float] = collections.defaultdict(float)
        self._seconds: list[float] = []
        self._compiling = 0.0

    def __enter__(self) -> Self:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *error: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def add(self, done: Done) -> None:
        """Counts a step."""
        self._seconds.append(done.seconds)
        for name in ("tokens", "slots", "waited"):
            self._sums[name] += getattr(done, name)
        if self._work is not None:
            shape = tuple(x.shape for x in done.rows)
            if shape not in self._known:
                self._known[shape] = self._work(done.rows)
            self._sums["flops"] += self._known[shape] * done.slots / done.rows.tokens.size

    def take(self) -> dict[str, float]:
        """The figures of the steps since the last call; there were some.

        tokens_per_second, pairs_per_second: over all devices. row_fill: share of slots that hold a token.
        interval_seconds: of all these steps, compilation included. step_seconds, step_seconds_90: median
        and 90th percentile. data_wait: share of the time, at most, in which the devices had no batch.
        compile_seconds: this process's. save_seconds: in which the steps waited for checkpoints.
        start_seconds: since it began, in the first call. mfu: model FLOPs utilisation.
        memory_gb: the most that the first local device has held since the program began, where it says so.
        """
        seconds, sums = sum(self._seconds), self._sums
        values = {
            "tokens_per_second": sums["tokens"] / seconds,
            "pairs_per_second": self._pairs * len(self._seconds) / seconds,
            "row_fill": sums["tokens"] / sums["slots"],
            "interval_seconds": seconds,
            "step_seconds": float(np.median(self._seconds)),
            "step_seconds_90": float(np.quantile(self._seconds, 0.9)),
            "data_wait": sums["waited"] / seconds,
            "compile_seconds": self._compiling,
            "save_seconds": self._saving,
        }
        if self._began is not None:
            values["start_seconds"] = time.perf_counter() - self._began
        if self._work is not None:
            values["mfu"] = sums["flops"] / seconds / self._peak
        held = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in held:
            values["memory_gb"] = held["peak_bytes_in_use"] / 1e9
        self._sums.clear()
        self._seconds, self._compiling, self._saving, self._began = [], 0.0, 0.0, None
        return values

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While this lasts the steps wait for a checkpoint."""
        began = time.perf_counter()
        yield
        self._saving += time.perf_counter() - began

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            self._compiling += duration_secs


def model_flops(architecture: DecoderConfig, names: tuple[str, ...], rows: Rows) -> float:
    """Operations of the scores' forward and backward pass: the matrix products, 2 for each multiplication.

    rows: numpy or shapes. What remat repeats does not count; attention counts for all pairs of slots of a
    row, seen or not; the logits of the targets are computed once more in the backward pass, and count.
    """
    plain = dataclasses.replace(architecture, remat="none", attention="dense", lora_dropout=0.0)
    model = nnx.eval_shape(lambda: Decoder(plain, nnx.Rngs(0)))
    graphdef, *states = nnx.split(model, trainable(plain), ...)

    def total(trained: Any, frozen: Any, rows: Rows) -> jax.Array:
        scores = scoring.score(nnx.merge(graphdef, trained, frozen), rows, names)
        return sum((score.sum() for score in scores.values()), start=jax.numpy.zeros(()))

    return flops.count(jax.grad(total), *states, rows)
