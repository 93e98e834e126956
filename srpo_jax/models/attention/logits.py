"""What is done to products before a softmax: of queries and keys, or of states and a vocabulary."""

from typing import NamedTuple


class Logits(NamedTuple):
    """The products times scale and then, where there is a softcap c, c tanh(product / c)."""

    scale: float
    softcap: float | None
