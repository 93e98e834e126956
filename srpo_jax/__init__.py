"""SRPO (arXiv:2406.01660) for language models, in JAX.

Programs are modules of this folder; everything else lives in rooms, one subject each, whose docstrings
say what they may import (docs/architecture.md has the drawing). What users import from here is found
wherever it lives: `from srpo_jax import models, prompts, revision, objectives, bandit, winrate, …`.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from srpo_jax import models, objectives, prompts, revision
    from srpo_jax.reporting import winrate
    from srpo_jax.theory import bandit
    from srpo_jax.training import scoring
    from srpo_jax.trees import prefix_tree

__all__ = [
    "__version__",
    "bandit",
    "models",
    "objectives",
    "prefix_tree",
    "prompts",
    "revision",
    "scoring",
    "winrate",
]

# Names that do not say where they live. Imported when first asked for: most users need one of them.
_ROOMS = {
    "bandit": "theory",
    "prefix_tree": "trees",
    "scoring": "training",
    "winrate": "reporting",
}


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room = f".{_ROOMS[name]}" if name in _ROOMS else ""
    return importlib.import_module(f"{__name__}{room}.{name}")
