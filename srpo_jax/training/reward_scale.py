"""What a reward model's numbers are measured in: their mean and deviation over reference completions.

The likelihood of the labels sees differences of rewards only, so training leaves their zero and their unit
to chance. The reference completions are those that the pairs trained on prefer (of a label below 1/2 the
rejected one), the first COMPLETIONS of them; the file lies beside the checkpoints (see
`models.reward.RewardScale`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models.reward import RewardScale
from srpo_jax.objectives.losses import REWARD_SCORES
from srpo_jax.runtime.metrics import is_main, status
from srpo_jax.training.loop import Done, Hook
from srpo_jax.training.pipeline import PairTrees
from srpo_jax.training.reference import score_all
from srpo_jax.trees.packing import Packing
from srpo_jax.trees.prefix_tree import Rows

COMPLETIONS = 1024
State = nnx.State[Any, Any]


def hook(
    workdir: Path,
    steps: int,
    data: PairTrees,
    score: Callable[[State, Rows], tuple[dict[str, jax.Array], jax.Array]],
    packing: Packing,
    mesh: Mesh,
) -> Hook:
    """Behind the last of `steps`, before its checkpoint is saved: measures, and writes the file.

    score: of the model's parameters and rows. On all processes.
    """

    def act(done: Done) -> None:
        if not done.last or not done.finite:
            return
        assert done.state is not None  # asked for
        model, some = done.state.model, np.arange(min(len(data), COMPLETIONS))
        found = score_all(data, lambda rows: score(model, rows), packing, mesh, some)
        chosen, rejected = (found[name][some] for name in REWARD_SCORES)
        preferred = np.where(data.label_prob[some] >= 0.5, chosen, rejected)
        scale = RewardScale.of(preferred, done.number)
        if is_main():
            scale.write(workdir)
        status(
            f"rewards of {scale.completions} preferred completions: {scale.mean:.3f} on average, deviation "
            f"{scale.deviation:.3f}; as a judge, the model counts from the one in units of the other"
        )

    return Hook(act, steps, state=True)
