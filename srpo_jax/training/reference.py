"""Reference scores: computed once, for the pairs that a run uses, and kept beside it as they come.

The file carries a fingerprint of all they depend on: the reference's weights and architecture, dtype too,
and the trees (which the tokenizer, the template, the pairs and their lengths determine). A file with
another fingerprint is an error, not a wrong number.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srpo_jax.models import creation, loading
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.source import Source
from srpo_jax.runtime import digest, metrics, storage
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline
from srpo_jax.training.score_files import ScoreFiles, Scores
from srpo_jax.trees.packing import Packing
from srpo_jax.trees.prefix_tree import Rows

VERSION = 1  # of how scores are computed
Score = Callable[[Rows], tuple[dict[str, jax.Array], jax.Array]]


def fingerprint(data: pipeline.PairTrees, weights: Any, architecture: DecoderConfig) -> str:
    """Of all that scores depend on. Called by all processes.

    weights: (trained, frozen) of the model as it starts; adapters are no part of the reference.
    """
    if architecture.lora_rank:
        _, weights = weights
    # What computes the same numbers, or is no part of the reference, does not count.
    same = dataclasses.replace(
        architecture, remat="none", attention="auto", frozen=(), lora_rank=0, lora_targets=()
    )
    same = dataclasses.replace(same, lora_alpha=16.0, lora_dropout=0.0)
    depends = f"{VERSION} {data.fingerprint} {weights_digest(weights)} {same!r}"
    if same.routing:
        depends += f" {same.routing!r}"
    return hashlib.sha256(depends.encode()).hexdigest()


class Reference(NamedTuple):
    """The reference policy. program: of `step.Programs`; weights and architecture: see `fingerprint`."""

    program: Callable[..., tuple[dict[str, jax.Array], jax.Array]]
    weights: tuple[Any, Any]
    architecture: DecoderConfig

    def score(self, rows: Rows) -> tuple[dict[str, jax.Array], jax.Array]:
        """As `Score`."""
        return self.program(*self.weights, rows)

    def kept(self) -> "Reference":
        """One with a copy of the trained weights, which stays as it is when these are trained."""
        trained, frozen = self.weights
        copied = jax.jit(lambda weights: jax.tree.map(jnp.copy, weights))(trained)
        return self._replace(weights=(copied, frozen))


def weights_of(
    name: str, policy: Source, architecture: DecoderConfig, mesh: jax.sharding.Mesh
) -> tuple[Any, Any]:
    """(trained, frozen) of the source called name, laid out like the policy's; adapters add nothing to it.

    Raises UserError for a source without weights, and for one of another architecture or tokenizer.
    """
    try:
        other = loading.open_source(name)
    except UserError as error:
        raise UserError(f"config.reference.source: {error}") from error
    if other.read_parameters is None:
        raise UserError(f"config.reference.source={name} has no weights: train it first")
    if (other.config, other.tokenizer.fingerprint) != (
        policy.config,
        policy.tokenizer.fingerprint,
    ):
        raise UserError(
            f"config.reference.source={name} has another architecture or tokenizer than "
            "config.model.source: a reference scores the policy's own tokens"
        )
    _, trained, frozen = creation.create(architecture, other.read_parameters(), mesh, seed=0)
    return trained, frozen


@dataclasses.dataclass(frozen=True)
class Stored:
    """Places batches whose reference scores, if any, came with the pairs."""

    mesh: jax.sharding.Mesh

    def place(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch of this process, numpy, on the mesh."""
        placed: dict[str, Any] = mesh_module.host_to_global(self.mesh, batch)
        return placed

    def write(self) -> None:
        """They are written already."""


def scores(
    name: str,
    data: pipeline.PairTrees,
    policy: Reference,
    packing: Packing,
    mesh: jax.sharding.Mesh,
    *,
    workdir: Path,
    cache: str = "",
    used: Callable[[], np.ndarray] | None = None,
) -> Scores:
    """`load_or_score` of a policy's scores, which are kept under this name; see `place`."""
    depends = fingerprint(data, policy.weights, policy.architecture)
    path = place(cache, workdir, name, depends)
    return load_or_score(path, depends, data, policy.score, packing, mesh, used)


def place(cache: str, workdir: Path, name: str, depends: str) -> Path:
    """Where scores are kept: in the folder that runs share, by their fingerprint, or in the workdir."""
    if cache:
        return storage.place(cache) / f"{name}_{depends[:16]}.npz"
    return workdir / f"{name}.npz"


def load_or_score(
    path: Path,
    identity: str,
    data: pipeline.PairTrees,
    score: Score,
    packing: Packing,
    mesh: jax.sharding.Mesh,
    used: Callable[[], np.ndarray] | None = None,
) -> Scores:
    """{name: float32 [n]} of the pairs that are used: read from `path`, what it lacks scored and added.

    identity: their `fingerprint`. score: rows -> (scores under the reference, pair of each), on every
    process. used: gives bool [n], by default all; of others that were never scored there is NaN.
    Called by all processes; process 0 reads and writes, every PIECE_SECONDS what there is, so that an
    interrupted attempt is gone on with. Several runs may share the file. Raises UserError when it belongs
    to other weights, template, tokenizer or pairs, and when a score is not finite.
    """
    kept = ScoreFiles(path, identity)
    result = kept.known(data)
    whole = not np.isnan(result[data.names[0]]).any()
    asked = np.ones(len(data), bool) if whole or used is None else used()
    missing = np.flatnonzero(asked & np.isnan(result[data.names[0]]))
    if not len(missing):
        metrics.status(f"reference scores: {asked.sum()} pairs read from {path}")
        return result
    done = int(asked.sum()) - len(missing)
    with metrics.Progress("reference scores", int(asked.sum()), "pairs", done) as progress:
        for numbers, scores in _scored(data, score, packing, mesh, missing):
            kept.add(numbers, scores)
            for name, values in scores.items():
                result[name][numbers] = values
            progress.advance(len(numbers))
    kept.finish(result)
    return result


def score_all(
    data: pipeline.PairTrees,
    score: Score,
    packing: Packing,
    mesh: jax.sharding.Mesh,
    pairs: np.ndarray | None = None,
) -> Scores:
    """{name: float32 [n]} for all pairs of data, on every process; called by all of them.

    score: rows -> (scores, pair of each), on every process. pairs: of others there is 0.
    """
    asked = np.arange(len(data)) if pairs is None else pairs
    result = {name: np.zeros(len(data), np.float32) for name in data.names}
    for numbers, scores in _scored(data, score, packing, mesh, asked):
        for name, values in scores.items():
            result[name][numbers] = values
    return result


def _scored(
    data: pipeline.PairTrees,
    score: Score,
    packing: Packing,
    mesh: jax.sharding.Mesh,
    pairs: np.ndarray,
) -> Iterator[tuple[np.ndarray, Scores]]:
    """(numbers [m], {name: float32 [m]}) of these pairs, a batch at a time, on every process."""
    own = mesh_module.own_rows(mesh, packing.rows)
    for rows in pipeline.once(data, packing, pairs, own=own):
        scores, pair = score(mesh_module.host_to_global(mesh, rows))
        numbers = np.asarray(pair)
        there = numbers >= 0
        yield numbers[there], {name: np.asarray(v)[there] for name, v in scores.items()}


def weights_digest(weights: Any) -> str:
    """A digest of every bit of a pytree of arrays, the same however they are sharded."""
    digests = [digest.of(leaf) for leaf in jax.tree.leaves(weights)]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
