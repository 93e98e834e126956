"""Reference scores: computed once, for the pairs that a run uses, and kept beside it as they come.

The file carries a fingerprint of all they depend on: the reference's weights and architecture, dtype too,
and the trees (which the tokenizer, the template, the pairs and their lengths determine). A file with
another fingerprint is an error, not a wrong number.
"""

import dataclasses
import hashlib
import json
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.runtime import digest, files, metrics, storage
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline
from srpo_jax.trees.packing import Packing
from srpo_jax.trees.prefix_tree import Rows

Scores = dict[str, np.ndarray]
PIECE_SECONDS = 60.0  # between two writes of what has been scored
VERSION = 1  # of how scores are computed
NUMBERS = "numbers"  # of the pairs in a piece
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
    return hashlib.sha256(depends.encode()).hexdigest()


class Reference(NamedTuple):
    """The reference policy. score: see `Score`; weights and architecture: see `fingerprint`."""

    score: Score
    weights: Any
    architecture: DecoderConfig


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
    result = _known(path, identity, data)
    whole = not np.isnan(result[data.names[0]]).any()
    asked = np.ones(len(data), bool) if whole or used is None else used()
    missing = np.flatnonzero(asked & np.isnan(result[data.names[0]]))
    if not len(missing):
        metrics.status(f"reference scores: {asked.sum()} pairs read from {path}")
        return result
    keep = _Pieces(path, identity)
    done = int(asked.sum()) - len(missing)
    with metrics.Progress("reference scores", int(asked.sum()), "pairs", done) as progress:
        for numbers, scores in _scored(data, score, packing, mesh, missing):
            for name, values in scores.items():
                if not np.isfinite(values).all():
                    first = int(numbers[~np.isfinite(values)][0])
                    raise UserError(
                        f"the reference score {name!r} of pair {first} is not finite: check its weights"
                    )
                result[name][numbers] = values
            keep.add(numbers, scores)
            progress.advance(len(numbers))
    if metrics.is_main():
        _write(path, identity, _merged(_read(path, identity), result))
        keep.remove()
    return result


def _merged(other: Scores | None, own: Scores) -> Scores:
    """With what another run has written meanwhile."""
    if other is None:
        return own
    return {name: np.where(np.isnan(values), other[name], values) for name, values in own.items()}


def score_all(
    data: pipeline.PairTrees, score: Score, packing: Packing, mesh: jax.sharding.Mesh
) -> Scores:
    """{name: float32 [n]} for all pairs of data, on every process; called by all of them.

    score: rows -> (scores, pair of each), on every process.
    """
    result = {name: np.zeros(len(data), np.float32) for name in data.names}
    for numbers, scores in _scored(data, score, packing, mesh, np.arange(len(data))):
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


class _Pieces:
    """What this run has scored so far, in files beside `path`. Process 0 writes them."""

    def __init__(self, path: Path, identity: str):
        self.path, self.identity = path, identity
        self.numbers: list[np.ndarray] = []
        self.scores: list[Scores] = []
        self.files = _pieces(path)  # of earlier attempts, whose scores this one has read
        self.written = time.monotonic()

    def add(self, numbers: np.ndarray, scores: Scores) -> None:
        if not metrics.is_main():
            return
        self.numbers.append(numbers)
        self.scores.append(scores)
        if time.monotonic() - self.written >= PIECE_SECONDS:
            joined = {n: np.concatenate([one[n] for one in self.scores]) for n in scores}
            file = self.path.with_name(f"{self.path.stem}.piece-{uuid.uuid4().hex}.npz")
            _write(file, self.identity, joined | {NUMBERS: np.concatenate(self.numbers)})
            self.files.append(file)
            self.numbers, self.scores, self.written = [], [], time.monotonic()

    def remove(self) -> None:
        for file in self.files:
            file.unlink(missing_ok=True)


def _pieces(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.stem}.piece-*.npz"))


def _known(path: Path, identity: str, data: pipeline.PairTrees) -> Scores:
    """{name: float32 [n]} from the file and its pieces, NaN where there is nothing; on every process."""
    known = {name: np.full(len(data), np.nan, np.float32) for name in data.names}
    if metrics.is_main():
        if (whole := _read(path, identity)) is not None:
            known = {name: whole[name].copy() for name in data.names}
        for piece in _pieces(path):
            try:
                part = _read(piece, identity)
            except UserError as error:
                metrics.status(f"warning: {error}; its pairs are scored again")
                continue
            if part is not None:
                for name in data.names:
                    known[name][part[NUMBERS]] = part[name]
    if jax.process_count() > 1:
        shared = multihost_utils.broadcast_one_to_all(known)
        known = {name: np.array(values) for name, values in shared.items()}
    return known


def _read(path: Path, identity: str) -> dict[str, np.ndarray] | None:
    try:
        with path.open("rb") as content, np.load(content) as file:
            kept = dict(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run again") from error
    if str(kept.pop("fingerprint", "")) != identity:
        raise UserError(
            f"{path} was scored with other reference weights, dtype, template, tokenizer or pairs: use "
            "another --workdir, or delete the file if the change is meant"
        )
    return kept


def _write(path: Path, identity: str, scores: Scores) -> None:
    with files.whole(path) as part, part.open("wb") as file:
        np.savez(file, allow_pickle=False, fingerprint=np.array(identity), **scores)
