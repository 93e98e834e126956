"""The whole path on real text, as a recipe: the stages of configs/quickstart.py, from texts to win rates.

    python -m srpo_jax.quickstart [--config=quickstart] [--workdir=runs/quickstart]

A small model learns to answer from golds and to edit a draft from rewritten answers of its own; a judge
compares its answers with its edits; SRPO and DPO are trained on these pairs from the same start; and all
three revise descriptions of held-out texts, in and out of distribution. Safe to interrupt: the same command
goes on where it was. Nothing but the package index is needed, and that only the first time.
"""

import time
from pathlib import Path

from srpo_jax import recipe
from srpo_jax.config import Settings, command
from srpo_jax.runtime.metrics import status


def main(settings: Settings, workdir: Path, until: str | None) -> int:
    began = time.monotonic()
    if code := recipe.main(settings, workdir, until):
        return code
    status(f"\nDone in {(time.monotonic() - began) / 60:.1f} minutes: reports in {workdir}")
    return 0


if __name__ == "__main__":
    command.run(
        main,
        recipe.SECTIONS,
        config="quickstart",
        workdir="runs/quickstart",
        options=recipe.OPTIONS,
    )
