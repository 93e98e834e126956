"""Adapters are only where they were asked for."""

import dataclasses

import pytest
from flax import nnx

from srpo_jax.models import lora
from srpo_jax.models.decoder import Decoder, DecoderConfig
from srpo_jax.runtime.errors import UserError

CONFIG = DecoderConfig(
    vocab_size=16,
    width=16,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_width=24,
    dtype="float32",
)
ADAPTED = dataclasses.replace(CONFIG, lora_rank=3, lora_alpha=6.0, lora_targets=(".*",))


@pytest.mark.parametrize(
    ("targets", "adapted"),
    [
        (("query",), {"query"}),
        (("key", "up|down"), {"key", "up", "down"}),
        ((".*",), set(lora.PROJECTIONS)),
        (lora.PROJECTIONS, set(lora.PROJECTIONS)),
    ],
)
def test_targets_are_patterns_of_whole_names(targets, adapted):
    lora.check_targets(targets)
    config = dataclasses.replace(ADAPTED, lora_targets=targets)
    abstract = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    paths = [path for path, _ in nnx.to_flat_state(nnx.state(abstract, lora.Adapter))]
    assert {path[-2] for path in paths} == adapted
    assert {path[-1] for path in paths} == {"lora_a", "lora_b"}


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ((), "empty"),
        (("query", "qeury"), "'qeury' is none of the projections query, key"),
        (("quer",), "'quer' is none"),
        (("(",), r"'\(' is no pattern"),
    ],
)
def test_targets_that_adapt_nothing_are_refused(targets, said):
    with pytest.raises(UserError, match=rf"config\.lora\.targets.*{said}"):
        lora.check_targets(targets)
