"""Reference scores on disk: one file, and beside it pieces of what has been scored since.

The file carries the fingerprint of all that its scores depend on. A file with another one is an error, not
a wrong number.
"""

import time
import uuid
import zipfile
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from srpo_jax.runtime import distributed, files, metrics
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.pipeline import PairTrees

Scores = dict[str, np.ndarray]
PIECE_SECONDS = 60.0  # between two writes of what has been scored
NUMBERS = "numbers"  # of the pairs in a piece


class ScoreFiles:
    """Scores in `path` and its pieces. Process 0 reads and writes; several runs may share them.

    identity: see `reference.fingerprint`.
    """

    def __init__(self, path: Path, identity: str):
        self.path, self.identity = path, identity
        self.numbers: list[np.ndarray] = []
        self.scores: list[Scores] = []
        self.pieces: list[Path] = []
        self.written = time.monotonic()

    def known(self, data: PairTrees) -> Scores:
        """{name: float32 [n]}, NaN where there is nothing; on every process, and called by all of them.

        Raises UserError where the file belongs to other weights, template, tokenizer or pairs.
        """
        known = {name: np.full(len(data), np.nan, np.float32) for name in data.names}
        distributed.from_main(lambda: self._fill(known))
        if jax.process_count() > 1:
            shared = multihost_utils.broadcast_one_to_all(known)
            known = {name: np.array(values) for name, values in shared.items()}
        return known

    def _fill(self, known: Scores) -> None:
        """With what the files hold."""
        if (whole := self._read(self.path)) is not None:
            for name, values in known.items():
                values[:] = whole[name]
        # Of earlier attempts: `finish` removes them, as all that is in them is known now.
        self.pieces = sorted(self.path.parent.glob(f"{self.path.stem}.piece-*.npz"))
        for piece in self.pieces:
            try:
                part = self._read(piece)
            except UserError as error:
                metrics.status(f"warning: {error}; its pairs are scored again")
                continue
            if part is not None:
                for name, values in known.items():
                    values[part[NUMBERS]] = part[name]

    def add(self, numbers: np.ndarray, scores: Scores) -> None:
        """Scores {name: float32 [m]} of the pairs of these numbers; every PIECE_SECONDS they are written.

        Raises UserError for a score that is not finite.
        """
        for name, values in scores.items():
            if not np.isfinite(values).all():
                first = int(numbers[~np.isfinite(values)][0])
                raise UserError(
                    f"the reference score {name!r} of pair {first} is not finite: check its weights"
                )
        self.numbers.append(numbers)
        self.scores.append(scores)
        if time.monotonic() - self.written >= PIECE_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what has been added since the last piece."""
        if metrics.is_main() and any(len(numbers) for numbers in self.numbers):
            joined = {n: np.concatenate([one[n] for one in self.scores]) for n in self.scores[0]}
            piece = self.path.with_name(f"{self.path.stem}.piece-{uuid.uuid4().hex}.npz")
            self._write(piece, joined | {NUMBERS: np.concatenate(self.numbers)})
            self.pieces.append(piece)
        self.numbers, self.scores, self.written = [], [], time.monotonic()

    def finish(self, scores: Scores) -> None:
        """All that is known, {name: float32 [n]}, in the one file, with what other runs have written."""
        if metrics.is_main():
            other = self._read(self.path)
            if other is not None:
                scores = {
                    name: np.where(np.isnan(own), other[name], own) for name, own in scores.items()
                }
            self._write(self.path, scores)
            for piece in self.pieces:
                piece.unlink(missing_ok=True)
        self.numbers, self.scores, self.pieces = [], [], []

    def _read(self, path: Path) -> dict[str, np.ndarray] | None:
        try:
            with path.open("rb") as content, np.load(content) as file:
                kept = dict(file)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): delete it and run again") from error
        if str(kept.pop("fingerprint", "")) != self.identity:
            raise UserError(
                f"{path} was scored with other reference weights, dtype, template, tokenizer or pairs: use "
                "another --workdir, or delete the file if the change is meant"
            )
        return kept

    def _write(self, path: Path, scores: Scores) -> None:
        with files.whole(path) as part, part.open("wb") as file:
            np.savez(file, allow_pickle=False, fingerprint=np.array(self.identity), **scores)
