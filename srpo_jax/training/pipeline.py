"""Pairs -> prefix trees -> batches of packed rows. Tokenised once; the order follows from (seed, step)."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import grain
import numpy as np
from absl import flags

from srpo_jax.data.records import Pair
from srpo_jax.prompts import Renderer, sequences
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.settings import OVERLONG
from srpo_jax.trees import prefix_tree
from srpo_jax.trees.forest import Forest, Shares
from srpo_jax.trees.order import RULE
from srpo_jax.trees.packing import Packing, RowShape
from srpo_jax.trees.prefix_tree import Rows, Tree

# Batches that are prepared ahead. Grain's default, 500, would hold gigabytes of long rows, and keep the
# processor busy with them while the first steps wait.
READ_AHEAD = grain.ReadOptions(num_threads=4, prefetch_buffer_size=8)

Built = Iterator[tuple[int, float, Tree | str | None]]  # see `built`


class LeftOut(NamedTuple):
    """Pairs that are not learned from: too long; refused by template or tokenizer; why the first was."""

    long: int = 0
    refused: int = 0
    first: str = ""

    def __str__(self) -> str:
        refused = f", {self.refused} refused (the first: {self.first})" if self.refused else ""
        return f"{self.long} left out as too long{refused}"


@dataclasses.dataclass
class PairTrees:
    """The trees of all pairs that fit, for one objective.

    names: score names, in the order of the trees' sequences. row_length: what the user wants a row to
    hold, 0 for as much as is best. reference: {name: float32 [n]} once the reference has been scored, else
    empty.
    """

    names: tuple[str, ...]
    trees: Forest | Shares
    label_prob: np.ndarray
    row_length: int = 0
    left_out: LeftOut = dataclasses.field(default_factory=LeftOut)
    reference: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trees)

    def packing(
        self,
        batch_size: int,
        seed: int,
        *,
        parts: int = 1,
        packed: bool = True,
        rule: int = RULE,
        after: tuple[Packing, int] | None = None,
    ) -> Packing:
        """How these trees are packed; see `packing.Packing`."""
        return Packing(
            self.trees.slots,
            self.trees.targets,
            batch_size,
            seed,
            parts=parts,
            packed=packed,
            row_length=self.row_length,
            rule=rule,
            after=after,
        )

    def row(self, pairs: Sequence[int], shape: RowShape) -> dict[str, Any]:
        """One row of a batch; see `batches` for the fields, here without B. Empty places are harmless."""
        chosen = list(pairs)
        counts = self.trees.lengths[chosen]

        def places(values: Any, empty: float) -> np.ndarray:
            row = np.full(shape.places, empty, np.float32)
            row[: len(chosen)] = values
            return row

        lengths = {name: counts[:, k] for k, name in enumerate(self.names)}
        return {
            "rows": prefix_tree.pack(
                [self.trees[i] for i in chosen], *shape, chosen, len(self.names)
            ),
            "label_prob": places(self.label_prob[chosen], 0.5),
            "lengths": {name: places(values, 1.0) for name, values in lengths.items()},
            "reference": {name: places(v[chosen], 0.0) for name, v in self.reference.items()},
        }

    @functools.cached_property
    def tokens(self) -> int:
        """Slots that hold a token, summed over all pairs."""
        return int(self.trees.slots.sum())

    @functools.cached_property
    def separate_tokens(self) -> int:
        """Tokens the same sequences would take in rows of their own."""
        return int(self.trees.depths.sum())

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that scores and labels depend on, the weights apart."""
        digest = hashlib.sha256(repr(self.names).encode())
        digest.update(self.label_prob.tobytes())
        digest.update(self.trees.digest().encode())
        return digest.hexdigest()


def prepare(
    pairs: Sequence[Pair],
    renderer: Renderer,
    names: tuple[str, ...],
    *,
    max_length: int,
    row_length: int = 0,
    overlong: str = "error",
    refused: str = "error",
    source: str = "pairs",
) -> PairTrees:
    """Tokenises pairs and builds their trees.

    A pair whose sequences are longer than max_length positions, or whose tree has more slots than
    row_length (where that is not 0), is an error naming its line of `source`, or with overlong="drop"
    left out and counted; so is with refused="drop" one that the template or the tokenizer cannot take, or
    that has no token. Nothing is ever cut. Raises UserError for these, and when no pair is left.
    """
    for name, value in (("overlong", overlong), ("refused", refused)):
        if value not in OVERLONG:
            raise UserError(f"config.data.{name} is {value!r}; it may be 'error' or 'drop'")
    limits = Limits(max_length, row_length, overlong, refused)
    count = Count()
    kept = list(count.kept(built(pairs, renderer, names, limits, source)))
    if not kept:
        raise none_fits(source, count.left_out, limits)
    return PairTrees(
        names=names,
        trees=Forest.of(tree for _, _, tree in kept),
        label_prob=np.array([label for _, label, _ in kept], np.float32),
        row_length=row_length,
        left_out=count.left_out,
    )


@dataclasses.dataclass(frozen=True)
class Limits:
    """max_length: positions of a sequence. row_length: slots of a tree, 0 for any. overlong, refused: of
    OVERLONG."""

    max_length: int
    row_length: int = 0
    overlong: str = "error"
    refused: str = "error"


class Count:
    """Counts those of `built` that have no tree."""

    def __init__(self) -> None:
        self.left_out = LeftOut()

    def kept(self, found: Built) -> Iterator[tuple[int, float, Tree]]:
        """The others, on their way."""
        for number, label, tree in found:
            long, refused, first = self.left_out
            if isinstance(tree, Tree):
                yield number, label, tree
            elif tree is None:
                self.left_out = LeftOut(long + 1, refused, first)
            else:
                self.left_out = LeftOut(long, refused + 1, first or tree)


def built(
    pairs: Sequence[Pair],
    renderer: Renderer,
    names: tuple[str, ...],
    limits: Limits,
    source: str,
    process: int = 0,
    processes: int = 1,
) -> Built:
    """(number, label, tree) of every `processes`-th pair; in place of its tree a dropped one has None where
    it is too long, else why it is refused. See `prepare`."""
    for number in range(process, len(pairs), processes):
        pair = pairs[number]
        at = pair.at or f"{source}:"
        where = f"{at}{pair.line}" if pair.line else source
        try:
            parts = pair_sequences(pair, renderer, names, where)
        except UserError as error:
            if limits.refused == "drop":
                yield number, pair.label_prob, str(error)
                continue
            raise UserError(
                f"{error} (--config.data.refused=drop leaves such pairs out)"
            ) from error
        tree = prefix_tree.build(parts)
        longest, slots = int(tree.depths.max()), len(tree.tokens)
        if longest <= limits.max_length and (not limits.row_length or slots <= limits.row_length):
            yield number, pair.label_prob, tree
        elif limits.overlong == "drop":
            yield number, pair.label_prob, None
        else:
            needs = (
                f"{longest} tokens under one prompt, more than the model's {limits.max_length}"
                if longest > limits.max_length
                else f"{slots} slots, more than config.data.row_length={limits.row_length}"
            )
            raise UserError(
                f"{where}: this pair needs {needs}; shorten it, or leave such pairs out with "
                "--config.data.overlong=drop"
            )


def none_fits(source: str, left_out: LeftOut, limits: Limits) -> UserError:
    """What to raise where every pair was dropped."""
    slots = (
        f", config.data.row_length={limits.row_length} slots of a row" if limits.row_length else ""
    )
    pairs = left_out.long + left_out.refused
    why = f": {left_out}" if left_out.refused else ""
    return UserError(
        f"{source}: none of {pairs} pairs fits the model's {limits.max_length} positions{slots}{why}"
    )


def pair_sequences(
    pair: Pair, renderer: Renderer, names: tuple[str, ...], where: str
) -> Sequence[Sequence[Sequence[int]]]:
    """What prefix_tree.build takes, one sequence a score name.

    Raises UserError, beginning with `where`, for a pair that the template or the objective cannot take.
    """
    try:
        if pair.every_turn:
            if names != ("w",):
                raise UserError(
                    "a conversation without chosen and rejected can be used for SFT only"
                )
            return [renderer.conversation(pair.prompt, pair.chosen)]
        prompt = renderer.prompt(pair.prompt)
        improves = any("|" in name for name in names)
        if improves and prompt.refused:
            raise UserError(prompt.refused)
        both = (pair.chosen, pair.rejected) if any("l" in n for n in names) else (pair.chosen,)
        ids = [renderer.answer(pair.prompt, text, shown=improves) for text in both]
        if not all(ids):
            raise UserError("a completion is empty once tokenised")
        return sequences(prompt, ids[0], ids[-1], names, renderer.eos)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


@dataclasses.dataclass(frozen=True)
class _Batches:
    """A process's rows of all batches: a Grain random-access source without end."""

    data: PairTrees
    packing: Packing
    own: np.ndarray

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: Any) -> dict[str, Any]:
        layout = self.packing.batch(int(index))
        return collate([self.data.row(layout.rows[row], layout.shape) for row in self.own])


def batches(
    data: PairTrees,
    packing: Packing,
    start: int,
    *,
    own: np.ndarray | None = None,
    workers: int = 0,
) -> Iterator[dict[str, Any]]:
    """Batch `start`, `start` + 1, … without end, each epoch newly shuffled: its rows of these numbers.

    A batch has "rows" (Rows [B, …]), "label_prob" [B, P], "lengths" and "reference" ({name: [B, P]}),
    numpy, for B rows of at most P trees. own: of `mesh.own_rows`; None for all. What stands in which row of
    a step's batch depends on (seed, step) alone.
    """
    order: Any = grain.MapDataset.source(_Batches(data, packing, _rows(packing, own)))
    dataset = order[start:].to_iter_dataset(READ_AHEAD)
    if workers:
        if not flags.FLAGS.is_parsed():  # called from Python, not from a program; Grain reads flags
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
        )
    return iter(dataset)


def once(
    data: PairTrees,
    packing: Packing,
    chosen: np.ndarray | None = None,
    *,
    own: np.ndarray | None = None,
) -> Iterator[Rows]:
    """Batches that hold every pair once, or the chosen ones: of each the rows [B, …] of these numbers."""
    own = _rows(packing, own)
    for layout in packing.once(chosen):
        mine = [layout.rows[row] for row in own]
        yield prefix_tree.stack([data.row(pairs, layout.shape)["rows"] for pairs in mine])


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Rows -> batch, each field with a leading B."""

    def join(field: str) -> dict[str, np.ndarray]:
        return {name: np.stack([e[field][name] for e in examples]) for name in examples[0][field]}

    return {
        "rows": prefix_tree.stack([Rows(*e["rows"]) for e in examples]),
        "label_prob": np.stack([e["label_prob"] for e in examples]),
        "lengths": join("lengths"),
        "reference": join("reference"),
    }


def _rows(packing: Packing, own: np.ndarray | None) -> np.ndarray:
    return np.arange(packing.rows) if own is None else own
