"""What a policy wrote, as prefix trees, and these as batches: a prompt and its completions are one tree.

So the prompt is stored and computed once for its k completions. Losses see plain arrays: `token_targets`
says of each token of each completion which target of its row it is.

Shapes: N prompts, k completions of each, G tokens at most; B rows, P places for trees, T targets of a row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from srpo_jax.trees import prefix_tree
from srpo_jax.trees.packing import MAX_ROW, RowShape
from srpo_jax.trees.prefix_tree import Tree

QUARTERS = 4  # of the largest rows there can be: so many sizes at most are compiled


@dataclass(frozen=True)
class Completions:
    """What a policy wrote, whole on every process.

    tokens: int32 [N, k, G], the token that ends a completion included; what lies behind `lengths` int32
    [N, k] is padding. log_probabilities: float32 [N, k, G], under the sampling temperature; 0 for padding.
    ended: bool [N, k], whether the end was written, rather than the limit of G tokens met.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    log_probabilities: np.ndarray
    ended: np.ndarray

    def ids(self, prompt: int, sample: int) -> list[int]:
        """A completion's tokens, without padding."""
        found: list[int] = self.tokens[prompt, sample, : self.lengths[prompt, sample]].tolist()
        return found

    @property
    def valid(self) -> np.ndarray:
        """bool [N, k, G]: which tokens are no padding."""
        found: np.ndarray = np.arange(self.tokens.shape[-1]) < self.lengths[..., None]
        return found


@dataclass(frozen=True)
class Layout:
    """The B rows of a batch. longest: tokens of the longest prompt there is. samples, tokens: k, G."""

    rows: int
    longest: int
    samples: int
    tokens: int

    @classmethod
    def of(cls, trees: int, *, parts: int, longest: int, samples: int, tokens: int) -> "Layout":
        """For batches of so many trees: a row for each of the parts that a batch is computed in, or several
        where one would be longer than MAX_ROW slots."""
        shared = max(1, MAX_ROW // (longest + samples * tokens))
        return cls(parts * -(-trees // (parts * shared)), longest, samples, tokens)

    def batch(
        self,
        trees: Sequence[Tree],
        own: np.ndarray,
        values: Mapping[str, np.ndarray],
        used: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """A batch of n trees, of which this process brings the rows `own`, numpy.

        values: {name: [n, …]}, which become [B, P, …], zero where there is no tree. used: bool [n], of
        trees that count; others are computed and left out (their `Rows.pair` is -1). The batch has these
        names, "rows" (Rows [B, …]) and "targets" (int32 [B, P, k, G], see `token_targets`).
        """
        used = np.ones(len(trees), bool) if used is None else used
        shape, numbers = self.shape(trees), self.numbers(trees)[own]
        made = [self._row([trees[i] for i in row[row >= 0]], shape) for row in numbers]
        rows = prefix_tree.stack([rows for rows, _ in made])
        counts = (numbers >= 0) & used[numbers]
        batch: dict[str, Any] = {
            "rows": rows._replace(pair=np.where(counts, numbers, -1)),
            "targets": np.stack([targets for _, targets in made]),
        }
        for name, value in values.items():
            there = (numbers >= 0).reshape(*numbers.shape, *[1] * (value.ndim - 1))
            batch[name] = np.where(there, value[numbers], np.zeros((), value.dtype))
        return batch

    def numbers(self, trees: Sequence[Tree]) -> np.ndarray:
        """int32 [B, P], which tree stands where, -1 for none.

        Longest first, back and forth over the rows: they are alike in length and in number of trees.
        """
        order = np.argsort([-len(tree.tokens) for tree in trees], kind="stable")
        dealt = np.full((-(-len(trees) // self.rows), self.rows), -1, np.int32)
        dealt.reshape(-1)[: len(trees)] = order
        dealt[1::2] = dealt[1::2, ::-1]
        found: np.ndarray = dealt.T
        return found

    def shape(self, trees: Sequence[Tree]) -> RowShape:
        """Of the rows: the largest that so many trees may need, or one to three quarters of it."""
        places = -(-len(trees) // self.rows)
        new = self.samples * self.tokens
        largest = places * (self.longest + new), places * new
        rows = [[trees[i] for i in row[row >= 0]] for row in self.numbers(trees)]
        need = (
            max(sum(len(tree.tokens) for tree in row) for row in rows),
            max(sum(len(tree.target_token) for tree in row) for row in rows),
        )
        quarters = max(-(-QUARTERS * n // most) for n, most in zip(need, largest, strict=True))
        length, targets = (-(-most * quarters // QUARTERS) for most in largest)
        return RowShape(length, targets, places)

    def _row(self, trees: Sequence[Tree], shape: RowShape) -> tuple[prefix_tree.Rows, np.ndarray]:
        targets = np.zeros((shape.places, self.samples, self.tokens), np.int32)
        first = 0
        for place, tree in zip(targets, trees, strict=False):
            place[:] = token_targets(tree, self.tokens) + first
            first += len(tree.target_token)
        return prefix_tree.pack(trees, *shape, sequences=self.samples), targets


def build(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Tree:
    """The tree of a prompt and its completions, none of them empty."""
    return prefix_tree.build([(prompt, completion) for completion in completions])


def token_targets(tree: Tree, tokens: int) -> np.ndarray:
    """int32 [k, G]: the target of the tree that each token of each sequence is; 0 behind its last."""
    found = np.zeros((len(tree.rank), tokens), np.int32)
    for sequence, length in enumerate(tree.lengths):
        # Targets stand depth first, so those of one sequence stand in the order of its tokens.
        found[sequence, :length] = np.flatnonzero(tree.targets_of(sequence))
    return found


def restored(numbers: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Values [B, P, …] of the trees that `Layout.numbers` says, in the order of these: [count, …]."""
    found = np.zeros((count, *values.shape[2:]), values.dtype)
    there = numbers >= 0
    found[numbers[there]] = values[there]
    return found
