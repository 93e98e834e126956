"""Held-out pairs: which they are, and the objective on them, without a gradient."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax import Array

from srpo_jax.data import held_out, records, sources
from srpo_jax.data.records import Pair
from srpo_jax.objectives import Objective, diagnostics
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.training.pipeline import PairTrees
from srpo_jax.training.settings import DataSettings


def origin(
    data: DataSettings, read: Callable[[], tuple[list[Pair], list[Pair]]], held: bool
) -> str:
    """A digest of the pairs of config.data, of those held out or the others: of the files they come from.

    Of sources that are no files, of the pairs themselves, for which `read` reads both.
    """
    own = not data.held_out and not data.held_out_split  # held out are some of `pairs`
    names = [data.pairs] if own or not held else [data.pairs, data.held_out or data.pairs]
    found = [sources.files(name) for name in names]
    if not all(found):
        digest = hashlib.sha256()
        for pair in read()[held]:
            digest.update(repr(pair).encode())
        return digest.hexdigest()
    given: list[Any] = [data.format, data.split, data.fields, *map(_digests, found)]
    if own or held:
        given += [held, data.held_out_split, data.held_out_count]
    return repr(given)


def _digests(files: Sequence[Path]) -> str:
    def digest(path: Path) -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return " ".join(map(digest, files))


def read_pairs(
    data: DataSettings, *, rejected: bool, evaluated: bool, distinct: bool = True
) -> tuple[list[Pair], list[Pair]]:
    """(pairs to train on, held-out pairs) of config.data.

    rejected, distinct: whether a pair must have a rejected completion, another than the chosen one.
    evaluated: whether the held-out ones are
    asked for; pairs that are split off are not trained on either way. Raises UserError where there are
    none, where none is left to train on, and where all held-out ones are trained on.
    """

    def read(source: str, split: str) -> list[Pair]:
        return records.read_pairs(
            source,
            format=data.format,
            split=split,
            fields=data.fields,
            rejected=rejected,
            distinct=distinct,
        )

    pairs = read(data.pairs, data.split)
    if not data.held_out and not data.held_out_split:
        others, held = held_out.split_off(pairs, data.held_out_count)
        if evaluated and not held:
            raise UserError(
                "config.train.evaluate_every needs pairs that are not trained on: name them in "
                "config.data.held_out, or set config.data.held_out_count to how many to hold back"
            )
        if not others:
            raise UserError(
                f"config.data.held_out_count={data.held_out_count} leaves none of the {len(pairs)} pairs "
                f"of {data.pairs} to train on"
            )
        return others, held
    if not evaluated:
        return pairs, []
    held = read(data.held_out or data.pairs, data.held_out_split or data.split)
    if data.held_out_count:
        _, held = held_out.split_off(held, data.held_out_count)
    if shared := held_out.shared_prompts(held, pairs):
        if shared == len(held):
            raise UserError(
                f"config.data.held_out: the prompts of all {shared} held-out pairs are trained on"
            )
        status(f"warning: {shared} of {len(held)} held-out pairs have a prompt that is trained on")
    return pairs, held


def metrics(
    objective: Objective,
    hyper: Mapping[str, Any],
    data: PairTrees,
    scores: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """The means over all pairs of the objective's loss and metrics, by name.

    scores: {name: float32 [n]} of the policy on the pairs of data, whose reference scores are there if the
    objective needs them. Where it shows drafts, with the halves of margin_improve; of rewards, with their
    calibration.
    """
    lengths = {
        name: data.trees.lengths[:, i].astype(np.float32) for i, name in enumerate(data.names)
    }
    _, said = objective(scores, data.reference, data.label_prob, lengths=lengths, **hyper)
    values: dict[str, Array | np.ndarray] = dict(said)
    if "margin_improve" in values:
        values |= diagnostics.improve_margins(scores, data.reference, hyper["beta"])
    means = {name: float(np.mean(np.asarray(value, np.float64))) for name, value in values.items()}
    if objective.rewards:
        means |= diagnostics.calibration(np.asarray(said["margin"]), data.label_prob)
    return means
