"""What is done to the products of queries and keys before the softmax."""

from typing import NamedTuple


class Logits(NamedTuple):
    """The products times scale and then, where there is a softcap c, c tanh(product / c)."""

    scale: float
    softcap: float | None
