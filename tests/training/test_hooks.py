"""What a run says of its data."""

import types

import jax
import numpy as np
import pytest

from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training.hooks import report_data, report_model
from srpo_jax.training.settings import TrainSettings
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
    data = Data(n=pairs, left_out="none", tokens=slots.sum(), separate_tokens=slots.sum())
    report_data(data, packing, TrainSettings(steps=18, batch_size=8), "plain")
    said = capsys.readouterr().out
    assert "slots, 100% filled" in said
    assert f"steps: 18 of 8 pairs, {18 * 8 / pairs:.1f} times through the data" in said


def test_a_run_says_on_what_devices_it_is(capsys):
    """A machine whose GPUs JAX did not find trained on its CPUs without a word."""
    report_model({"a": np.zeros(10)}, {}, mesh_module.make(devices=jax.devices()[:2]))
    assert capsys.readouterr().out.endswith(": 2 x cpu\n")
