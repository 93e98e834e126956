"""An attempt at a training run: the first one makes the workdir its own, later ones go on with it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from srpo_jax.config.settings import HOW, Settings
from srpo_jax.config.workdir import alone, claim, fingerprints_of, kept, remember
from srpo_jax.models import loading
from srpo_jax.models.source import Source
from srpo_jax.runtime import distributed
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import batch_sizes, extending
from srpo_jax.training.best import is_highest
from srpo_jax.training.reference import weights_digest
from srpo_jax.training.settings import TrainSettings
from srpo_jax.trees.order import EARLIER, RULE

# A run may go on with another value of these: they change neither the loss nor the data order.
MAY_CHANGE: tuple[str, ...] = (
    *HOW,
    *("data.held_out", "data.pairs"),  # what is trained on stays so: see claim's fingerprint
    # Settings of other programs.
    *("sampling.", "pairs.", "online.", "evaluate.", "judge.", "recipe.", "alternate."),
)


ORDER = "order"  # in run.json: the rule of `Order`


def base(settings: Settings, workdir: Path) -> str:
    """config.model.source; of another run, which may go on, the checkpoint that was its newest at the first
    attempt.

    Called by all processes.
    """
    name = distributed.from_main(lambda: loading.begun_with(workdir)) or settings.model.source
    newest = loading.pinned(name) if loading.run_of(name) else name
    return distributed.from_main(lambda: newest)


def identity_of(workdir: Path, base: str, **fingerprints: str) -> dict[str, str]:
    """What run.json holds: fingerprints, and what a run that is begun now, or kept it, began with."""
    is_new = not (workdir / "run.json").is_file()
    found = fingerprints | ({"source": base} if is_new or loading.begun_with(workdir) else {})
    return found | ({ORDER: str(RULE)} if is_new else {})


def rule_of(workdir: Path) -> int:
    """The rule of `Order` by which the run in a folder draws, or is to: the one that it was begun with.

    So a run of an earlier version goes on in its order, and neither misses nor repeats a thing. Called by
    all processes. Raises UserError for a run of a later version.
    """

    def begun_with() -> int:
        found = fingerprints_of(workdir)
        rule = found.get(ORDER, str(EARLIER if found else RULE))
        if rule not in map(str, (EARLIER, RULE)):
            raise UserError(
                f"{workdir} was begun by a later version, which draws in another order ({ORDER} {rule} in "
                "run.json): go on with that version, or use another --workdir"
            )
        return int(rule)

    return distributed.from_main(begun_with)


def own(
    settings: Settings,
    workdir: Path,
    source: Source,
    base: str,
    data: str,
    extend: bool,
    change_batch: bool,
) -> batch_sizes.Sizes:
    """Makes the workdir this run's, or checks that it is; it may be asked to go on otherwise.

    base: see `base`. data: fingerprint of the pairs as trees. extend: for more steps at other learning
    rates; change_batch: with another batch size. Returns the sizes of its batches. Called by all processes;
    raises UserError for settings that are not those of the run.
    """
    directory, now = workdir / "checkpoints", (settings.optimizer, settings.train.steps)
    size = settings.train.batch_size

    def changes() -> bool:
        before = (kept(workdir) or settings).train
        same = (before.steps, before.batch_size) == (now[1], size)
        return not same or (workdir / batch_sizes.FILE).is_file()

    # Checkpoints are opened by all processes, and seldom for this.
    done = extending.taken(directory) if distributed.from_main(changes) else 0

    def agreed() -> batch_sizes.Sizes:
        before = kept(workdir) or settings
        begun = (before.optimizer, before.train.steps)
        may_change = (*MAY_CHANGE, *extending.longer(begun, now, done, extend))
        sizes = batch_sizes.of_run(workdir, before.train.batch_size, size, done, change_batch)
        if change_batch:
            may_change += batch_sizes.SETTINGS
        identity = identity_of(workdir, base, tokenizer=source.tokenizer.fingerprint, data=data)
        claim(workdir, settings, identity, may_change)
        source.keep(workdir / loading.KEPT)
        return sizes

    return distributed.from_main(agreed)


def keep_start(workdir: Path, weights: Any) -> None:
    """Checks that weights which each attempt reads anew are those that the run was begun with.

    weights: what the checkpoints do not hold and the run depends on, such as what is not trained; there may
    be none. (The newest checkpoint of a run that is still going on is another one tomorrow.) Called by all
    processes, behind `own`; raises UserError for others.
    """
    if jax.tree.leaves(weights):
        _keep(
            workdir,
            "weights",
            weights_digest(weights),
            "weights of its reference, or that it does not train,",
        )


def keep_reference(workdir: Path, fingerprint: str) -> None:
    """Checks that the reference is the one that the run was begun with; see `reference.fingerprint`.

    In a folder that runs share, scores of another one are no error by themselves. As `keep_start`.
    """
    _keep(workdir, "reference", fingerprint, "a reference (its weights, dtype or architecture)")


def _keep(workdir: Path, name: str, value: str, what: str) -> None:
    distributed.from_main(lambda: remember(workdir, name, value, what))


@contextlib.contextmanager
def saved(train: TrainSettings, workdir: Path) -> Iterator[Checkpoints]:
    """The checkpoints of the run, which this start alone writes; nothing is read yet. On all processes."""
    with (
        alone(workdir),
        Checkpoints(
            workdir / "checkpoints",
            train.keep_checkpoints,
            train.checkpoint_every,
            verify=train.verify_checkpoints,
            keep_every=train.keep_every,
            keep_best=train.keep_best,
            highest=train.keep_best > 0 and is_highest(train.keep_best_by),
        ) as opened,
    ):
        yield opened
