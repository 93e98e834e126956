"""Synthetic pairs of exact lengths: what is planned and measured with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from srpo_jax import prompts
from srpo_jax.prompts import Prompt
from srpo_jax.training import pipeline
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.forest import Forest
from srpo_jax.trees.prefix_tree import Tree

EOS = 2


@dataclasses.dataclass(frozen=True)
class Workload:
    """`pairs` pairs of `prompt` + `completion` tokens, the end of sequence counted with the completion.

    template: "paper" (the shown completion stands between post and answer; the direct and the improve
    prompt end in one token of their own, so that they do not chain by accident) or "chained" (post,
    answer, one token that asks to improve it, better answer).
    """

    pairs: int
    prompt: int = 400
    completion: int = 40
    template: str = "paper"
    vocabulary: int = 49152
    seed: int = 0

    def prompts(self) -> list[tuple[Prompt, tuple[int, ...], tuple[int, ...]]]:
        """(prompt, chosen, rejected) in token ids, completions without end of sequence."""
        rng = np.random.default_rng(self.seed)

        def draw(n: int) -> tuple[int, ...]:
            return tuple(map(int, rng.integers(10, self.vocabulary, size=(n,))))

        made = []
        for _ in range(self.pairs):
            x = draw(self.prompt - 1)
            if self.template == "chained":
                x = (*x, 3)
                prompt = Prompt(x, x, (4,))
            else:
                prompt = Prompt((*x, 3), (*x, 4), (5,))
            made.append((prompt, draw(self.completion - 1), draw(self.completion - 1)))
        return made

    def sequences(self, names: Sequence[str]) -> list[list[tuple[Any, Any]]]:
        """For each pair (prompt ids, completion ids with end of sequence) of each score name."""
        parts = self.prompts()
        return [list(prompts.sequences(p, w, l, tuple(names), EOS)) for p, w, l in parts]


def trees_batch(work: Workload, names: tuple[str, ...], rows: int = 1) -> dict[str, Any]:
    """All pairs as prefix trees, packed into `rows` rows; a batch as pipeline.batches makes it."""
    data = as_data([prefix_tree.build(parts) for parts in work.sequences(names)], names)
    packing = data.packing(work.pairs, 0, parts=rows)
    layout = next(packing.once())
    return pipeline.collate([data.row(row, layout.shape) for row in layout.rows])


def as_data(trees: list[Tree], names: tuple[str, ...]) -> pipeline.PairTrees:
    """Trees with labels 1 and reference scores 0."""
    data = pipeline.PairTrees(names, Forest.of(trees), np.ones(len(trees), np.float32))
    data.reference = {name: np.zeros(len(trees), np.float32) for name in names}
    return data
