"""What is measured: a model, and synthetic pairs of exact lengths as prefix trees or as separate rows."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax import objectives
from srpo_jax.models import creation, loading
from srpo_jax.models.decoder import DecoderConfig
from srpo_jax.models.settings import LoraSettings, ModelSettings
from srpo_jax.objectives import Objective
from srpo_jax.planning.workload import Workload as Workload
from srpo_jax.planning.workload import as_data
from srpo_jax.planning.workload import trees_batch as trees_batch
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import pipeline
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.packing import RowShape
from srpo_jax.trees.prefix_tree import Tree


@dataclasses.dataclass(frozen=True)
class Model:
    """The architecture as measured, and the weights {dotted name: array} all steps start from."""

    config: DecoderConfig
    weights: dict[str, np.ndarray]


def open_model(source: str, dtype: str, remat: str, rank: int, layers: int) -> Model:
    """As config.model and config.lora.rank would; layers > 0: only so many of them."""
    settings = ModelSettings(source=source, dtype=dtype, remat=remat)
    architecture = loading.decoder_config(settings, LoraSettings(rank=rank))
    opened = loading.open_source(source)
    mesh = mesh_module.make(devices=jax.devices()[:1])
    read = opened.read_parameters
    plain = dataclasses.replace(architecture, lora_rank=0, lora_targets=())
    _, trained, _ = creation.create(plain, read() if read else None, mesh, 0)
    flat = {".".join(map(str, path)): v.get_value() for path, v in nnx.to_flat_state(trained)}
    if layers:
        architecture = dataclasses.replace(architecture, layers=layers)
        flat = {k: v[:layers] if k.startswith("blocks.") else v for k, v in flat.items()}
    return Model(architecture, {name: np.asarray(v) for name, v in flat.items()})


def separate_batch(
    work: Workload, names: tuple[str, ...], row_length: int = 0, score_all: bool = False
) -> dict[str, Any]:
    """Every sequence in a row of its own, as other frameworks have it.

    row_length: padded to this, or to the longest sequence. score_all: every position of a row is
    projected to the vocabulary, completions or not, as is usual elsewhere; only the completions count.
    For objectives from `by_rows`.
    """
    trees = []
    for parts in work.sequences(names):
        for place, part in enumerate(parts):
            tree = prefix_tree.build([part])
            # The one sequence of this tree is the place-th of its pair.
            trees.append(
                dataclasses.replace(
                    tree,
                    target_runs=tree.target_runs + np.array([0, 0, place, place], np.int32),
                    rank=np.arange(len(names), dtype=np.int32),
                    lengths=np.repeat(tree.lengths, len(names)),
                    depths=np.repeat(tree.depths, len(names)),
                )
            )
    data = as_data([_with_all_targets(t) if score_all else t for t in trees], names)
    longest = max(len(tree.tokens) for tree in trees)
    targets = int(data.trees.targets.max())
    length = max(row_length, longest)
    shape = RowShape(length, length if score_all else targets, 1)
    batch = pipeline.collate([data.row([i], shape) for i in range(len(trees))])
    # One row of each pair stands for it in the mean over pairs.
    first = np.arange(len(trees))[:, None] % len(names) == 0
    batch["rows"] = batch["rows"]._replace(pair=np.where(first, batch["rows"].pair, -1))
    return batch


class ByRows(Objective):
    """An objective on the scores of `separate_batch`: a row holds one, and zeros for the rest."""

    def __call__(self, scores, reference, label_prob, *, lengths=None, **hyper):
        count = len(self.needs)
        gather = lambda values: {k: v.reshape(-1, count).sum(1) for k, v in (values or {}).items()}
        losses, metrics = super().__call__(
            gather(scores), gather(reference), label_prob.reshape(-1, count)[:, 0], **hyper
        )
        return jax.tree.map(lambda x: jnp.repeat(x, count), (losses, metrics))


def by_rows(name: str) -> ByRows:
    """The objective of this name, for `separate_batch`."""
    return ByRows(**vars(objectives.get(name)))


def _with_all_targets(tree: Tree) -> Tree:
    """Every slot predicts its successor, the prompt's too, for nobody."""
    ids = np.append(tree.tokens, tree.target_token[-1])
    runs = np.zeros((len(tree.tokens), 4), np.int32)  # of one target each
    runs[:, 0], runs[:, 1] = 1, np.arange(len(runs))
    runs[tree.target_source, 2], runs[tree.target_source, 3] = tree.target_first, tree.target_last
    return dataclasses.replace(tree, target_token=ids[1:].astype(np.int32), target_runs=runs)
