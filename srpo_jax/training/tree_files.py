"""Trees on disk: built by the first start, read where they lie by every later one.

    FOLDER/0-of-2.tokens, FOLDER/0-of-2.runs, …   the columns of a forest, raw
    FOLDER/0-of-2.json                            written last: how many trees, sizes of the files

They are built in a folder of another name, which becomes FOLDER when it is whole: runs that share it never
see a part. There is a share for each process that built them, of the pairs whose number leaves the rest of
the process when divided by the number of processes. Whoever reads them later needs not be as many.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srpo_jax.data.records import Pair
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import distributed, storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.files import write_json
from srpo_jax.runtime.metrics import Progress, status
from srpo_jax.training.pipeline import Built, Count, LeftOut, Limits, PairTrees, built, none_fits
from srpo_jax.trees import forest
from srpo_jax.trees.forest import Forest, Shares
from srpo_jax.trees.prefix_tree import Tree

PATIENCE = 10  # seconds until a file of another host must be seen
ABANDONED = 3600.0  # seconds without a write to a build
VERSION = 4  # of these files, of what trees are, of the ids of prompts and answers, and of labels
# (dtype, shape of a row; None: a number for each sequence). `sizes` are the differences of bounds.
COLUMNS: dict[str, tuple[type, tuple[int | None, ...]]] = {
    "tokens": (np.int32, ()),
    "runs": (np.int32, (3,)),
    "target_token": (np.int32, ()),
    "target_runs": (np.int32, (4,)),
    "sizes": (np.int64, (4,)),
    "rank": (np.int32, (None,)),
    "lengths": (np.int32, (None,)),
    "depths": (np.int32, (None,)),
    "digests": (np.uint8, (forest.DIGEST,)),
    "numbers": (np.int64, ()),
    "labels": (np.float32, ()),
}
# Those that grow with the tokens stay on disk.
LARGE = ("tokens", "runs", "target_token", "target_runs")


@dataclasses.dataclass(frozen=True)
class Found:
    """All trees with their labels, float32 [n], in the order of the pairs; those that were dropped."""

    trees: Forest | Shares
    labels: np.ndarray
    left_out: LeftOut


def prepare(
    folder: Path,
    origin: Callable[[], str],
    pairs: Callable[[], Sequence[Pair]],
    renderer: Renderer,
    names: tuple[str, ...],
    limits: Limits,
    source: str,
) -> PairTrees:
    """`pipeline.prepare`, with the trees kept in a folder in `folder`, named by all that they depend on.

    origin: of the pairs, which are asked for only if their trees are not there. Called by all processes;
    raises UserError as `pipeline.prepare`, and where one of those that build reads other pairs.
    """
    tokenizer, first = renderer.tokenizer, distributed.from_main(origin)
    reads = (tokenizer.chat_template, tokenizer.begins_with_bos, renderer.stop_ids)
    decisive = (VERSION, first, names, renderer.fingerprint, reads, limits)
    key = hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]

    def build(process: int, processes: int) -> Built:
        if process and origin() != first:
            raise UserError(
                f"{source}: process {process} reads other pairs there than process 0: bring all hosts the "
                "same ones"
            )
        return built(pairs(), renderer, names, limits, source, process, processes)

    found = open_or_build(folder / key, build, lambda: len(pairs()))
    if not len(found.labels):
        raise none_fits(source, found.left_out, limits)
    return PairTrees(names, found.trees, found.labels, limits.row_length, found.left_out)


@dataclasses.dataclass(frozen=True)
class _Share:
    trees: Forest
    numbers: np.ndarray
    labels: np.ndarray
    left_out: LeftOut


def open_or_build(
    folder: Path, build: Callable[[int, int], Built], pairs: Callable[[], int]
) -> Found:
    """The trees in the folder; if they are not all there, every process builds its share first.

    build: (process, processes) -> `pipeline.built` of its share. pairs: how many there are in
    all. Called by all processes, which must see the same folder; other runs may build it meanwhile. What
    fails in one process fails in all.
    """
    processes = distributed.from_main(lambda: _complete(folder))
    if not processes:
        began = time.perf_counter()
        _build(folder, build, pairs)
        processes = distributed.from_main(lambda: _complete(folder))
        status(f"trees: built in {time.perf_counter() - began:.0f} s, kept in {folder}")
    shares: list[_Share] = []
    distributed.everywhere(lambda: shares.extend(_opened(folder, processes)))
    return _together(shares)


def _build(folder: Path, build: Callable[[int, int], Built], pairs: Callable[[], int]) -> None:
    """All shares, in a folder of this attempt that becomes `folder` when it is whole."""
    _remove_abandoned(folder)
    name = distributed.from_main(lambda: f".{folder.name}.building-{uuid.uuid4().hex}")
    building = folder.with_name(name)

    def write() -> None:
        process, processes = jax.process_index(), jax.process_count()
        own = len(range(process, pairs(), processes))
        _write(building, _name(process, processes), build(process, processes), own)

    def publish() -> None:
        if not _complete(building):
            raise UserError(
                f"{folder} does not get what all processes build: config.data.cache (by default the "
                "workdir) must be a folder that all of them share"
            )
        if _complete(folder):  # another run was faster
            storage.remove_folder(building)
            return
        storage.remove_folder(folder)  # damaged
        storage.rename_folder(building, folder)

    try:
        distributed.everywhere(write)
        distributed.from_main(publish)
    except BaseException:
        if jax.process_index() == 0:
            storage.remove_folder(building)
        raise


def _remove_abandoned(folder: Path) -> None:
    """What builds that were killed have left, and no process has written to for a while. In process 0."""
    if jax.process_index() != 0:
        return
    for left in folder.parent.glob(f".{folder.name}.building-*"):
        newest = max(map(storage.changed, left.iterdir()), default=0.0)
        if time.time() - newest > ABANDONED:
            storage.remove_folder(left)


def _name(process: int, processes: int) -> str:
    return f"{process}-of-{processes}"


def _complete(folder: Path) -> int:
    """How many processes built what is there, each file as long as it should be; 0 if not whole."""
    manifests = sorted(folder.glob("0-of-*.json"))
    count = int(manifests[0].stem.split("-")[-1]) if manifests else 0
    try:
        for process in range(count):
            for _ in _files(folder, _name(process, count)):
                pass
    except (ValueError, KeyError, TypeError, OSError) as error:
        status(f"{folder}: these trees are not whole ({error})")
        return 0
    return count


def _opened(folder: Path, processes: int) -> list[_Share]:
    """The shares of all processes; a moment is given to folders on a network."""
    for attempt in range(PATIENCE):
        try:
            return [_read(folder, _name(process, processes)) for process in range(processes)]
        except (ValueError, KeyError, TypeError, OSError) as error:
            if attempt + 1 == PATIENCE:
                raise UserError(
                    f"{folder} cannot be read by process {jax.process_index()} ({error}): "
                    "config.data.cache (by default the workdir) must be a folder that all processes share"
                ) from error
            time.sleep(1)
    raise AssertionError


def _write(folder: Path, name: str, built: Built, pairs: int) -> None:
    """A share of so many pairs, its manifest last."""
    with storage.staged(folder) as here:
        manifest = _write_columns(here, name, built, pairs)
    write_json(folder / f"{name}.json", manifest)


def _write_columns(folder: Path, name: str, built: Built, pairs: int) -> dict[str, Any]:
    """The files of a share in a folder of this machine; returns the manifest."""
    numbers: list[int] = []
    labels: list[float] = []
    count = Count()

    def told(progress: Progress) -> Built:
        for one in built:
            progress.advance()
            yield one

    def trees(progress: Progress) -> Iterator[Tree]:
        for number, label, tree in count.kept(told(progress)):
            numbers.append(number)
            labels.append(label)
            yield tree

    sequences = 0
    with contextlib.ExitStack() as stack:
        files = {
            column: stack.enter_context((folder / f"{name}.{column}").open("wb"))
            for column in COLUMNS
        }
        progress = stack.enter_context(Progress("trees", pairs, unit="pairs"))
        for chunk in forest.in_chunks(trees(progress)):
            sequences = chunk.rank.shape[1]
            for column in COLUMNS.keys() - {"sizes", "numbers", "labels"}:
                getattr(chunk, column).tofile(files[column])
            np.diff(chunk.bounds, axis=0).tofile(files["sizes"])
        np.array(numbers, np.int64).tofile(files["numbers"])
        np.array(labels, np.float32).tofile(files["labels"])
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return {
        "trees": len(numbers),
        "sequences": sequences,
        "left_out": count.left_out,
        "bytes": {column: storage.size(folder / f"{name}.{column}") for column in COLUMNS},
    }


def _files(folder: Path, name: str) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """(column, file, manifest) of a share; raises OSError, ValueError, KeyError or TypeError if damaged."""
    manifest: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    for column in COLUMNS:
        path = folder / f"{name}.{column}"
        size, should = storage.size(path), manifest["bytes"][column]
        if size != should:
            raise ValueError(f"{path.name} has {size} bytes, not {should}")
        yield column, path, manifest


def _read(folder: Path, name: str) -> _Share:
    """A share; raises what `_files` does."""
    columns, left_out = {}, LeftOut()
    for column, path, manifest in _files(folder, name):
        columns[column], left_out = _column(path, column, manifest), LeftOut(*manifest["left_out"])
    numbers, labels, sizes = (columns.pop(key) for key in ("numbers", "labels", "sizes"))
    trees = Forest(**columns, bounds=forest.bounds_of(sizes))
    return _Share(trees, numbers, labels, left_out)


def _column(path: Path, column: str, manifest: dict[str, Any]) -> np.ndarray:
    dtype, row = COLUMNS[column]
    shape = (-1, *(manifest["sequences"] if width is None else width for width in row))
    if not manifest["bytes"][column]:
        return np.zeros((0, *shape[1:]), dtype)
    if column in LARGE:
        return np.memmap(storage.local_copy(path), dtype, "r").reshape(shape)
    return np.frombuffer(path.read_bytes(), dtype).reshape(shape)


def _together(shares: list[_Share]) -> Found:
    left_out = LeftOut(
        sum(share.left_out.long for share in shares),
        sum(share.left_out.refused for share in shares),
        next((share.left_out.first for share in shares if share.left_out.first), ""),
    )
    filled = [share for share in shares if len(share.trees)]
    if len(filled) == 1:
        return Found(filled[0].trees, filled[0].labels, left_out)
    if not filled:
        return Found(Forest.of([]), np.zeros(0, np.float32), left_out)
    trees = Shares([share.trees for share in filled], [share.numbers for share in filled])
    labels = np.concatenate([share.labels for share in filled])[trees.order]
    return Found(trees, labels, left_out)
