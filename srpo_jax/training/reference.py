"""Reference scores: computed once, kept beside the run, and never used for anything else.

The file carries a fingerprint of all they depend on: the reference's weights, and the trees (which the
tokenizer, the template, the pairs and their lengths determine). A file with another fingerprint is an
error, not a wrong number.
"""

import functools
import hashlib
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import metrics
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline
from srpo_jax.trees.packing import Packing
from srpo_jax.trees.prefix_tree import Rows

Scores = dict[str, np.ndarray]
Score = Callable[[Rows], tuple[dict[str, jax.Array], jax.Array]]


def load_or_score(
    path: Path,
    data: pipeline.PairTrees,
    weights: Any,
    score: Score,
    packing: Packing,
    mesh: jax.sharding.Mesh,
) -> Scores:
    """{name: float32 [n]} for all pairs of data, from `path` if it is there, else scored and written.

    weights: pytree of the reference's arrays, for the fingerprint. score: rows -> (scores under the
    reference, pair of each), on every process. Called by all processes; process 0 reads and writes.
    Raises UserError when the file belongs to other weights, template, tokenizer or pairs, and when a
    score is not finite.
    """
    fingerprint = hashlib.sha256(
        f"{data.fingerprint}{weights_digest(weights)}".encode()
    ).hexdigest()
    kept = _read(path, fingerprint, data) if metrics.is_main() else None
    if jax.process_count() > 1:
        found = multihost_utils.broadcast_one_to_all(np.array(kept is not None))
        if bool(found):
            empty = {name: np.zeros(len(data), np.float32) for name in data.names}
            kept = multihost_utils.broadcast_one_to_all(kept or empty)
            kept = {name: np.asarray(values) for name, values in kept.items()}
    if kept is not None:
        metrics.status(f"reference scores: {len(data)} pairs read from {path}")
        return kept
    with metrics.Progress("reference scores", len(data), unit="pairs") as progress:
        result = score_all(data, score, packing, mesh, progress.advance)
    bad = [name for name, values in result.items() if not np.isfinite(values).all()]
    if bad:
        first = int(np.flatnonzero(~np.isfinite(result[bad[0]]))[0])
        raise UserError(
            f"the reference score {bad[0]!r} of pair {first} is not finite: check its weights"
        )
    if metrics.is_main():
        _write(path, fingerprint, result)
    return result


def score_all(
    data: pipeline.PairTrees,
    score: Score,
    packing: Packing,
    mesh: jax.sharding.Mesh,
    advance: Callable[[int], None] = lambda pairs: None,
) -> Scores:
    """{name: float32 [n]} for all pairs of data, on every process; called by all of them.

    score: rows -> (scores, pair of each), on every process. advance: is told the pairs done.
    """
    result = {name: np.zeros(len(data), np.float32) for name in data.names}
    shares = {"process": jax.process_index(), "processes": jax.process_count()}
    for rows in pipeline.once(data, packing, **shares):
        # The order of rows over processes is the mesh's affair: each place says whose it is.
        scores, pair = score(mesh_module.host_to_global(mesh, rows))
        there = np.asarray(pair) >= 0
        for name, values in scores.items():
            result[name][np.asarray(pair)[there]] = np.asarray(values)[there]
        advance(int(there.sum()))
    return result


def weights_digest(weights: Any) -> str:
    """A digest of every bit of a pytree of arrays, the same however they are sharded.

    Each element's bits are multiplied by an odd number made from its index and summed modulo 2^32:
    integer addition has no order, so no array needs to be gathered.
    """
    digests = [int(_digest(leaf)) for leaf in jax.tree.leaves(weights)]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


@functools.partial(jax.jit)
def _digest(x: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32)
    index = jnp.zeros(x.shape, jnp.uint32)
    for axis in range(x.ndim):
        index = index * jnp.uint32(x.shape[axis]) + jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis
        )
    # Multiplication by a constant and xor-shift spread neighbouring indices (Knuth's 2^32 / phi).
    index = index * jnp.uint32(2654435769)
    return jnp.sum(bits.astype(jnp.uint32) * ((index ^ (index >> 15)) | 1), dtype=jnp.uint32)


def _read(path: Path, fingerprint: str, data: pipeline.PairTrees) -> Scores | None:
    if not path.is_file():
        return None
    try:
        with np.load(path) as file:
            kept = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it and run again") from error
    if str(kept.pop("fingerprint", "")) != fingerprint:
        raise UserError(
            f"{path} was scored with other reference weights, template, tokenizer or pairs: use another "
            "--workdir, or delete the file if the change is meant"
        )
    return {name: kept[name] for name in data.names}


def _write(path: Path, fingerprint: str, scores: Scores) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, allow_pickle=False, fingerprint=np.array(fingerprint), **scores)
    os.replace(part, path)
