"""The order in which the things of a set are drawn, one epoch after the other.

Grain shuffles an epoch by a permutation that is computed place by place, so that a run goes on at any place
at once. Grain's own epochs have seed + epoch: what a run draws in its second epoch, one with the next seed
draws in its first. Here each epoch has a seed of its own.
"""

import dataclasses
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

# How later epochs are shuffled: as Grain does it, which runs of earlier versions go on with; as here.
EARLIER, RULE = 1, 2


@dataclasses.dataclass(frozen=True)
class Order:
    """Numbers 0 … count - 1, all of them in each epoch, which is shuffled anew.

    seed: in [0, 2^31), of the first epoch; the others follow from it by `rule`.
    """

    count: int
    seed: int
    rule: int = RULE

    def take(self, first: int, last: int) -> Int[np.ndarray, " k"]:
        """What is drawn at the places first, …, last - 1."""
        found: list[int] = []
        while first < last:
            epoch, place = divmod(first, self.count)
            end = min(place + last - first, self.count)
            whole = grain.MapDataset.range(self.count)
            shuffled: Any = whole.shuffle(seed=self.seed_of(epoch))
            found += [shuffled[i] for i in range(place, end)]
            first += end - place
        return np.array(found, int)

    def seed_of(self, epoch: int) -> int:
        """Of the shuffle of epoch 0, 1, …: below 2^32, as Grain wants it."""
        if not epoch:
            return self.seed
        if self.rule == EARLIER:
            return (self.seed + epoch) % 2**32
        # In the half of Grain's seeds that no first epoch has.
        drawn = np.random.SeedSequence((self.seed, epoch)).generate_state(1)[0]
        return 2**31 + int(drawn >> 1)
