"""Sequences that share prefixes, stored once: (prompt, completion) pairs -> trees -> rows of tokens.

    x ─┬─ direct suffix ─┬─ y_w
       │                 └─ y_l
       ├─ improve, shows y_l ─┬─ y_w
       │                      └─ y_l
       └─ improve, shows y_w ─┬─ y_w
                              └─ y_l

A *node* is a run of tokens shared by the same sequences. In a row a token sees itself and the earlier
tokens of its own node and of that node's ancestors, and stands at its depth in the tree; each
sequence is then computed exactly as if it stood alone. The sharing is found from the token ids alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

MAX_NODES = 32  # ancestors are one uint32 per token

Ids = Sequence[int]


@dataclasses.dataclass(frozen=True)
class Tree:
    """The prefix tree of n sequences, flattened so that each token comes after its ancestors.

    tokens, positions (depth), node: int32 [S']; ancestors: uint32 [S'], bit i set where node i is the
    token's own node or above it. Target j is one token to score: the hidden state of slot
    target_source[j] predicts target_token[j] (int32 [T']), and the log-probability counts for
    sequence i where bit i of target_members[j] (uint32 [T']) is set. lengths: int32 [n], tokens
    scored per sequence.
    """

    tokens: np.ndarray
    positions: np.ndarray
    node: np.ndarray
    ancestors: np.ndarray
    target_source: np.ndarray
    target_token: np.ndarray
    target_members: np.ndarray
    lengths: np.ndarray


class Rows(NamedTuple):
    """B rows of packed trees: S slots, T targets and at most P trees each. What scoring reads.

    Fields as in Tree with a leading B, numpy or jax arrays, and beside them
    tree int32 [B, S], target_tree int32 [B, T]: the place in its row, 0 … P-1, of the tree that a slot
        or target belongs to. A slot sees slots of its own tree only, so trees share a row unnoticed;
        nodes are numbered within their tree.
    pair int32 [B, P]: which pair's tree stands in a place; -1 where none does.
    Padding slots have tree -1 and ancestors 0, padding targets members 0.
    """

    tokens: Any
    positions: Any
    tree: Any
    node: Any
    ancestors: Any
    target_source: Any
    target_token: Any
    target_tree: Any
    target_members: Any
    pair: Any


@dataclasses.dataclass
class _Token:
    """A token of the trie; bit i of members: sequence i passes here, of scored: as completion."""

    token: int
    depth: int
    members: int = 0
    scored: int = 0
    children: dict[int, "_Token"] = dataclasses.field(default_factory=dict)


def build(sequences: Sequence[Sequence[Ids]]) -> Tree:
    """The prefix tree of sequences [(prompt ids, completion ids), …].

    A sequence may go on: (prompt, completion, prompt, completion, …), as a conversation does.
    Completions are scored whole: include their end-of-sequence token if it is to count. Nothing is
    predicted from the last token of a sequence, so unless another sequence goes on through it, it
    takes no slot. Raises ValueError for an empty prompt or completion and for more than 32 nodes.
    """
    root = _Token(-1, -1)
    for i, segments in enumerate(sequences):
        if len(segments) % 2 or not all(len(segment) for segment in segments):
            empty = next((j for j, segment in enumerate(segments) if not len(segment)), 1)
            raise ValueError(f"sequence {i} has an empty {'completion' if empty % 2 else 'prompt'}")
        at = root
        ids = [(token, j % 2) for j, segment in enumerate(segments) for token in segment]
        for depth, (token, scored) in enumerate(ids):
            at = at.children.setdefault(int(token), _Token(int(token), depth))
            at.members |= 1 << i
            at.scored |= scored << i

    slots: list[tuple[int, int, int, int]] = []  # token, position, node, ancestors
    targets: list[tuple[int, int, int]] = []  # source, token, members
    nodes = 0
    # Depth first on a stack of (token, parent's slot, node, ancestors, members): prompts are longer
    # than Python's recursion limit.
    stack = [(child, -1, -1, 0, 0) for child in reversed(root.children.values())]
    while stack:
        at, parent, node, ancestors, members = stack.pop()
        if at.scored:
            targets.append((parent, at.token, at.scored))
        if not at.children:
            continue
        if at.members != members:
            node, nodes = nodes, nodes + 1
            if nodes > MAX_NODES:
                raise ValueError(f"the prefix tree has more than {MAX_NODES} nodes")
            ancestors |= 1 << node
        stack.extend(
            (child, len(slots), node, ancestors, at.members)
            for child in reversed(at.children.values())
        )
        slots.append((at.token, at.depth, node, ancestors))

    tokens, positions, node_ids, ancestor_bits = zip(*slots, strict=True)
    sources, target_tokens, target_members = zip(*targets, strict=True)
    return Tree(
        tokens=np.array(tokens, np.int32),
        positions=np.array(positions, np.int32),
        node=np.array(node_ids, np.int32),
        ancestors=np.array(ancestor_bits, np.uint32),
        target_source=np.array(sources, np.int32),
        target_token=np.array(target_tokens, np.int32),
        target_members=np.array(target_members, np.uint32),
        lengths=np.array([sum(map(len, s[1::2])) for s in sequences], np.int32),
    )


def pack(
    trees: Sequence[Tree],
    length: int,
    targets: int,
    places: int | None = None,
    pairs: Sequence[int] | None = None,
) -> Rows:
    """Trees one after the other in a single row, without batch axis.

    length, targets, places (default: as many as there are trees): S, T and P of Rows. pairs: what Rows.pair
    is to hold, by default 0, 1, …. Raises ValueError when the trees need more: nothing is cut.
    """
    places = len(trees) if places is None else places
    pairs = range(len(trees)) if pairs is None else pairs
    slots = sum(len(tree.tokens) for tree in trees)
    scored = sum(len(tree.target_token) for tree in trees)
    if slots > length or scored > targets or len(trees) > places:
        raise ValueError(
            f"{len(trees)} trees of {slots} slots and {scored} targets do not fit a row of {places} "
            f"trees, {length} slots and {targets} targets"
        )
    first = np.cumsum([0, *(len(tree.tokens) for tree in trees)])

    def join(parts: Sequence[np.ndarray], size: int, dtype: type, fill: int = 0) -> np.ndarray:
        row: np.ndarray = np.full(size, fill, dtype)
        if parts:
            values = np.concatenate(parts)
            row[: len(values)] = values
        return row

    def numbered(field: str) -> list[np.ndarray]:
        return [np.full(len(getattr(tree, field)), i) for i, tree in enumerate(trees)]

    return Rows(
        tokens=join([t.tokens for t in trees], length, np.int32),
        positions=join([t.positions for t in trees], length, np.int32),
        tree=join(numbered("tokens"), length, np.int32, fill=-1),
        node=join([t.node for t in trees], length, np.int32),
        ancestors=join([t.ancestors for t in trees], length, np.uint32),
        target_source=join(
            [t.target_source + first[i] for i, t in enumerate(trees)], targets, np.int32
        ),
        target_token=join([t.target_token for t in trees], targets, np.int32),
        target_tree=join(numbered("target_token"), targets, np.int32),
        target_members=join([t.target_members for t in trees], targets, np.uint32),
        pair=join([np.asarray(pairs)], places, np.int32, fill=-1),
    )


def pad(tree: Tree, length: int, targets: int) -> Rows:
    """The tree as a row of its own; see `pack`."""
    return pack([tree], length, targets)


def stack(rows: Sequence[Rows]) -> Rows:
    """Rows of one size -> the batch [B, …]."""
    return Rows(*(np.stack(field) for field in zip(*rows, strict=True)))
