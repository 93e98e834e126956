"""Scores that a judge here has given, on disk: judging that was interrupted goes on behind them."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from srpo_jax.judges.judge import Prompt
from srpo_jax.models.digest import Digests
from srpo_jax.runtime import storage

FOLDER = "judge_scores"  # in a workdir


class KeptScores:
    """The score of each completion, in a file that grows; NaN is kept, too. For one process.

    path: of one judge, see `place`. A last line that was cut off is passed over.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        content = path.read_bytes() if path.is_file() else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        self._known: dict[str, float] = {}
        for line in content.splitlines():
            with contextlib.suppress(ValueError, TypeError):
                key, score = json.loads(line)
                self._known[key] = float("nan") if score is None else float(score)

    def get(self, prompt: Prompt, completion: str) -> float | None:
        """None for a completion that has not been scored."""
        return self._known.get(_key(prompt, completion)) if self._known else None

    def put(self, scores: Mapping[tuple[Prompt, str], float]) -> None:
        """They are on disk when this returns, or in a store."""
        lines = ["\n"] if self._torn else []
        for (prompt, completion), score in scores.items():
            key = _key(prompt, completion)
            self._known[key] = score
            lines.append(json.dumps([key, None if score != score else score]) + "\n")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        storage.append(self._path, "".join(lines).encode())
        self._torn = False


def place(folder: Path, source: str, how: str) -> Path:
    """The file for a judge's scores in a workdir; another one for other weights, or asked otherwise.

    source: of the weights, pinned (see `models.digest`); every byte of them is read once. how: what else
    decides a score.
    """
    weights = Digests(folder / FOLDER / "digests.json").of(source)
    of = hashlib.sha256(json.dumps([weights, how]).encode())
    return folder / FOLDER / f"{of.hexdigest()[:16]}.jsonl"


def _key(prompt: Prompt, completion: str) -> str:
    said = prompt if isinstance(prompt, str) else [[turn.role, turn.content] for turn in prompt]
    return hashlib.sha256(json.dumps([said, completion]).encode()).hexdigest()[:32]
