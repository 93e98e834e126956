"""A folder belongs to one run: its settings are written once, and later attempts must agree with them."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from srpo_jax import config as config_module
from srpo_jax.config import Settings
from srpo_jax.runtime.errors import UserError


def claim(
    workdir: Path, settings: Settings, identity: Mapping[str, str], may_change: tuple[str, ...]
) -> None:
    """Writes config.json and run.json, or checks that the run already there is this one.

    identity: fingerprints of what the settings only name, such as the data; kept in run.json.
    may_change: beginnings of the keys ("mesh.") that may differ from the earlier attempt's. Raises
    UserError naming the first other key, or the fingerprint, that differs. For process 0.
    """
    kept_settings, fingerprints = workdir / "config.json", workdir / "run.json"
    if fingerprints.is_file():
        before = _flat(config_module.read(kept_settings))
        for key, value in _flat(settings).items():
            if before[key] != value and not key.startswith(may_change):
                raise UserError(
                    f"{workdir} holds a run with {key}={before[key]!r}, now {value!r}: take the old "
                    "value to go on with it, or another --workdir"
                )
        kept = json.loads(fingerprints.read_text())
        for name, value in identity.items():
            if kept[name] != value:
                raise UserError(
                    f"{workdir} was begun with another {name} ({kept[name][:12]}… in run.json, now "
                    f"{value[:12]}…): bring that back, or use another --workdir"
                )
    config_module.save(settings, kept_settings)
    # Last and at once: a folder with run.json is whole.
    part = fingerprints.with_suffix(".part")
    part.write_text(json.dumps(dict(identity), indent=2) + "\n")
    os.replace(part, fingerprints)


def _flat(settings: Settings) -> dict[str, Any]:
    return config_module.flatten(dataclasses.asdict(settings))
