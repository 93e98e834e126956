"""An MLP of routed experts: each token goes through the few that its router chooses, and none is left out.

The rows (a token, one of its experts) are sorted by expert and multiplied in groups. On a mesh each device
sorts the tokens that it has. Where the experts lie along an axis that the batch is cut along too, devices
first show one another their tokens, each computes its own experts' part of all, and the sums go back.

Shapes: B batch, S tokens of a row, N tokens of a device, D width, E experts, k of them for each token, F
their width.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh, PartitionSpec

from srpo_jax.models.architecture import DecoderConfig, Routing
from srpo_jax.models.lora import Adapter, scaled
from srpo_jax.models.product import KEPT, einsum, grouped
from srpo_jax.runtime import rules

Array = jax.Array


class Load(NamedTuple):
    """Means over tokens, float32 [E], or [L, E] of layers: who chose an expert, and its probability."""

    chosen: Array
    probability: Array


class Factors(NamedTuple):
    """Kernels [E, inputs, outputs] of the compute dtype, with an adapter's a [E, inputs, r] and b [E, r,
    outputs] or without; or how each of them is cut."""

    kernel: Any
    a: Any
    b: Any


class Grouped(nnx.Module):
    """A projection of each expert, with an adapter of its own where `config.lora_targets` names it."""

    def __init__(
        self,
        name: str,
        inputs: tuple[int, str],
        outputs: tuple[int, str],
        *,
        config: DecoderConfig,
        routing: Routing,
        rngs: nnx.Rngs,
    ):
        (size, axis), (out, out_axis), many = inputs, outputs, routing.experts

        def drawn(*shape: int) -> Array:
            scaled: Array = jax.random.normal(rngs.params(), shape, jnp.float32) * size**-0.5
            return scaled

        self.dtype = config.dtype
        self.kernel = nnx.Param(drawn(many, size, out), axes=("experts", axis, out_axis))
        wanted = config.lora_rank > 0 and any(re.fullmatch(p, name) for p in config.lora_targets)
        self.scale = config.lora_alpha / config.lora_rank if wanted else 0.0
        rank = config.lora_rank
        lora_a = lora_b = None
        if wanted:
            lora_a = Adapter(drawn(many, size, rank), axes=("experts", axis, "rank"))
            lora_b = Adapter(jnp.zeros((many, rank, out)), axes=("experts", "rank", out_axis))
        self.lora_a, self.lora_b = lora_a, lora_b

    def factors(self, adapter: bool) -> Factors:
        held = (self.kernel, self.lora_a, self.lora_b) if adapter else (self.kernel, None, None)
        return Factors(*(None if x is None else x[...].astype(self.dtype) for x in held))


class Router(nnx.Module):
    def __init__(self, config: DecoderConfig, routing: Routing, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (config.width, routing.experts), jnp.float32)
        self.kernel = nnx.Param(init * config.width**-0.5, axes=("embed", None))


class Experts(nnx.Module):
    """The sum of the chosen experts' results, each weighed by the router.

    activate: of the gate. There are no biases, and adapters have no dropout.
    """

    def __init__(
        self,
        config: DecoderConfig,
        routing: Routing,
        activate: Callable[[Array], Array],
        rngs: nnx.Rngs,
    ):
        self.routing, self.activate, self.dtype = routing, activate, config.dtype
        self.router = Router(config, routing, rngs)
        outside, inside = (config.width, "expert_embed"), (config.mlp_width, "mlp")
        project = functools.partial(Grouped, config=config, routing=routing, rngs=rngs)
        self.gate = project("gate", outside, inside)
        self.up = project("up", outside, inside)
        self.down = project("down", inside, outside)

    def __call__(
        self, x: Array, adapter: bool | Array, counted: Array | None = None
    ) -> tuple[Array, Load | None]:
        """[B, S, D] -> the same, and the load of the tokens that are counted, bool [B, S]."""
        router = self.router.kernel[...].astype(self.dtype)
        logits = einsum("bsd,de->bse", x, router, "float32")
        probabilities = jax.nn.softmax(logits, axis=-1)
        weights, chosen = jax.lax.top_k(probabilities, self.routing.each)
        if self.routing.normed:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        parts = (self.gate, self.up, self.down)
        factors = tuple(part.factors(adapter is not False) for part in parts)
        program = functools.partial(
            _through, activate=self.activate, scales=tuple(part.scale for part in parts)
        )
        y = _on_mesh(program, factors, len(x))(x, chosen, weights, factors)
        return y, None if counted is None else _load(chosen, probabilities, counted)


def balance(load: Load) -> Array:
    """The load-balancing loss of a model's layers, from their loads [L, E]; float32 [].

    E sum_e f_e p_e (Fedus et al., arXiv:2101.03961), where f_e is the share of tokens that chose expert e
    and p_e its mean probability, over all layers: k where all experts have the same, E where k = 1 and one
    has all. As `transformers` computes it.
    """
    chosen, probability = load.chosen.mean(0), load.probability.mean(0)
    return chosen.shape[0] * jnp.sum(chosen * probability)


def _load(chosen: Array, probabilities: Array, counted: Array) -> Load:
    known = counted[..., None]
    hit = (chosen[..., None] == jnp.arange(probabilities.shape[-1])).any(-2)
    tokens = jnp.maximum(counted.sum(), 1)
    means = [jnp.where(known, x, 0.0).sum((0, 1)) / tokens for x in (hit, probabilities)]
    return Load(*means)


def _through(
    x: Array,
    chosen: Array,
    weights: Array,
    factors: tuple[Factors, ...],
    first: Array | int = 0,
    *,
    activate: Callable[[Array], Array],
    scales: tuple[float, ...],
) -> Array:
    """What the experts that `factors` hold add to each token: float32 [B, S, D] of x, the same.

    chosen int32, weights float32 [B, S, k]. first: the number of the first expert that is here.
    """
    gate, up, down = (
        functools.partial(_projected, factors=part, scale=scale)
        for part, scale in zip(factors, scales, strict=True)
    )
    here, each, width = factors[0].kernel.shape[0], chosen.shape[-1], x.shape[-1]
    numbers = chosen.reshape(-1) - first
    own = (numbers >= 0) & (numbers < here)
    # Rows of other devices' experts come last, in no group.
    numbers = jnp.where(own, numbers, here)
    order = jnp.argsort(numbers)
    sizes = jnp.sum(numbers[:, None] == jnp.arange(here), axis=0, dtype=jnp.int32)
    rows = jnp.broadcast_to(x.reshape(-1, 1, width), (numbers.size // each, each, width))
    rows = rows.reshape(-1, width).at[order].get(unique_indices=True)
    # What products make of rows without a group means nothing, backwards neither.
    grouped_rows = own[order][:, None]
    rows = jnp.where(grouped_rows, rows, 0)
    made = down(activate(gate(rows, sizes=sizes)) * up(rows, sizes=sizes), sizes=sizes)
    made = jnp.where(grouped_rows, made, 0).at[jnp.argsort(order)].get(unique_indices=True)
    weighed = made.reshape(*chosen.shape, width) * weights[..., None]
    return jnp.sum(weighed, axis=-2)


def _projected(rows: Array, *, factors: Factors, scale: float, sizes: Array) -> Array:
    dtype = str(rows.dtype)

    def product(rows: Array, kernel: Array) -> Array:
        kept: Array = checkpoint_name(grouped(rows, kernel, sizes, dtype), KEPT)
        return kept

    y = product(rows, factors.kernel)
    if factors.a is None or factors.b is None:
        return y
    return y + scaled(product(product(rows, factors.a), factors.b), scale)


def _on_mesh(
    program: Callable[..., Array], factors: tuple[Factors, ...], batch: int
) -> Callable[..., Array]:
    """`_through` on the mesh of the context: its arguments without the last, and x's dtype.

    The experts' width is gathered, as the weights of other layers are.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return lambda x, *others: program(x, *others).astype(x.dtype)
    along = {name: _several(mesh, name) for name in ("batch", "experts", "mlp")}
    if batch % math.prod(mesh.shape[axis] for axis in along["batch"]):
        along["batch"] = ()  # every device then has all tokens
    within = (*along["experts"], *along["mlp"])
    shown = tuple(axis for axis in within if axis in along["batch"])
    summed = tuple(axis for axis in within if axis not in along["batch"])

    def on_device(x: Array, chosen: Array, weights: Array, factors: tuple[Factors, ...]) -> Array:
        tokens = (x, chosen, weights)
        if shown:
            tokens = jax.lax.all_gather(tokens, shown, tiled=True)
        first: Array | int = 0
        if along["experts"]:
            first = jax.lax.axis_index(along["experts"]) * factors[0].kernel.shape[0]
        y = program(*tokens, factors, first)
        if shown:
            y = jax.lax.psum_scatter(y, shown, tiled=True)
        return (jax.lax.psum(y, summed) if summed else y).astype(x.dtype)

    rows = PartitionSpec(along["batch"] or None)
    cut = tuple(
        Factors(
            *(
                None if x is None else rules.spec(mesh, axes)
                for x, axes in zip(f, where, strict=True)
            )
        )
        for f, where in zip(factors, (_INWARD, _INWARD, _OUTWARD), strict=True)
    )
    return jax.shard_map(
        on_device, in_specs=(rows, rows, rows, cut), out_specs=rows, check_vma=False
    )


_INWARD = (("experts", None, "mlp"), ("experts", None, None), ("experts", None, "mlp"))
_OUTWARD = (("experts", "mlp", None), ("experts", "mlp", None), ("experts", None, None))


def _several(mesh: AbstractMesh, logical: str) -> tuple[str, ...]:
    """The axes of more than one device along which such a dimension is cut."""
    return tuple(axis for axis in rules.mesh_axes(mesh, logical) if mesh.shape[axis] > 1)
