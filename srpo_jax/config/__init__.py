"""Every setting there is, the command line, and the folder of a run that remembers its settings.

May import: the rooms whose settings it gathers (training, revision, judges, models, objectives, runtime).
Imported by: theory, the programs, the files in configs/.
"""

from srpo_jax.config.recipe import stage
from srpo_jax.config.settings import (
    Settings,
    checked,
    config_dict,
    default,
    flatten,
    read,
    save,
    update,
)

__all__ = [
    "Settings",
    "checked",
    "config_dict",
    "default",
    "flatten",
    "read",
    "save",
    "stage",
    "update",
]
