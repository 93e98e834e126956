"""The figures of an interval of steps, and the operations behind MFU."""

import dataclasses
import time
import types

import jax
import numpy as np
import pytest

from srpo_jax.models import DecoderConfig
from srpo_jax.training.loop import Done
from srpo_jax.training.speed import Speed, model_flops
from srpo_jax.trees.prefix_tree import Rows

ROWS, SLOTS, TARGETS, PAIRS = 2, 64, 24, 2
NAMES = ("w|x", "l|x")
CONFIG = DecoderConfig(
    vocab_size=100,
    width=32,
    layers=3,
    heads=4,
    kv_heads=2,
    head_dim=8,
    mlp_width=48,
    tied=False,
)


def shapes():
    ints = lambda *shape: jax.ShapeDtypeStruct(shape, np.int32)
    slots, targets = ints(ROWS, SLOTS), ints(ROWS, TARGETS)
    return Rows(*[slots] * 3, *[targets] * 5, ints(ROWS, PAIRS, len(NAMES)), pair=ints(ROWS, PAIRS))


def products():
    """Of the forward pass, by hand: projections, attention, logits of the targets."""
    c = CONFIG
    heads, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    layer = 2 * c.width * (2 * heads + 2 * kv + 3 * c.mlp_width)
    return (
        c.layers * layer * ROWS * SLOTS,
        c.layers * 2 * 2 * SLOTS**2 * ROWS * heads,
        2 * c.width * c.vocab_size * ROWS * TARGETS,
    )


@pytest.mark.parametrize("remat", ["none", "full"])
def test_operations_are_those_of_the_formula(remat):
    layers, attention, logits = products()
    counted = model_flops(dataclasses.replace(CONFIG, remat=remat), NAMES, shapes())
    # The sums over targets are products too, small ones.
    assert counted == pytest.approx(3 * (layers + attention) + 4 * logits, rel=1e-3)


def test_adapters_spare_the_gradients_of_the_frozen():
    layers, attention, logits = products()
    adapted = dataclasses.replace(CONFIG, lora_rank=1, lora_targets=("query",), lora_dropout=0.5)
    counted = model_flops(adapted, NAMES, shapes())
    first = (
        2 * CONFIG.width * ROWS * SLOTS * 4 * CONFIG.head_dim
    )  # of it no gradient is needed below
    spared = 2 * (layers + 3 * attention / 2) + 3 * logits
    assert counted == pytest.approx(spared, rel=0.06)
    assert counted < spared + first


def test_an_interval_is_summed_and_begun_anew():
    """Of two processes, as its 8 slots are twice its own rows'."""
    rows = Rows(**dict.fromkeys(Rows._fields, np.ones((1, 4))))
    rows = rows._replace(end=np.array([[1, 1, 1, 0]]))
    work = lambda given: 10.0 * given.tokens.size
    with Speed(6, time.perf_counter(), work, peak=100.0) as speed:
        for seconds, waited in ((1.0, 0.0), (1.0, 0.5), (2.0, 0.5)):
            speed.add(Done(1, False, None, {}, True, rows, 8, seconds, waited))
        jax.jit(lambda x: x * 1.2345)(np.ones(3)).block_until_ready()
        values = speed.take()
        assert values.pop("compile_seconds") > 0
        assert 0 < values.pop("start_seconds") < 100
        assert values == pytest.approx(
            {
                "tokens_per_second": 18 / 4,
                "pairs_per_second": 18 / 4,
                "row_fill": 3 / 4,
                "interval_seconds": 4.0,
                "step_seconds": 1.0,
                "step_seconds_90": 1.8,
                "data_wait": 1 / 4,
                "mfu": 240 / 4 / 100,
                "save_seconds": 0.0,
            }
        )
        speed.add(Done(4, False, None, {}, True, rows, 8, 2.0, 0.0))
        with speed.saving():
            time.sleep(0.02)
        values = speed.take()
        assert (values["tokens_per_second"], values["compile_seconds"]) == (3.0, 0.0)
        assert values["save_seconds"] >= 0.02
        assert "start_seconds" not in values


def test_without_a_peak_there_is_no_mfu():
    rows = types.SimpleNamespace(end=np.ones(3), tokens=np.ones(4))
    speed = Speed(1, time.perf_counter())
    speed.add(Done(1, False, None, {}, True, rows, 4, 1.0, 0.0))
    assert "mfu" not in speed.take()
