"""A folder belongs to one run: its settings are written once, and later attempts must agree with them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from srpo_jax import config as config_module
from srpo_jax.config import Settings
from srpo_jax.runtime import files, locks
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

LOCK = "lock"


@contextlib.contextmanager
def alone(workdir: Path) -> Iterator[None]:
    """No other start trains in this folder until the block ends: each would undo what the other writes.

    Called by all processes. Raises UserError where another does so, and goes on; see `locks.alone`.
    """
    taken = f"{workdir}: another process trains there"
    with locks.alone(workdir / LOCK, taken, "another --workdir"):
        yield


def kept(workdir: Path) -> Settings | None:
    """The settings of the run in a folder; None where there is none. UserError for a damaged file."""
    path = workdir / "config.json"
    begun = (workdir / "run.json").is_file() or (workdir / "checkpoints").is_dir()
    return config_module.read(path) if begun and path.is_file() else None


def is_online(workdir: Path) -> bool:
    """Whether it is a run of `train_online`, which has documents in place of pairs."""
    return "documents" in fingerprints_of(workdir)


def claim(
    workdir: Path, settings: Settings, identity: Mapping[str, str], may_change: tuple[str, ...]
) -> None:
    """Writes config.json and run.json, or checks that the run already there is this one.

    identity: fingerprints of what the settings only name, such as the data; kept in run.json, where
    `remember` adds others.
    may_change: beginnings of the keys ("mesh.") that may differ from the earlier attempt's. Raises
    UserError naming the first other key, or the fingerprint, that differs. For process 0.
    """
    kept_settings, fingerprints = workdir / "config.json", workdir / "run.json"
    before = kept(workdir)
    begun = fingerprints.is_file() or (workdir / "checkpoints").is_dir()
    if begun and before is None:
        status(f"{kept_settings} is missing: the settings given now are taken for those of the run")
    elif before is not None:
        flat = _flat(before)
        for key, value in _flat(settings).items():
            if flat[key] != value and not key.startswith(may_change):
                raise UserError(
                    f"{workdir} holds a run with {key}={flat[key]!r}, now {value!r}: take the old "
                    "value to go on with it, or another --workdir"
                )
    if begun and not fingerprints.is_file():
        status(
            f"{fingerprints} is missing: pairs and their order now are taken for those of the run"
        )
    found = fingerprints_of(workdir)
    if fingerprints.is_file():
        for name, value in identity.items():
            old = str(found.get(name))
            if old != value:
                order = ", its files in the same order" if name == "data" else ""
                raise UserError(
                    f"{workdir} was begun with another {name} ({old[:12]}… in run.json, now "
                    f"{value[:12]}…): bring that back{order}, or use another --workdir"
                )
    config_module.save(settings, kept_settings)
    # Last and at once: a folder with run.json is whole.
    files.write_json(fingerprints, found | dict(identity))


def remember(workdir: Path, name: str, value: str, what: str) -> None:
    """Adds a fingerprint to run.json, or checks that it is the one that is there already.

    what: its subject in the UserError's sentence, for people. A run of an earlier version, which has none,
    gets it now. For process 0, after `claim`.
    """
    found = fingerprints_of(workdir)
    old = str(found.get(name, value))
    if old != value:
        raise UserError(
            f"{workdir} was begun with {what} other than now ({old[:12]}… in run.json, now {value[:12]}…): "
            "bring back what config.model.source or config.reference.source was then (WORKDIR@STEP is a "
            "certain checkpoint of a run), or use another --workdir"
        )
    if name not in found:
        files.write_json(workdir / "run.json", found | {name: value})


def fingerprints_of(workdir: Path) -> dict[str, Any]:
    """What run.json holds; nothing where there is none yet."""
    path = workdir / "run.json"
    if not path.is_file():
        return {}
    found: dict[str, Any] = files.read_json(
        path, "delete it, if pairs and tokenizer are still those that the run was begun with"
    )
    return found


def _flat(settings: Settings) -> dict[str, Any]:
    return config_module.flatten(dataclasses.asdict(settings))
