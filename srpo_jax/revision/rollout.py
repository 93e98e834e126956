"""Completions to learn from: k of each prompt, with the log-probability of every token when it was drawn.

The prompts of a batch are prefilled once and their cache is copied for their k completions. The weights are
an argument of the programs, so an update of the policy compiles nothing anew.

Shapes: N prompts, k completions of each, G tokens at most.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

import jax.numpy as jnp
import numpy as np

from srpo_jax.models.decoder import Decoder
from srpo_jax.revision import plan, programs
from srpo_jax.revision.programs import Model, Rows, Start
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.trees.completions import Completions

Record = TypeVar("Record")


class Rollout(Protocol):
    """What writes completions for a policy that changes; an engine outside of this process may be one."""

    def update(self, policy: Decoder) -> None:
        """From now on these weights write."""

    def generate(self, prompts: Sequence[Sequence[int]], samples: int, draw: int) -> Completions:
        """`samples` completions of each prompt; `draw` numbers the calls of a run."""


class LocalRollout:
    """`Rollout` on the policy's own mesh, by all its processes.

    sampling: its top_p is 1, or the log-probabilities are not those of what is drawn. stops: whatever ends
    a completion. width: slots for a prompt, as many as the longest one has, so that one program serves all.
    What is drawn depends on (seed, draw, number of the prompt in its call, number of the completion) alone.
    """

    def __init__(
        self, policy: Decoder, sampling: Sampling, *, stops: Sequence[int], width: int, seed: int
    ) -> None:
        self._sampling, self._stops = sampling, tuple(stops)
        self._width, self._seed = width, seed
        self.update(policy)

    def update(self, policy: Decoder) -> None:
        """From now on these weights write."""
        self._model = Model.of(policy)

    def generate(self, prompts: Sequence[Sequence[int]], samples: int, draw: int) -> Completions:
        """`samples` completions of each prompt; `draw` numbers the calls of a run.

        Called by all processes.
        """
        mesh = self._model.mesh
        parts = 1 if mesh is None else mesh_module.batch_parts(mesh)
        at_once = min(len(prompts), max(1, self._sampling.batch_size // samples))
        at_once = plan.rounded(at_once, parts)
        written = []
        for first in range(0, len(prompts), at_once):
            batch = list(prompts[first : first + at_once])
            numbers = np.arange(first * samples, (first + at_once) * samples, dtype=np.uint32)
            # A short last batch repeats a prompt rather than compile another program.
            batch += batch[-1:] * (at_once - len(batch))
            written.append(self._write(batch, samples, numbers, draw))
        columns = (np.concatenate(column) for column in zip(*written, strict=True))
        tokens, logps, lengths = (x[: len(prompts) * samples] for x in columns)
        last = np.take_along_axis(tokens, lengths[:, None] - 1, axis=1)[:, 0]
        shape = len(prompts), samples
        return Completions(
            tokens.reshape(*shape, -1),
            lengths.reshape(shape),
            logps.reshape(*shape, -1),
            np.isin(last, self._stops).reshape(shape),
        )

    def _write(
        self, prompts: Sequence[Sequence[int]], samples: int, numbers: np.ndarray, draw: int
    ) -> tuple[np.ndarray, ...]:
        """tokens, log-probabilities and lengths of all completions, [B * k, …]."""
        model, rows = self._model, _opening(prompts, self._width)
        logits, cache = programs.prefill(model, self._placed(rows))
        copies = self._placed(np.repeat(np.arange(len(prompts)), samples))
        cache = programs.branch(model, cache, copies, self._width)
        counts = np.repeat(rows.counts, samples)
        filled = np.arange(self._width) < counts[:, None]
        keys = np.asarray(programs.keys(self._seed, numbers))
        streams = np.full(len(counts), draw, np.int32)
        begun = self._placed(Start(keys, streams, counts, filled))
        logits = jnp.take(logits, copies, axis=0)
        settings = {"sampling": self._sampling, "stops": self._stops}
        written = programs.write(model, cache, logits, begun, scored=True, **settings)
        return tuple(map(mesh_module.gathered, (written.tokens, written.logps, written.lengths)))

    def _placed(self, record: Record) -> Record:
        """Rows over the devices of the mesh, if there is one; every process has them all."""
        mesh = self._model.mesh
        if mesh is None:
            return record
        placed: Record = mesh_module.place_rows(mesh, record)
        return placed


def _opening(prompts: Sequence[Sequence[int]], width: int) -> Rows[np.ndarray]:
    """Prompts, padded on the right, in front of which nothing lies."""
    tokens = np.zeros((len(prompts), width), np.int32)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    counts = np.array([len(prompt) for prompt in prompts], np.int32)
    none = np.zeros(len(prompts), np.int32)
    return Rows(tokens, counts, none, np.zeros(tokens.shape, bool), np.array(0, np.int32))
