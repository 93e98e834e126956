"""Checkpoints in s3://, for which Orbax has no writer: what its Checkpointer does in folders and gs://.

In `<directory>/<step>/` each array has a folder of its own, in zarr's format; each process writes its own
part of it, straight to the store. A step counts as a checkpoint once it has a `checkpoint.json`, which says
what there is: the first process writes it when all processes have written everything. A save that was cut
off before is passed over, and removed by the next start.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tensorstore
from jax.experimental.array_serialization.serialization import GlobalAsyncCheckpointManager
from orbax.checkpoint import v1 as ocp

from srpo_jax.runtime import files, storage

SCHEME = "s3://"
COMPLETE = "checkpoint.json"
OBJECT_BYTES = 2**26  # of an array in one object
PATIENCE = 3600  # seconds that a process waits until the others have written their parts
READERS = 8  # arrays that are read at a time
RETRIES = 32  # of a request, at most 32 s apart: the store may be away for a quarter of an hour
CONTEXT = tensorstore.Context()  # one, so that credentials are asked for once


@dataclasses.dataclass(frozen=True)
class Saved:
    """A complete checkpoint. The metrics are filled in where they decide what is kept."""

    step: int
    metrics: dict[str, float] | None = None


@dataclasses.dataclass(frozen=True)
class Description:
    """metadata: name -> shape and dtype of an array, or a number; keys: name -> kind of a random key."""

    metadata: dict[str, Any]
    keys: dict[str, str]
    metrics: dict[str, float] | None


class StoreCheckpointer:
    """Is to `Checkpoints` what Orbax's Checkpointer is.

    Args:
        directory: in the store.
        every: a save is due at multiples of this many steps.
        kept: which of a sequence of `Saved`, oldest first, are kept: one of Orbax's policies.
        read_only: what was cut off is left alone.
        in_flight: at most so many bytes (or one array) are under way at a time; None: all at once.

    Raises:
        UserError: the store does not answer, or refuses. So does `reload`.
    """

    def __init__(
        self, directory: Path, every: int, kept: Any, read_only: bool, in_flight: int | None
    ) -> None:
        self._directory, self._every, self._kept = directory, every, kept
        self._in_flight = math.inf if in_flight is None else in_flight
        self._writer, self._unfinished = GlobalAsyncCheckpointManager(PATIENCE), False
        self.checkpoints: list[Saved] = []  # oldest first
        self.reload()
        if not read_only and jax.process_index() == 0:
            whole = {saved.step for saved in self.checkpoints}
            with storage.asking(directory):
                for step in set(self._steps()) - whole:
                    storage.remove_folder(directory / str(step))

    def reload(self) -> None:
        """Looks again which checkpoints there are."""
        with storage.asking(self._directory):
            self.checkpoints = [Saved(step) for step in self._steps() if self._is_whole(step)]

    def should_save(self, step: int) -> bool:
        """Whether a save is due."""
        return step % self._every == 0

    def save_async(
        self, step: int, flat: Mapping[str, Any], force: bool, metrics: dict[str, float] | None
    ) -> bool | None:
        """Begins to save, whether it is due or not; None where there is a checkpoint of that step.

        flat: name -> jax array, numpy array or number. What lies on one process alone is the same on each,
        and the first one writes it.
        """
        self.wait()
        if any(saved.step == step for saved in self.checkpoints):
            return None
        described: dict[str, Any] = {"arrays": {}, "numbers": {}, "metrics": metrics}
        spread: dict[str, jax.Array] = {}
        local: dict[str, np.ndarray] = {}
        for name, leaf in flat.items():
            if not isinstance(leaf, jax.Array | np.ndarray):
                described["numbers"][name] = leaf
                continue
            leaf, key = _words(leaf)
            described["arrays"][name] = {"shape": leaf.shape, "dtype": leaf.dtype.name} | key
            one = jax.process_count() == 1
            if isinstance(leaf, jax.Array) and (one or not leaf.is_fully_addressable):
                spread[name] = leaf
            else:
                local[name] = np.asarray(leaf)
        finish = lambda: self._finish(step, local, described)
        with self._saving():
            *first, last = _parts(spread, self._in_flight)
            for names, then in [*((names, None) for names in first), (last, finish)]:
                parts = [spread[name] for name in names]
                specs = [self._spec(step, name, spread[name]) for name in names]
                self._writer.serialize(parts, specs, on_commit_callback=then)
            self._unfinished = True
        return True

    def metadata(self, step: int) -> Description:
        """What a checkpoint holds. Raises ValueError, KeyError or TypeError where that is damaged."""
        with storage.asking(self._directory):
            text = (self._directory / str(step) / COMPLETE).read_text(encoding="utf-8")
        said = json.loads(text)
        arrays = {
            name: jax.ShapeDtypeStruct(tuple(one["shape"]), jax.numpy.dtype(one["dtype"]))
            for name, one in said["arrays"].items()
        }
        keys = {name: one["key"] for name, one in said["arrays"].items() if "key" in one}
        return Description(arrays | said["numbers"], keys, said["metrics"])

    def load(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Reads what is wanted: name -> jax array or its description with a sharding, numpy array, number.

        Raises what TensorStore raises, where parts are missing or cannot be read.
        """
        held = self.metadata(step)

        def read(name: str, leaf: Any) -> Any:
            if not isinstance(held.metadata[name], jax.ShapeDtypeStruct):
                return held.metadata[name]
            spec = self._spec(step, name) | {"fill_missing_data_reads": False}
            array = tensorstore.open(spec, open=True, context=CONTEXT).result()
            if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
                return array.read().result()
            placed = _placed(array, leaf.sharding)
            if name in held.keys:
                return jax.random.wrap_key_data(placed, impl=held.keys[name])
            return placed

        with ThreadPoolExecutor(READERS) as pool:
            return dict(
                zip(wanted, pool.map(read, *zip(*wanted.items(), strict=True)), strict=True)
            )

    def wait(self) -> None:
        """Until the last save is complete, on all processes; raises its failure."""
        if self._unfinished:
            self._unfinished = False
            with self._saving():
                self._writer.wait_until_finished()
            self.reload()

    def close(self) -> None:
        """`wait`."""
        self.wait()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # The old one would wait for what the other processes say of the save that has failed.
            self._writer = GlobalAsyncCheckpointManager(PATIENCE)
            raise

    def _finish(self, step: int, local: Mapping[str, np.ndarray], described: Any) -> None:
        """In the first process, once all have written their parts."""
        for name, value in local.items():
            spec = self._spec(step, name, value)
            array = tensorstore.open(spec, create=True, context=CONTEXT).result()
            array.write(value).result()
        files.write_json(self._directory / str(step) / COMPLETE, described)
        held = [Saved(one, self._metrics(one)) for one in self._steps() if self._is_whole(one)]
        context = ocp.training.preservation_policies.PreservationContext()
        for saved, is_kept in zip(
            held, self._kept.should_preserve(held, context=context), strict=True
        ):
            if not is_kept:
                folder = self._directory / str(saved.step)
                (folder / COMPLETE).unlink()  # first: from now on it does not count
                storage.remove_folder(folder)

    def _metrics(self, step: int) -> dict[str, float] | None:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged
            return self.metadata(step).metrics
        return None

    def _steps(self) -> list[int]:
        """Of all folders, complete or not, in order."""
        # `is_dir` and `is_file` would take every failure of the store for a no.
        try:
            found = list(self._directory.iterdir())
        except FileNotFoundError:
            return []
        return sorted(int(path.name) for path in found if path.name.isdecimal())

    def _is_whole(self, step: int) -> bool:
        try:
            (self._directory / str(step) / COMPLETE).stat()
        except FileNotFoundError:
            return False
        return True

    def _spec(self, step: int, name: str, new: Any = None) -> dict[str, Any]:
        """TensorStore's of an array that is there, or of a new one."""
        bucket, _, folder = str(self._directory).partition("://")[2].partition("/")
        spec: dict[str, Any] = {
            "driver": "zarr3",
            "kvstore": {
                "driver": "s3",
                "bucket": bucket,
                "path": f"{folder}/{step}/{name}/",
                "s3_request_retries": {"max_retries": RETRIES},
                **_server(),
            },
            "context": {"cache_pool": {"total_bytes_limit": 0}},  # nothing is read twice
        }
        if new is not None:
            chunk = {"chunk_shape": _chunk(new)}
            spec["store_data_equal_to_fill_value"] = (
                True  # else zeros are told from nothing by no one
            )
            spec["metadata"] = {
                "shape": new.shape,
                "data_type": new.dtype.name,
                "chunk_grid": {"name": "regular", "configuration": chunk},
                "codecs": [],
            }
        return spec


def is_cut_off(step: Path) -> bool:
    """Whether a step's folder is one of s3:// whose save was not complete. Orbax renames its own then."""
    return str(step).startswith(SCHEME) and not (step / COMPLETE).is_file()


def _server() -> dict[str, Any]:
    """What AWS' own variables say of the server and of who asks, in TensorStore's words."""
    said: dict[str, Any] = {}
    if "AWS_ACCESS_KEY_ID" in os.environ:  # else it looks for files first, and complains of each
        said["aws_credentials"] = {"type": "environment"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:  # not Amazon's, which says itself in which region a bucket is
        said["endpoint"] = endpoint.rstrip("/")
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            said["aws_region"] = region
    return said


def _words(leaf: Any) -> tuple[Any, dict[str, str]]:
    """An array as it is stored: of random keys their words, and their kind beside them."""
    if not jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return leaf, {}
    return jax.random.key_data(leaf), {"key": str(jax.random.key_impl(leaf))}


def _parts(arrays: Mapping[str, jax.Array], most: float) -> list[list[str]]:
    """The names in parts of so many bytes at most, or of one array; at least one part."""
    parts: list[list[str]] = [[]]
    size = 0
    for name, array in arrays.items():
        if parts[-1] and size + array.nbytes > most:
            parts.append([])
            size = 0
        parts[-1].append(name)
        size += array.nbytes
    return parts


def _chunk(array: Any) -> Sequence[int]:
    """The shape of what one object holds: OBJECT_BYTES at most where it can be, of one device's part."""
    shape = array.sharding.shard_shape(array.shape) if isinstance(array, jax.Array) else array.shape
    chunk = [max(1, size) for size in shape]
    for axis, size in enumerate(chunk):
        while math.prod(chunk) * array.dtype.itemsize > OBJECT_BYTES and chunk[axis] > 1:
            size = chunk[axis]
            chunk[axis] //= next(d for d in range(2, size + 1) if size % d == 0)
    return chunk


def _placed(array: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """A TensorStore on devices; what several of this process's devices share is read once."""
    shape = tuple(array.shape)
    indices = sharding.addressable_devices_indices_map(shape).values()
    read = {str(index): array[index].read() for index in indices}
    return jax.make_array_from_callback(shape, sharding, lambda index: read[str(index)].result())
