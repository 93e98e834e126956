"""Which pairs are held out: chosen by a hash of the prompt, so the same ones on every machine."""

import hashlib
from collections.abc import Sequence

from srpo_jax.data.documents import as_text
from srpo_jax.data.records import Pair


def split_off(pairs: Sequence[Pair], count: int) -> tuple[list[Pair], list[Pair]]:
    """(the others, those held out), each in its order; about `count` are held out.

    They are the pairs of the prompts whose hashes are lowest. Pairs of one prompt stay together, so that no
    prompt is on both sides: there may be a few more than `count`. All of them if there are no more.
    """
    sizes: dict[str, int] = {}
    for pair in pairs:
        sizes[_key(pair)] = sizes.get(_key(pair), 0) + 1
    chosen: set[str] = set()
    left = count
    for key in sorted(sizes):
        if left <= 0:
            break
        chosen.add(key)
        left -= sizes[key]
    others = [pair for pair in pairs if _key(pair) not in chosen]
    return others, [pair for pair in pairs if _key(pair) in chosen]


def shared_prompts(pairs: Sequence[Pair], others: Sequence[Pair]) -> int:
    """How many of `pairs` have a prompt that one of `others` has too."""
    known = set(map(_key, others))
    return sum(_key(pair) in known for pair in pairs)


def _key(pair: Pair) -> str:
    return hashlib.sha256(as_text(pair.prompt).strip().encode()).hexdigest()
