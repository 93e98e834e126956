"""Linear projections with an optional low-rank adapter (LoRA, Hu et al., arXiv:2106.09685).

y = x W + (alpha / rank) · (x A) B, with A random and B zero, so that step 0 equals the base exactly.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from srpo_jax.models.product import KEPT, einsum
from srpo_jax.runtime.errors import UserError

if TYPE_CHECKING:
    from srpo_jax.models.architecture import DecoderConfig

LETTERS_BATCH, LETTERS_IN, LETTERS_OUT = "abc", "de", "fg"
PROJECTIONS = ("query", "key", "value", "output", "gate", "up", "down")  # names in the decoder
EXPERTS = ("gate", "up", "down")  # those that an MLP of routed experts has many of


class Adapter(nnx.Param[jax.Array]):
    """A LoRA factor: what is trained while every other parameter stays frozen."""


class Projection(nnx.Module):
    """[..., *inputs] -> [..., *outputs] with kernel [*inputs, *outputs].

    name is matched in full against the patterns of `config.lora_targets`; axes are the kernel's
    logical sharding axes.
    """

    def __init__(
        self,
        name: str,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        config: "DecoderConfig",
        rngs: nnx.Rngs,
    ):
        fan_in = math.prod(inputs)
        init = jax.random.normal(rngs.params(), (*inputs, *outputs), jnp.float32)
        self.kernel = nnx.Param(init * fan_in**-0.5, axes=axes)
        bias = nnx.Param(jnp.zeros(outputs, jnp.float32), axes=axes[len(inputs) :])
        self.bias = bias if name in config.biases else None
        self.dtype = config.dtype
        self.dims = (len(inputs), len(outputs))
        self.dropout = config.lora_dropout
        # Projections of a layer share its key: each draws with its own number.
        self.number = PROJECTIONS.index(name)
        wanted = config.lora_rank > 0 and any(re.fullmatch(p, name) for p in config.lora_targets)
        self.scale = config.lora_alpha / config.lora_rank if wanted else 0.0
        lora_a = lora_b = None
        if wanted:
            init = jax.random.normal(rngs.params(), (*inputs, config.lora_rank), jnp.float32)
            lora_a = Adapter(init * fan_in**-0.5, axes=(*axes[: len(inputs)], "rank"))
            init = jnp.zeros((config.lora_rank, *outputs), jnp.float32)
            lora_b = Adapter(init, axes=("rank", *axes[len(inputs) :]))
        self.lora_a, self.lora_b = lora_a, lora_b

    def __call__(self, x: jax.Array, adapter: "bool | jax.Array" = True) -> jax.Array:
        """adapter: False leaves it out; a key lets it see its input through dropout."""
        inputs, outputs = LETTERS_IN[: self.dims[0]], LETTERS_OUT[: self.dims[1]]
        batch = LETTERS_BATCH[: x.ndim - len(inputs)]
        y = self._product(f"{batch}{inputs},{inputs}{outputs}->{batch}{outputs}", x, self.kernel)
        if adapter is not False and self.lora_a is not None and self.lora_b is not None:
            if adapter is not True and self.dropout > 0:
                key = jax.random.fold_in(adapter, self.number)
                kept = jax.random.bernoulli(key, 1 - self.dropout, x.shape)
                x = jnp.where(kept, x / (1 - self.dropout), 0).astype(x.dtype)
            low = self._product(f"{batch}{inputs},{inputs}r->{batch}r", x, self.lora_a)
            up = self._product(f"{batch}r,r{outputs}->{batch}{outputs}", low, self.lora_b)
            y = y + scaled(up, self.scale)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)

    def _product(self, spec: str, x: jax.Array, weight: nnx.Param[jax.Array]) -> jax.Array:
        product = einsum(spec, x, weight[...].astype(self.dtype), self.dtype)
        kept: jax.Array = checkpoint_name(product, KEPT)
        return kept


def scaled(product: jax.Array, scale: float) -> jax.Array:
    """scale · product in its dtype, multiplied in float32.

    A bfloat16 product would round the scale first: 16/12 is 1.3359 there.
    """
    wide = product.astype(jnp.promote_types(product.dtype, jnp.float32))
    return (scale * wide).astype(product.dtype)


def check_targets(patterns: Sequence[str]) -> None:
    """UserError for a pattern of config.lora.targets that adapts no projection, and for none at all."""
    if not patterns:
        raise UserError("config.lora.targets is empty: name projections, or set config.lora.rank=0")
    for pattern in patterns:
        try:
            found = any(re.fullmatch(pattern, name) for name in PROJECTIONS)
        except re.error as error:
            raise UserError(f"config.lora.targets: {pattern!r} is no pattern: {error}") from error
        if not found:
            raise UserError(
                f"config.lora.targets: {pattern!r} is none of the projections {', '.join(PROJECTIONS)}"
            )


def check_dropout(patterns: Sequence[str], dropout: float) -> None:
    """UserError where routed experts would have adapters with dropout."""
    for name in EXPERTS:
        if any(re.fullmatch(pattern, name) for pattern in patterns):
            raise UserError(
                f"config.lora.dropout={dropout}: adapters of routed experts have none; set it to 0, or "
                f"leave {', '.join(EXPERTS)} out of config.lora.targets"
            )
