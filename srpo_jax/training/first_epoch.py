"""Reference scores that come with the steps: config.reference.when=first_epoch.

A step whose pairs have no scores yet runs its own rows through the reference first. The scores stay on the
devices for that step and are kept for the later ones, in the same files as scores that were computed
before the first step: pieces of them with every checkpoint. So a run that resumes, on as many processes as
it may be, reads what the uninterrupted one would have remembered.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.metrics import status
from srpo_jax.training.pipeline import PairTrees
from srpo_jax.training.reference import Reference
from srpo_jax.training.score_files import ScoreFiles, Scores
from srpo_jax.training.step import Batch


class FirstEpoch:
    """Places batches with their reference scores, those that are kept and those that come with the step.

    known: {name: float32 [n]}, what `files` knew, NaN for pairs without scores. used: bool [n], the pairs
    of the run. policy: until all of them have scores, a copy of its trained weights is kept. report: is
    given all scores when they are there.
    """

    def __init__(
        self,
        data: PairTrees,
        known: Scores,
        used: np.ndarray,
        policy: Reference,
        files: ScoreFiles,
        mesh: Mesh,
        report: Callable[[Scores], Any],
    ):
        self.known, self.files, self.mesh, self.report = known, files, mesh, report
        self.first = data.names[0]
        self.missing = used & np.isnan(known[self.first])
        self.policy: Reference | None = policy.kept()
        # Of the step placed last: the scores of its rows and the pair of each, on the devices.
        self.running: tuple[dict[str, jax.Array], jax.Array] | None = None
        self.complete = jax.jit(_complete, out_shardings=mesh_module.batch_sharding(mesh))
        copied = sum(x.nbytes for x in jax.tree.leaves(policy.weights[0]))
        status(
            f"reference scores: {self.missing.sum()} of {used.sum()} pairs get theirs in the steps of the "
            f"first epoch, which keep a copy of the trained weights ({copied / 1e9:.2f} GB over all "
            "devices); the copy advantage is not known before"
        )

    def place(self, batch: dict[str, Any]) -> Batch:
        """A batch of this process, numpy, on the mesh; called by all processes, once a step."""
        self._remember()
        pair = batch["rows"].pair
        stored = {
            name: np.where(pair < 0, np.float32(0), values[pair])
            for name, values in self.known.items()
        }
        placed: Batch = mesh_module.host_to_global(self.mesh, batch | {"reference": stored})
        if self.policy is None:
            return placed
        self.running = self.policy.score(placed["rows"])
        return placed | {"reference": self.complete(placed["reference"], self.running[0])}

    def write(self) -> None:
        """Writes what is known of the steps so far, to be called with each checkpoint."""
        self._remember()
        self.files.flush()

    def _remember(self) -> None:
        """Waits for the scores of the step placed last; what was known already stays.

        The devices have its update still to do, so they do not wait.
        """
        if self.running is None:
            return
        scores, pair = self.running
        self.running = None
        numbers = np.asarray(pair)
        new = (numbers >= 0) & np.isnan(self.known[self.first][numbers])
        found = {name: np.asarray(values)[new] for name, values in scores.items()}
        self.files.add(numbers[new], found)
        for name, values in found.items():
            self.known[name][numbers[new]] = values
        self.missing[numbers[new]] = False
        if not self.missing.any():
            self.policy = None  # and with it the copy of the weights
            self.files.finish(self.known)
            status(f"reference scores: all pairs of the run have theirs, kept in {self.files.path}")
            self.report(self.known)


def _complete(stored: dict[str, jax.Array], computed: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """[B, P] each: what is stored where it is a number, else what was computed, [B * P]."""
    return {
        name: jnp.where(jnp.isnan(values), computed[name].reshape(values.shape), values)
        for name, values in stored.items()
    }
