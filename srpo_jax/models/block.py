"""One layer of the decoder: attention and an MLP, with the norms that its config asks for.

Shapes: B batch, S query tokens, C cache slots, D width, H query heads, K key/value heads, Hd head size,
F MLP width.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.attention import TreeMask, attend, attend_cached
from srpo_jax.models.cache import Cache, CacheView
from srpo_jax.models.experts import Experts, Load
from srpo_jax.models.lora import Projection

Array = jax.Array
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class View(NamedTuple):
    """Positions [B, S] of the tokens, how they are rotated and whom they see, in one layer.

    frequencies, amplitude: as `rotary` takes them.
    """

    positions: Array
    frequencies: Array
    amplitude: Array | None
    mask: Array | TreeMask


class Norm(nnx.Module):
    """x / rms(x) * scale or, with "layer", (x - mean) / std * scale (+ bias); computed in float32.

    Over the last axes of x, as many as `shape` has or, if it is given, `over`.
    """

    def __init__(
        self,
        config: DecoderConfig,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...] = (None,),
        kind: str | None = None,
        over: int | None = None,
    ):
        self.config = config
        self.over = tuple(range(-(over or len(shape)), 0))
        self.centred = (kind or config.norm) == "layer"
        self.scale = nnx.Param(jnp.full(shape, 1.0 - config.norm_offset, jnp.float32), axes=axes)
        biased = self.centred and config.norm_bias
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes) if biased else None

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        if self.centred:
            x32 = x32 - jnp.mean(x32, axis=self.over, keepdims=True)
        square = jnp.mean(x32 * x32, axis=self.over, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(square + self.config.norm_eps)
        x32 = x32 * (self.scale[...].astype(jnp.float32) + self.config.norm_offset)
        if self.bias is not None:
            x32 = x32 + self.bias[...].astype(jnp.float32)
        return x32.astype(x.dtype)


def rotary(
    x: Array,
    positions: Array,
    frequencies: Array,
    amplitude: Array | None = None,
    interleaved: bool = False,
) -> Array:
    """Rotates [B, S, heads, Hd] by positions [B, S], times amplitude []; the rest of Hd, if any, stays.

    frequencies [n]: the first 2 n entries are rotated, the i-th with the (n + i)-th or, interleaved, the
    2 i-th with the next.
    """
    half = frequencies.shape[0]
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    if amplitude is not None:
        cos, sin = amplitude * cos, amplitude * sin
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    if interleaved:
        pairs = jnp.concatenate([first, second], axis=-1)
        first, second = pairs[..., ::2], pairs[..., 1::2]
    rotated = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        rotated = [jnp.stack(rotated, axis=-1).reshape(pairs.shape)]
    return jnp.concatenate([*rotated, rest], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        width, head_dim = config.width, config.head_dim
        project = functools.partial(Projection, config=config, rngs=rngs)
        self.query = project(
            "query", (width,), (config.heads, head_dim), ("embed", "heads", "head")
        )
        self.key = project(
            "key", (width,), (config.kv_heads, head_dim), ("embed", "kv_heads", "head")
        )
        self.value = project(
            "value", (width,), (config.kv_heads, head_dim), ("embed", "kv_heads", "head")
        )
        self.output = project(
            "output", (config.heads, head_dim), (width,), ("heads", "head", "embed")
        )

        def norm(heads: int, axis: str) -> Norm | None:
            if config.query_key_norm == "none":
                return None
            if config.query_key_norm == "head":
                return Norm(config, (head_dim,), kind="rms")
            if config.query_key_norm == "heads":
                return Norm(config, (heads, head_dim), (axis, "head"), over=1)
            return Norm(config, (heads, head_dim), (axis, "head"), "rms")

        self.query_norm = norm(config.heads, "heads")
        self.key_norm = norm(config.kv_heads, "kv_heads")

    def __call__(
        self,
        x: Array,
        view: View,
        adapter: bool | Array,
        cached: CacheView | None = None,
    ) -> tuple[Array, Cache | None]:
        """[B, S, D] -> the same, and the cache with the tokens in it, where there is one."""
        query, key, value = (project(x, adapter) for project in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        turn = functools.partial(
            rotary,
            positions=view.positions,
            frequencies=view.frequencies,
            amplitude=view.amplitude,
            interleaved=self.config.rope_interleaved,
        )
        query, key = turn(query), turn(key)
        logits = {
            "scale": self.config.attention_scale,
            "softcap": self.config.attention_softcap,
        }
        if cached is not None:
            cached = cached.write(key, value)
        if cached is None or isinstance(view.mask, TreeMask):
            attended = attend(query, key, value, view.mask, **logits)
        else:
            parts = cached.parts(view.mask.shape[-1])
            attended = attend_cached(query, parts, view.mask, **logits)
        return self.output(attended, adapter), None if cached is None else cached.own


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        project = functools.partial(Projection, config=config, rngs=rngs)
        self.activation = config.activation
        inner = functools.partial(
            project, inputs=(config.width,), outputs=(config.mlp_width,), axes=("embed", "mlp")
        )
        self.gate = inner("gate") if config.gated else None
        self.up = inner("up")
        self.down = project("down", (config.mlp_width,), (config.width,), ("mlp", "embed"))

    def __call__(self, x: Array, adapter: bool | Array) -> Array:
        activate = ACTIVATIONS[self.activation]
        if self.gate is None:
            return self.down(activate(self.up(x, adapter)), adapter)
        return self.down(activate(self.gate(x, adapter)) * self.up(x, adapter), adapter)


class Block(nnx.Module):
    """One layer: attention and an MLP, each with a residual and with norms where the config says.

    The MLP may be one of routed experts.
    """

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        def norm(where: str) -> Norm | None:
            return Norm(config, (config.width,)) if config.norms in (where, "both") else None

        self.config = config
        self.attention_norm, self.attention_post_norm = norm("before"), norm("after")
        self.attention = Attention(config, rngs)
        self.mlp_norm = None if config.one_norm else norm("before")
        self.mlp_post_norm = norm("after")
        self.mlp: MLP | Experts = (
            MLP(config, rngs)
            if config.routing is None
            else Experts(config, config.routing, ACTIVATIONS[config.activation], rngs)
        )

    def __call__(
        self,
        x: Array,
        view: View,
        adapter: bool | Array,
        cached: CacheView | None = None,
        counted: Array | None = None,
    ) -> tuple[Array, Cache | None, Load | None]:
        """See `Attention`. adapter: as `Projection` takes it. counted: as `Experts`, where there are."""
        normed = _apply(self.attention_norm, x)
        attended, cache = self.attention(normed, view, adapter, cached)
        attended = self._scaled(_apply(self.attention_post_norm, attended))
        if self.config.one_norm:
            read = normed
        else:
            read = _apply(self.mlp_norm, x if self.config.parallel else x + attended)
        if isinstance(self.mlp, Experts):
            mlp, load = self.mlp(read, adapter, counted)
        else:
            mlp, load = self.mlp(read, adapter), None
        mlp = self._scaled(_apply(self.mlp_post_norm, mlp))
        return x + attended + mlp, cache, load

    def _scaled(self, x: Array) -> Array:
        scale = self.config.residual_scale
        # Of .22, as Granite has it, bfloat16 keeps .2197.
        return x if scale == 1.0 else (x.astype(jnp.float32) * scale).astype(x.dtype)


def _apply(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)
