"""Sequences that share prefixes, stored once: (prompt, completion) pairs -> one row of tokens.

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
    """B trees, one a row, padded to S slots and T targets: what scoring reads.

    Fields as in Tree with a leading B, numpy or jax arrays. Padding slots have ancestors 0, padding
    targets members 0.
    """

    tokens: Any
    positions: Any
    node: Any
    ancestors: Any
    target_source: Any
    target_token: Any
    target_members: Any


@dataclasses.dataclass
class _Token:
    """A token of the trie; bit i of members: sequence i passes here, of scored: as completion."""

    token: int
    depth: int
    members: int = 0
    scored: int = 0
    children: dict[int, "_Token"] = dataclasses.field(default_factory=dict)


def build(sequences: Sequence[tuple[Ids, Ids]]) -> Tree:
    """The prefix tree of sequences [(prompt ids, completion ids), …].

    Completions are scored whole: include their end-of-sequence token if it is to count. Nothing is
    predicted from the last token of a sequence, so unless another sequence goes on through it, it
    takes no slot. Raises ValueError for an empty prompt or completion and for more than 32 nodes.
    """
    root = _Token(-1, -1)
    for i, (prompt, completion) in enumerate(sequences):
        if not len(prompt) or not len(completion):
            raise ValueError(
                f"sequence {i} has an empty {'completion' if len(prompt) else 'prompt'}"
            )
        at = root
        for depth, token in enumerate([*prompt, *completion]):
            at = at.children.setdefault(int(token), _Token(int(token), depth))
            at.members |= 1 << i
            at.scored |= (depth >= len(prompt)) << i

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
        lengths=np.array([len(completion) for _, completion in sequences], np.int32),
    )


def pad(tree: Tree, length: int, targets: int) -> Rows:
    """The tree as a single row without batch axis: slots padded to `length`, targets to `targets`.

    Raises ValueError when the tree is larger: nothing is cut.
    """
    if len(tree.tokens) > length or len(tree.target_token) > targets:
        raise ValueError(
            f"a tree of {len(tree.tokens)} slots and {len(tree.target_token)} targets does not fit "
            f"a row of {length} slots and {targets} targets"
        )

    def widen(values: np.ndarray, size: int) -> np.ndarray:
        return np.pad(values, (0, size - len(values)))

    return Rows(
        tokens=widen(tree.tokens, length),
        positions=widen(tree.positions, length),
        node=widen(tree.node, length),
        ancestors=widen(tree.ancestors, length),
        target_source=widen(tree.target_source, targets),
        target_token=widen(tree.target_token, targets),
        target_members=widen(tree.target_members, targets),
    )


def stack(rows: Sequence[Rows]) -> Rows:
    """Rows of one size -> the batch [B, …]."""
    return Rows(*(np.stack(field) for field in zip(*rows, strict=True)))
