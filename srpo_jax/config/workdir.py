"""A folder belongs to one run: its settings are written once, and later attempts must agree with them."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from srpo_jax import config as config_module
from srpo_jax.runtime.errors import UserError


def claim(
    workdir: Path, config: ConfigDict, identity: Mapping[str, str], may_change: tuple[str, ...]
) -> None:
    """Writes config.json and run.json, or checks that the run already there is this one.

    identity: fingerprints of what the settings only name, such as the data; kept in run.json.
    may_change: beginnings of the keys ("mesh.") that may differ from the earlier attempt's. Raises
    UserError naming the first other key, or the fingerprint, that differs. For process 0.
    """
    settings, fingerprints = workdir / "config.json", workdir / "run.json"
    if fingerprints.is_file():
        before = config_module.flatten(config_module.read(settings).to_dict())
        for key, value in config_module.flatten(config.to_dict()).items():
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
    config_module.save(config, settings)
    # Last and at once: a folder with run.json is whole.
    part = fingerprints.with_suffix(".part")
    part.write_text(json.dumps(dict(identity), indent=2) + "\n")
    os.replace(part, fingerprints)
