"""Pairs -> prefix trees -> batches. Tokenised once; the order is a function of (seed, step)."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from srpo_jax import prefix_tree
from srpo_jax.data.records import Pair
from srpo_jax.errors import UserError
from srpo_jax.prefix_tree import Rows, Tree
from srpo_jax.prompts import Renderer, sequences

ROUND = 32  # row sizes are multiples of this, so that few shapes are compiled


@dataclasses.dataclass
class PairTrees:
    """The trees of all pairs that fit, for one objective; a Grain random-access source of examples.

    names: score names, in the order of the trees' sequences. row_length, targets: size of a row.
    reference: {name: float32 [n]} once the reference has been scored, else empty.
    """

    names: tuple[str, ...]
    trees: list[Tree]
    label_prob: np.ndarray
    row_length: int
    targets: int
    dropped: int = 0
    reference: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trees)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example; see `batches` for the fields."""
        tree = self.trees[index]
        return {
            "rows": prefix_tree.pad(tree, self.row_length, self.targets),
            "label_prob": self.label_prob[index],
            "lengths": dict(zip(self.names, tree.lengths.astype(np.float32), strict=True)),
            "reference": {name: values[index] for name, values in self.reference.items()},
        }

    @functools.cached_property
    def tokens(self) -> int:
        """Slots that hold a token, summed over all pairs."""
        return sum(len(tree.tokens) for tree in self.trees)

    @functools.cached_property
    def separate_tokens(self) -> int:
        """Tokens the same sequences would take in rows of their own."""
        return sum(
            int(
                tree.positions[
                    tree.target_source[(tree.target_members >> np.uint32(i)) & 1 == 1]
                ].max()
            )
            + 2
            for tree in self.trees
            for i in range(len(self.names))
        )

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that scores and labels depend on, the weights apart."""
        digest = hashlib.sha256(repr(self.names).encode())
        digest.update(self.label_prob.tobytes())
        for tree in self.trees:
            for field in dataclasses.fields(tree):
                values = getattr(tree, field.name)
                digest.update(repr((values.dtype.str, values.shape)).encode() + values.tobytes())
        return digest.hexdigest()


def prepare(
    pairs: Sequence[Pair],
    renderer: Renderer,
    names: tuple[str, ...],
    *,
    max_length: int,
    row_length: int = 0,
    overlong: str = "error",
    source: str = "pairs",
) -> PairTrees:
    """Tokenises pairs and builds their trees.

    row_length: slots of a row, 0 for as many as the longest pair needs. A pair whose sequences are
    longer than max_length positions, or whose tree has more slots than row_length, is an error naming
    its line of `source`, or with overlong="drop" left out and counted. Nothing is ever cut.
    Raises UserError for that, for a pair without a single token, and when no pair is left.
    """
    if overlong not in ("error", "drop"):
        raise UserError(f"config.data.overlong is {overlong!r}; it may be 'error' or 'drop'")
    eos = renderer.tokenizer.eos_id
    trees, labels = [], []
    for pair in pairs:
        where = f"{source}:{pair.line}" if pair.line else source
        prompt = renderer.prompt(pair.prompt)
        ids = [renderer.completion(text) for text in (pair.chosen, pair.rejected)]
        if not all(ids):
            raise UserError(f"{where}: a completion is empty once tokenised")
        parts = sequences(prompt, ids[0], ids[1], names, eos)
        longest = max(len(context) + len(completion) for context, completion in parts)
        tree = prefix_tree.build(parts)
        slots = len(tree.tokens)
        if longest > max_length or (row_length and slots > row_length):
            if overlong == "drop":
                continue
            limit = (
                f"{longest} tokens under one prompt, more than the model's {max_length}"
                if longest > max_length
                else f"{slots} slots, more than config.data.row_length={row_length}"
            )
            raise UserError(
                f"{where}: this pair needs {limit}; shorten it, or leave such pairs out with "
                "--config.data.overlong=drop"
            )
        trees.append(tree)
        labels.append(pair.label_prob)
    if not trees:
        raise UserError(
            f"{source}: none of {len(pairs)} pairs fits config.data.row_length={row_length}"
        )
    return PairTrees(
        names=names,
        trees=trees,
        label_prob=np.array(labels, np.float32),
        row_length=row_length or _round_up(max(len(tree.tokens) for tree in trees)),
        targets=_round_up(max(len(tree.target_token) for tree in trees)),
        dropped=len(pairs) - len(trees),
    )


def batches(
    data: PairTrees,
    batch_size: int,
    seed: int,
    start: int,
    *,
    process: int = 0,
    processes: int = 1,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """This process's share of batch `start`, `start` + 1, … without end, each epoch newly shuffled.

    A batch has "rows" (Rows [B, …]), "label_prob" [B], "lengths" and "reference" ({name: [B]}), numpy.
    Pair i of the global batch goes to process i mod processes, so which pairs form the batch of a
    step depends on (seed, step) alone.
    """
    if batch_size % processes:
        raise UserError(
            f"config.train.batch_size={batch_size} cannot be split over {processes} processes"
        )
    order: Any = grain.MapDataset.source(data).shuffle(seed=seed).repeat()
    order = order[start * batch_size + process :: processes]
    dataset = order.batch(batch_size // processes, batch_fn=collate).to_iter_dataset()
    if workers:
        if not flags.FLAGS.is_parsed():  # called from Python, not from a program; Grain reads flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        )
    return iter(dataset)


def in_order(data: PairTrees, batch_size: int) -> Iterator[dict[str, Any]]:
    """All pairs once, with "index" [B] beside the fields of `batches`.

    The last batch repeats its last pair until it is full.
    """
    for first in range(0, len(data), batch_size):
        index = np.minimum(np.arange(first, first + batch_size), len(data) - 1)
        yield collate([data[int(i)] for i in index]) | {"index": index.astype(np.int32)}


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Examples -> batch, each field with a leading B."""

    def join(field: str) -> dict[str, np.ndarray]:
        return {name: np.stack([e[field][name] for e in examples]) for name in examples[0][field]}

    return {
        "rows": prefix_tree.stack([Rows(*e["rows"]) for e in examples]),
        "label_prob": np.stack([e["label_prob"] for e in examples]),
        "lengths": join("lengths"),
        "reference": join("reference"),
    }


def _round_up(size: int) -> int:
    return -(-size // ROUND) * ROUND
