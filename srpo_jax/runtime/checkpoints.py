"""Checkpoints: asynchronous, atomic, sharded; a restore may use another mesh or process count.

On disk a checkpoint is flat: parameter name -> array, with names such as
`model.blocks.mlp.up.kernel`. So it depends on no tree type of any library, and a mismatch between a
checkpoint and a configuration can be named.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from srpo_jax.runtime import damage, digest, storage
from srpo_jax.runtime.damage import Damaged
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.store_checkpoints import SCHEME, StoreCheckpointer

DIGESTS = "digests"  # in a checkpoint: of its other arrays, in the order of their names
BEST = "best"  # in a checkpoint's metrics
FILE_BYTES, CHUNK_BYTES = 2**27, 2**25  # of a save with little memory (Checkpoints(in_flight=…))


class Checkpoints:
    """The checkpoints of one run, in `directory/<step>/`.

    Every method is called by all processes, with the same step, from the main thread.

    Args:
        directory: a local folder, or one of a shared or cloud file system when there are several
            machines.
        keep: how many of the newest to keep.
        keep_every: multiples of this many steps are kept too; 0: none.
        keep_best: so many with the lowest `best` given to `save` are kept too; the highest if `highest`.
        every: `save` does something at multiples of this many steps (and when forced).
        read_only: nothing is written, and what another program is writing there is left alone.
        verify: what is read is compared with the digests that were saved with it.
        in_flight: at most so many bytes (or one array) are copied to host memory at a time; the state
            must then be left alone until `wait`. None: all at once, so that training soon goes on.
        known: what `held` said of steps earlier; with `read_only` they are not described anew.

    Raises:
        UserError: `read_only`, and there is no such directory; or a store does not answer.
    """

    def __init__(
        self,
        directory: Path | str,
        keep: int = 3,
        every: int = 1,
        read_only: bool = False,
        verify: bool = True,
        in_flight: int | None = None,
        keep_every: int = 0,
        keep_best: int = 0,
        highest: bool = False,
        known: Mapping[int, Mapping[str, Any]] | None = None,
    ) -> None:
        context = ocp.Context()
        if in_flight is not None:
            context.memory.transfer_concurrent_bytes = in_flight
            context.memory.write_concurrent_bytes = in_flight + 1  # Orbax wants more than is used
            # A data file is in memory until it is complete, a chunk while it is compressed.
            context.array.saving.ocdbt_target_data_file_size = FILE_BYTES
            context.array.saving.storage_options.chunk_byte_size = CHUNK_BYTES
        self.directory = epath.Path(storage.absolute(storage.place(directory)))
        if read_only and not self.directory.is_dir():
            raise UserError(f"{directory}: there is no such folder, so no checkpoint to read")
        self._read_only, self._every, self._verify = read_only, every, verify
        self._known = dict(known or {})
        kept = _kept(keep, keep_every, keep_best, highest)
        if str(self.directory).startswith(SCHEME):
            self._manager: Any = StoreCheckpointer(
                self.directory, every, kept, read_only, in_flight
            )
            return
        self._manager = ocp.training.Checkpointer(
            self.directory,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(every),
            preservation_policy=kept,
            cleanup_tmp_directories=not read_only,
            context=context,
        )

    def save(self, step: int, state: Any, force: bool = False, best: float | None = None) -> bool:
        """Begins to save, in the background; the state may be donated as soon as this returns.

        An earlier save that is still under way is waited for, and its failure is raised here.

        Args:
            state: pytree of jax arrays, NumPy arrays and scalars, and Python numbers. nnx Variables
                are saved as their values.
            force: save at a step that is no multiple of `every` too.
            best: a number by which steps are compared, see `keep_best`; None for none.

        Returns:
            Whether a save was begun: False when it is not due, or when the step is saved already.

        Raises:
            UserError: there is no room, no right to write, or the folder is gone; the same for `wait` and
                `close`.
        """
        if self._read_only:
            raise ValueError(f"{self.directory} was opened read-only")
        if any(saved.step == step for saved in self._manager.checkpoints):
            return False
        if not (force or self._manager.should_save(step)):
            return False
        # Orbax would make it anew, without the rest of the run.
        is_local = not storage.is_remote(self.directory)
        if is_local and jax.process_index() == 0 and not self.directory.is_dir():
            raise UserError(
                f"{self.directory}: this folder is gone, so step {step} is not saved: bring it back, and "
                "the same command goes on from the newest checkpoint in it"
            )
        # Orbax refuses NumPy scalars but takes arrays without dimensions.
        flat = {
            name: np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
            for name, leaf in flatten(state).items()
        }
        digests = [digest.of(flat[name]) for name in sorted(flat)]
        flat[DIGESTS] = np.array(digests, np.uint32)
        metrics = None if best is None else {BEST: best}
        with damage.writing(self.directory):
            return self._manager.save_async(step, flat, force=force, metrics=metrics) is not None

    def due(self, step: int) -> bool:
        """Whether `save` does something at this step without being forced."""
        return step % self._every == 0

    def latest(self) -> int | None:
        """The newest complete checkpoint's step; None when there is none.

        A save that was cut off never counts. One whose description cannot be read is passed over,
        and that is said.
        """
        for step in self.steps():
            try:
                self._held(step)
            except Damaged as error:
                status(f"{self.directory / str(step)}: passed over, it is damaged: {error}")
            else:
                return step
        return None

    def steps(self) -> list[int]:
        """Steps of all checkpoints whose save was completed, newest first."""
        return [saved.step for saved in reversed(self._manager.checkpoints)]

    def held(self, step: int, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """What a checkpoint holds: name -> description with shape and dtype.

        Raises:
            UserError: it is damaged, or has not all of `shapes`; the sentence names the first.
        """
        path = self.directory / str(step)
        try:
            held = self._held(step)
        except Damaged as error:
            raise UserError(f"{path}: this checkpoint is damaged ({error})") from error
        wanted = {
            name: jax.ShapeDtypeStruct(shape, getattr(held.get(name), "dtype", np.float32))
            for name, shape in shapes.items()
        }
        _check(str(path), held, wanted, partial=True)
        return held

    def restore(self, step: int, abstract: Any, partial: bool = False) -> Any:
        """Reads one checkpoint.

        Args:
            abstract: tree of the same structure as the state saved, whose leaves are
                `jax.ShapeDtypeStruct`s with the shardings wanted (any mesh), jax arrays (their
                shape, dtype and sharding count), NumPy arrays or numbers.
            partial: the checkpoint may hold more than is asked for (say, the optimiser's state).

        Returns:
            Tree like `abstract`.

        Raises:
            UserError: there is no such checkpoint, it is damaged, or it does not hold what is asked
                for: another structure, shape or dtype. The sentence names the first key.
        """
        if step not in self.steps():
            raise UserError(f"{self.directory}: there is no checkpoint of step {step}")
        try:
            return self._read(step, abstract, partial)
        except Damaged as error:
            raise UserError(
                f"{self.directory / str(step)}: this checkpoint is damaged ({error}): move it "
                "away to go on from an earlier one"
            ) from error

    def restore_latest(
        self, abstract: Any, partial: bool = False, replace: bool = False
    ) -> tuple[int, Any] | None:
        """Reads the newest checkpoint that can be read: (step, state), or None without checkpoints.

        replace: where there are checkpoints, the arrays in `abstract` are given up before others are read
        in their place. Devices often have no room for both.

        A damaged one is passed over, which is said, and, once an older one has been read, renamed
        to `<step>.damaged`, because it would stand in the way of the next save of that step.

        Raises:
            UserError: all are damaged, or the newest readable one does not match (see `restore`).
        """
        damaged: list[int] = []
        steps = self.steps()
        for leaf in jax.tree.leaves(abstract) if replace and steps else ():
            if isinstance(leaf, jax.Array):
                leaf.delete()
        for step in steps:
            failure = None
            try:
                state = self._read(step, abstract, partial)
            except Damaged as error:
                failure = str(error)
            # A process that could read must not go on alone while another could not.
            if _any_process(failure is not None):
                reason = failure or "another process could not read it"
                status(f"{self.directory / str(step)}: passed over, it is damaged: {reason}")
                damaged.append(step)
                continue
            if damaged:
                status(f"{self.directory / str(step)}: this older checkpoint is used instead")
                self._set_aside(damaged)
            return step, state
        if damaged:
            raise UserError(
                f"{self.directory}: none of the checkpoints ({', '.join(map(str, damaged))}) can "
                "be read: bring one back, or delete the folder to start anew"
            )
        return None

    def wait(self) -> None:
        """Waits until the last save is complete, and raises its failure if it failed."""
        with damage.writing(self.directory):
            self._manager.wait()

    def close(self) -> None:
        """Waits for the last save. Without it the last save may be lost."""
        with damage.writing(self.directory):
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _read(self, step: int, abstract: Any, partial: bool) -> Any:
        wanted = {name: _abstract(name, leaf) for name, leaf in flatten(abstract).items()}
        held = self._held(step)
        names = sorted(name for name in held if name != DIGESTS)
        described = {name: held[name] for name in names}
        _check(str(self.directory / str(step)), described, wanted, partial)
        checked = DIGESTS in held and self._verify
        if checked:
            wanted[DIGESTS] = np.zeros(len(names), np.uint32)
        else:
            why = "as was asked" if DIGESTS in held else "it has no digests"
            status(f"{self.directory / str(step)}: not compared with what was saved, {why}")
        context = ocp.Context()
        context.pytree.loading.partial_load = partial or not checked
        with damage.reading(), context:
            if isinstance(self._manager, StoreCheckpointer):
                flat = self._manager.load(step, wanted)
            else:  # the manager's own context has no partial_load, hence not its `load`
                flat = ocp.load(self.directory / str(step), wanted)
        if checked:
            _compare(flat, dict(zip(names, flat.pop(DIGESTS).tolist(), strict=True)))
        return unflatten(abstract, flat)

    def _held(self, step: int) -> dict[str, Any]:
        """What the checkpoint holds: name -> description with shape and dtype."""
        if self._read_only and step in self._known:
            return dict(self._known[step])  # a model is read array by array
        with damage.reading():
            held = self._manager.metadata(step).metadata
            if held is None:  # Orbax's word for: files are missing or make no sense
                raise ValueError("its description cannot be read")
            self._known[step] = dict(held)
            return dict(held)

    def _set_aside(self, steps: list[int]) -> None:
        if self._read_only:
            return
        if jax.process_index() == 0:
            for step in steps:
                damaged = self.directory / f"{step}.damaged"
                while damaged.is_dir():  # the save that replaced it was damaged, too
                    damaged = damaged.with_name(f"{damaged.stem}-again.damaged")
                storage.rename_folder(self.directory / str(step), damaged)
        _any_process(False)  # nobody looks again before the renaming is done
        self._manager.reload()


def _kept(newest: int, every: int, best: int, highest: bool = False) -> Any:
    """Which checkpoints are kept, in Orbax's words."""
    rules = ocp.training.preservation_policies
    policies: list[Any] = [rules.LatestN(newest)]
    if every:
        policies.append(rules.EveryNSteps(every))
    if best:
        # What is no number has no place in an order, and would put others in a wrong one.
        worst = -math.inf if highest else math.inf

        chosen = rules.BestN(
            get_metric_fn=lambda m: worst if math.isnan(m[BEST]) else float(m[BEST]),
            reverse=not highest,
            n=best,
            keep_checkpoints_without_metrics=False,
        )
        policies.append(chosen)
    return rules.AnyPreservationPolicy(policies)


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves under dotted names; an nnx Variable counts as one leaf, its value."""
    leaves, _ = jax.tree.flatten_with_path(tree, is_leaf=_is_variable)
    flat = {
        jax.tree_util.keystr(path, simple=True, separator="."): (
            leaf.get_value() if _is_variable(leaf) else leaf
        )
        for path, leaf in leaves
    }
    if len(flat) != len(leaves):
        raise ValueError("two leaves of the tree have the same dotted name")
    return flat


def unflatten(like: Any, flat: dict[str, Any]) -> Any:
    """Inverse of `flatten`: the values of `flat` in a tree like `like`."""

    def leaf(path: tuple[Any, ...], old: Any) -> Any:
        value = flat[jax.tree_util.keystr(path, simple=True, separator=".")]
        return old.replace(value) if _is_variable(old) else value

    return jax.tree.map_with_path(leaf, like, is_leaf=_is_variable)


def _compare(flat: Mapping[str, Any], digests: Mapping[str, int]) -> None:
    """Raises Damaged for the first array that is not the one that was saved."""
    for name, value in flat.items():
        if digest.of(value) != digests[name]:
            raise Damaged(f'"{name}" has other bits than were saved')


def _check(where: str, held: dict[str, Any], wanted: dict[str, Any], partial: bool) -> None:
    advice = "use the configuration the checkpoint was made with, or another workdir"
    for name, leaf in wanted.items():
        if name not in held:
            raise UserError(f'{where}: this checkpoint has no "{name}": {advice}')
        for what in ("shape", "dtype"):
            want, have = getattr(leaf, what, None), getattr(held[name], what, None)
            if want != have and not _is_key(leaf):
                raise UserError(
                    f'{where}: {what} of "{name}" is {have} in this checkpoint, but this '
                    f"configuration needs {want}: {advice}"
                )
    for name in () if partial else held:
        if name not in wanted:
            raise UserError(
                f'{where}: this checkpoint has "{name}", which this configuration has not: {advice}'
            )


def _abstract(name: str, leaf: Any) -> Any:
    if isinstance(leaf, np.generic):
        return np.asarray(leaf)
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return leaf
    if leaf.sharding is None:
        raise ValueError(f"{name}: an abstract array to restore needs a sharding")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)


def _is_key(leaf: Any) -> bool:
    """Whether this is a typed PRNG key, which is stored as its raw words."""
    return hasattr(leaf, "dtype") and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _any_process(flag: bool) -> bool:
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
