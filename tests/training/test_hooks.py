"""What a run says of its data."""

import types

import numpy as np
import pytest

from srpo_jax.training.hooks import report_data
from srpo_jax.trees.packing import Packing


class Data(types.SimpleNamespace):
    """As much of `pipeline.PairTrees` as is reported."""

    def __len__(self):
        return self.n


@pytest.mark.parametrize("pairs", [9, 5])
def test_rows_are_as_full_as_those_of_the_steps(pairs, capsys):
    """A last batch of one pair counted as much as the whole one before it: 9 pairs were "56% filled"."""
    slots = np.full(pairs, 32)
    packing = Packing(slots, np.full(pairs, 8), batch_size=8, seed=0)
    # Fewer pairs than a batch has come again in it.
    assert packing.fill(packing.batch(0)) == 1.0
    report_data(Data(n=pairs, dropped=0, tokens=slots.sum(), separate_tokens=slots.sum()), packing)
    assert "slots, 100% filled" in capsys.readouterr().out
