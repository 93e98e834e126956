"""Another batch size for a run that has begun, from the step of its newest checkpoint on.

The learning rate goes by steps as before. What each step takes follows from the sizes and from where they
changed, which the workdir keeps; see `after` of `packing.Packing`.
"""

import itertools
from pathlib import Path

from srpo_jax.runtime import files
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

FILE, SIZES = "batch_sizes.json", "sizes"
# What --change_batch may change.
SETTINGS = ("train.batch_size", "train.accumulate")
Sizes = list[tuple[int, int]]  # (steps taken before it, pairs of a batch), in order


def of_run(workdir: Path, before: int, now: int, done: int, asked: bool) -> Sizes:
    """The batch sizes of a run; a new one is added to those that the workdir keeps.

    before, now: as the run was started last, and as it is to go on. done: steps up to its newest
    checkpoint. The settings that say `before` are to be written behind this: a kill in between changes
    nothing. Raises UserError for another size that was not asked for. For process 0.
    """
    path = workdir / FILE
    remedy = "bring it back, or delete it if the batch size has never changed"
    kept = files.read_json(path, remedy)[SIZES] if path.is_file() else [(0, before)]
    sizes = [(int(step), int(size)) for step, size in kept]
    if sizes[-1][1] != before and len(sizes) > 1:
        sizes.pop()  # of a start that did not come to its settings
    if now != before:
        if not asked:
            raise UserError(
                f"config.train.batch_size was {before} and is {now}: --change_batch goes on with {now} "
                f"behind step {done}; or take the old value, or another --workdir"
            )
        status(
            f"batches of {now} pairs in place of {before} behind step {done}: first of those that this "
            "round through the data has left; the learning rate goes by steps as before"
        )
        sizes.append((done, now))
    # What is taken again, as its checkpoint is gone, is taken in batches of today's size.
    capped = [(min(step, done), size) for step, size in sizes]
    sizes = [one for one, later in itertools.pairwise(capped) if one[0] < later[0]]
    sizes.append(capped[-1])
    if len(sizes) > 1 or path.is_file():
        files.write_json(path, {SIZES: sizes})
    return sizes
