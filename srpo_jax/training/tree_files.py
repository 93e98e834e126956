"""Trees on disk: built by the first start, read where they lie by every later one.

    FOLDER/0-of-2.tokens, FOLDER/0-of-2.runs, …   the columns of a forest, raw
    FOLDER/0-of-2.json                            written last: how many trees, sizes, a digest

There is a share for each process that built them, of the pairs whose number leaves the rest of the process
when divided by the number of processes. Whoever reads them later needs not be as many.
"""

import contextlib
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srpo_jax.data.records import Pair
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import distributed
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress, status
from srpo_jax.training.pipeline import Limits, PairTrees, built, none_fits
from srpo_jax.trees import forest
from srpo_jax.trees.forest import Forest, Shares
from srpo_jax.trees.prefix_tree import Tree

VERSION = 1  # of these files and of what trees are
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

Built = Iterator[tuple[int, float, Tree | None]]


@dataclasses.dataclass(frozen=True)
class Found:
    """All trees with their labels, float32 [n], in the order of the pairs; how many pairs were dropped."""

    trees: Forest | Shares
    labels: np.ndarray
    dropped: int


def prepare(
    folder: Path,
    origin: str,
    pairs: Callable[[], Sequence[Pair]],
    renderer: Renderer,
    names: tuple[str, ...],
    limits: Limits,
    source: str,
) -> PairTrees:
    """`pipeline.prepare`, with the trees kept in a folder in `folder`, named by all that they depend on.

    origin: of the pairs, which are asked for only if their trees are not there. Called by all processes.
    """
    tokenizer = renderer.tokenizer
    reads = (tokenizer.chat_template, tokenizer.begins_with_bos, renderer.stop_ids)
    decisive = (VERSION, origin, names, renderer.fingerprint, reads, limits)
    key = hashlib.sha256(repr(decisive).encode()).hexdigest()[:16]

    def build(process: int, processes: int) -> Built:
        return built(pairs(), renderer, names, limits, source, process, processes)

    found = open_or_build(folder / key, build, lambda: len(pairs()))
    if not len(found.labels):
        raise none_fits(source, found.dropped, limits.row_length)
    return PairTrees(names, found.trees, found.labels, limits.row_length, found.dropped)


def open_or_build(
    folder: Path, build: Callable[[int, int], Built], pairs: Callable[[], int]
) -> Found:
    """The trees in the folder; if they are not all there, every process builds its share first.

    build: (process, processes) -> (number, label, tree or None) of its share. pairs: how many there are in
    all. Called by all processes, which must see the same folder. What fails in one process fails in all.
    """
    processes = distributed.from_main(lambda: _complete(folder))
    if not processes:
        began = time.perf_counter()
        processes = jax.process_count()
        process = jax.process_index()

        def write() -> None:
            own = len(range(process, pairs(), processes))
            _write(folder, _name(process, processes), build(process, processes), own)

        distributed.everywhere(write)
        status(f"trees: built in {time.perf_counter() - began:.0f} s, kept in {folder}")
    shares = [_read(folder, _name(process, processes)) for process in range(processes)]
    if any(share is None for share in shares):
        raise UserError(
            f"{folder} does not hold what all processes have built: config.data.cache (by default the "
            "workdir) must be a folder that all of them share"
        )
    return _together([share for share in shares if share is not None])


def _name(process: int, processes: int) -> str:
    return f"{process}-of-{processes}"


def _complete(folder: Path) -> int:
    """Of how many processes all shares are there; 0 if of none. Says which file is damaged."""
    counts = {int(path.stem.split("-")[-1]) for path in folder.glob("0-of-*.json")}
    for count in sorted(counts):
        if all(_read(folder, _name(process, count)) for process in range(count)):
            return count
    return 0


def _write(folder: Path, name: str, built: Built, pairs: int) -> None:
    """A share of so many pairs, its manifest last."""
    numbers: list[int] = []
    labels: list[float] = []
    dropped = 0

    def trees(progress: Progress) -> Iterator[Tree]:
        nonlocal dropped
        for number, label, tree in built:
            progress.advance()
            if tree is None:
                dropped += 1
                continue
            numbers.append(number)
            labels.append(label)
            yield tree

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").unlink(missing_ok=True)
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
    manifest = {
        "trees": len(numbers),
        "sequences": sequences,
        "dropped": dropped,
        "bytes": {column: (folder / f"{name}.{column}").stat().st_size for column in COLUMNS},
    }
    part = folder / f"{name}.part"
    part.write_text(json.dumps(manifest, indent=2) + "\n")
    part.replace(folder / f"{name}.json")


@dataclasses.dataclass(frozen=True)
class _Share:
    trees: Forest
    numbers: np.ndarray
    labels: np.ndarray
    dropped: int


def _read(folder: Path, name: str) -> _Share | None:
    """None where it is missing; or damaged, which is said."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        columns = {
            column: _column(folder / f"{name}.{column}", column, manifest) for column in COLUMNS
        }
    except (ValueError, KeyError, TypeError, OSError) as error:
        status(f"{path}: these trees are damaged ({error}) and built anew")
        return None
    numbers, labels, sizes = (columns.pop(key) for key in ("numbers", "labels", "sizes"))
    trees = Forest(**columns, bounds=forest.bounds_of(sizes))
    return _Share(trees, numbers, labels, int(manifest["dropped"]))


def _column(path: Path, column: str, manifest: dict[str, Any]) -> np.ndarray:
    dtype, row = COLUMNS[column]
    size = path.stat().st_size
    if size != manifest["bytes"][column]:
        raise ValueError(f"{path.name} has {size} bytes, not {manifest['bytes'][column]}")
    shape = (-1, *(manifest["sequences"] if width is None else width for width in row))
    if not size:
        return np.zeros((0, *shape[1:]), dtype)
    if column in LARGE:
        return np.memmap(path, dtype, "r").reshape(shape)
    return np.fromfile(path, dtype).reshape(shape)


def _together(shares: list[_Share]) -> Found:
    dropped = sum(share.dropped for share in shares)
    filled = [share for share in shares if len(share.trees)]
    if len(filled) == 1:
        return Found(filled[0].trees, filled[0].labels, dropped)
    if not filled:
        return Found(Forest.of([]), np.zeros(0, np.float32), dropped)
    trees = Shares([share.trees for share in filled], [share.numbers for share in filled])
    labels = np.concatenate([share.labels for share in filled])[trees.order]
    return Found(trees, labels, dropped)
