"""One decoder-only transformer, described by its config.

Grouped-query attention under an explicit mask with rotary positions given as *input*, an MLP, norms
before or after them; see DecoderConfig for what model families vary. Nothing here knows of prefix trees,
meshes or losses: whoever calls says at which position each token stands and which earlier tokens it sees.

Shapes: B batch, S query tokens, C cache slots, L layers, D width, H query heads, K key/value heads,
Hd head size, F MLP width, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.attention import TreeMask, attend, attend_cached
from srpo_jax.models.cache import Cache
from srpo_jax.models.lora import Projection
from srpo_jax.models.product import KEPT, einsum
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}
UNLIMITED = 1 << 30  # a window no position reaches beyond


class Kind(NamedTuple):
    """`LayerKind` as arrays: frequencies float32 [rotated / 2], zeros without rotation; window int32.

    For all layers with L in front. window: None where no layer has one.
    """

    frequencies: Array
    window: Array | None


class View(NamedTuple):
    """Where tokens stand (positions [B, S]) and whom they see, in one layer."""

    positions: Array
    frequencies: Array
    mask: Array | TreeMask


class Norm(nnx.Module):
    """x / rms(x) * scale or, with "layer", (x - mean) / std * scale + bias; computed in float32.

    Over the last axes of x, as many as `shape` has.
    """

    def __init__(
        self,
        config: DecoderConfig,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...] = (None,),
        kind: str | None = None,
    ):
        self.config = config
        self.over = tuple(range(-len(shape), 0))
        self.centred = (kind or config.norm) == "layer"
        self.scale = nnx.Param(jnp.full(shape, 1.0 - config.norm_offset, jnp.float32), axes=axes)
        self.bias = nnx.Param(jnp.zeros(shape, jnp.float32), axes=axes) if self.centred else None

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


def rotary(x: Array, positions: Array, frequencies: Array, amplitude: float = 1.0) -> Array:
    """Rotates [B, S, heads, Hd] by positions [B, S], times amplitude; the rest of Hd, if any, stays.

    frequencies [n]: the first 2 n entries are rotated, the i-th with the (n + i)-th.
    """
    half = frequencies.shape[0]
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second, rest = jnp.split(x.astype(jnp.float32), (half, 2 * half), axis=-1)
    if amplitude != 1.0:
        cos, sin = amplitude * cos, amplitude * sin
    rotated = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


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
            return Norm(config, (heads, head_dim), (axis, "head"), "rms")

        self.query_norm = norm(config.heads, "heads")
        self.key_norm = norm(config.kv_heads, "kv_heads")

    def __call__(
        self,
        x: Array,
        view: View,
        adapter: bool | Array,
        cache: Cache | None = None,
        before: Cache | None = None,
        layer: Array | None = None,
        slot: Array | int = 0,
    ) -> tuple[Array, Cache | None]:
        query, key, value = (project(x, adapter) for project in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        turn = functools.partial(
            rotary,
            positions=view.positions,
            frequencies=view.frequencies,
            amplitude=self.config.amplitude,
        )
        query, key = turn(query), turn(key)
        logits = {
            "scale": self.config.attention_scale,
            "softcap": self.config.attention_softcap,
        }
        if cache is not None:
            cache = cache.write(key, value, layer, slot)
        if cache is None or isinstance(view.mask, TreeMask):
            attended = attend(query, key, value, view.mask, **logits)
        else:
            read = [] if before is None else [before.first(None, layer)]
            slots = view.mask.shape[-1] - sum(keys.shape[-1] for keys, _ in read)
            parts = [*read, cache.first(slots, layer)]
            attended = attend_cached(query, parts, view.mask, **logits)
        return self.output(attended, adapter), cache


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
    """One layer: attention and an MLP, each with a residual and with norms where the config says."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        def norm(where: str) -> Norm | None:
            return Norm(config, (config.width,)) if config.norms in (where, "both") else None

        self.parallel = config.parallel
        self.attention_norm, self.attention_post_norm = norm("before"), norm("after")
        self.attention = Attention(config, rngs)
        self.mlp_norm, self.mlp_post_norm = norm("before"), norm("after")
        self.mlp = MLP(config, rngs)

    def __call__(
        self, x: Array, view: View, adapter: bool | Array, *cached
    ) -> tuple[Array, Cache | None]:
        attended, cache = self.attention(_apply(self.attention_norm, x), view, adapter, *cached)
        attended = _apply(self.attention_post_norm, attended)
        read = x if self.parallel else x + attended
        mlp = _apply(self.mlp_post_norm, self.mlp(_apply(self.mlp_norm, read), adapter))
        return x + attended + mlp, cache


def _apply(norm: Norm | None, x: Array) -> Array:
    return x if norm is None else norm(x)


class Embedder(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (config.vocab_size, config.width), jnp.float32)
        self.embedding = nnx.Param(init * config.width**-0.5, axes=("vocab", "embed"))


class Head(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (config.width, config.vocab_size), jnp.float32)
        self.kernel = nnx.Param(init * config.width**-0.5, axes=("embed", "vocab"))


class Decoder(nnx.Module):
    """The language model. Parameters float32; matrix products in `config.dtype`, summed in float32."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.config = config
        self.embedder = Embedder(config, rngs)

        @nnx.split_rngs(splits=config.layers)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def stack(layer_rngs: nnx.Rngs) -> Block:
            return Block(config, layer_rngs)

        self.blocks = stack(rngs)
        self.final_norm = Norm(config, (config.width,))
        self.head = None if config.tied else Head(config, rngs)

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Array | TreeMask,
        *,
        adapter: bool = True,
        dropout: Array | None = None,
    ) -> Array:
        """Hidden states [B, S, D] of tokens [B, S] int32 standing at positions [B, S] int32.

        mask: who sees whom, bool [B, S, S] (True where the row token sees the column token) or a
        TreeMask. adapter=False computes the base model, as if no LoRA had been trained: the reference
        policy. dropout: the key for the adapters' dropout; None for none.
        """
        config = self.config
        graphdef, layers = nnx.split(self.blocks)
        common, each = self._kinds()
        keys = None
        if adapter and dropout is not None and config.lora_dropout > 0:
            keys = jax.random.split(dropout, config.layers)

        def step(x: Array, inputs: tuple) -> tuple[Array, None]:
            state, kind, key = inputs
            block = nnx.merge(graphdef, state)
            adapted = adapter if key is None else key
            x, _ = block(x, _view(common or kind, positions, positions, mask), adapted)
            # Weights come to the tokens, not the other way round.
            return mesh_module.constrain(x, ("batch", None, None)), None

        if config.remat == "full":
            step = jax.checkpoint(step, prevent_cse=False)
        elif config.remat == "dots":
            policy = jax.checkpoint_policies.save_only_these_names(KEPT)
            step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        x, _ = jax.lax.scan(step, self._embed(tokens), (layers, each, keys))
        return self.final_norm(x)

    def extend(
        self,
        tokens: Array,
        positions: Array,
        mask: Array | TreeMask,
        cache: Cache,
        slot: Array | int,
        layers: list[nnx.State] | None = None,
        before: Cache | None = None,
    ) -> tuple[Array, Cache]:
        """Reads S more tokens into cache slots slot … slot+S-1.

        mask: bool [B, S, C'], which of the first C' slots a token sees, of `before` and then of the cache
        (those just written are among them); or a TreeMask, under which the tokens see one another alone.
        before: slots that are seen and stay as they are. In a decoding loop, only what changes should go
        around.
        layers: from `unrolled_layers`, with a cache made for them; else the layers are scanned.
        Returns hidden states [B, S, D] and the cache with those slots overwritten.
        """
        x = self._embed(tokens)
        graphdef, stacked = nnx.split(self.blocks)
        common, each = self._kinds()
        cache = cache.standing(positions, slot)
        standing = (
            None if self.config.windowed else positions
        )  # of the slots that the mask is about
        if standing is None and not isinstance(mask, TreeMask):
            known = [c.positions for c in (before, cache) if c is not None]
            standing = jnp.concatenate([x for x in known if x is not None], axis=1)
            standing = standing[:, : mask.shape[-1]]
        if layers is None:

            def step(carry, inputs):
                state, layer, kind = inputs
                block = nnx.merge(graphdef, state)
                x, cache = carry
                view = _view(common or kind, positions, standing, mask)
                return block(x, view, True, cache, before, layer, slot), None

            numbers = jnp.arange(self.config.layers)
            (x, cache), _ = jax.lax.scan(step, (x, cache), (stacked, numbers, each))
            return self.final_norm(x), cache
        keys, values = [], []
        for i, state in enumerate(layers):
            block = nnx.merge(graphdef, state)
            kind = common or jax.tree.map(lambda a, i=i: a[i], each)
            view = _view(kind, positions, standing, mask)
            own, seen = cache.of(i), None if before is None else before.of(i)
            x, new = block(x, view, True, own, seen, None, slot)
            assert new is not None
            keys.append(new.keys)
            values.append(new.values)
        return self.final_norm(x), dataclasses.replace(cache, keys=keys, values=values)

    def unrolled_layers(self) -> list[nnx.State]:
        """The layers' parameters apart, for `extend`: to be made once, outside a decoding loop.

        On CPUs a matrix that is a slice of a stack multiplies 2 (float32) to 8 (bfloat16) times more
        slowly than one that stands alone, so each is copied out; the barrier keeps XLA from undoing it.
        """
        _, stacked = nnx.split(self.blocks)
        apart = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(self.config.layers)]
        return jax.lax.optimization_barrier(apart)

    def logits(self, hidden: Array) -> Array:
        """[..., D] -> float32 [..., V]."""
        batch = "abc"[: hidden.ndim - 1]
        if self.head is None:
            # The tied table is multiplied as it lies: transposing it costs more than the product.
            spec, kernel = f"{batch}d,vd->{batch}v", self.embedder.embedding
        else:
            spec, kernel = f"{batch}d,dv->{batch}v", self.head.kernel
        logits = einsum(spec, hidden, kernel[...].astype(self.config.dtype), "float32")
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def head_kernel(self) -> Array:
        """The vocabulary projection [V, D] in the compute dtype, for `scoring.log_probabilities`."""
        if self.head is None:
            return self.embedder.embedding[...].astype(self.config.dtype)
        return self.head.kernel[...].astype(self.config.dtype).T

    def _embed(self, tokens: Array) -> Array:
        config = self.config
        x = self.embedder.embedding[...][tokens].astype(config.dtype)
        if config.embedding_scale == 1.0:
            return x
        return x * jnp.asarray(config.embedding_scale, config.dtype)

    def _kinds(self) -> tuple[Kind | None, Kind | None]:
        """What all layers have in common, or else [L, …], each layer's own."""
        config = self.config
        kinds = [config.kind(layer) for layer in range(config.layers)]
        turned = [
            np.zeros(config.rotated // 2, np.float32)
            if k.rope is None
            else k.rope.frequencies(config.rotated)
            for k in kinds
        ]
        windows = [k.window or UNLIMITED for k in kinds]
        if len(set(kinds)) == 1:
            window = jnp.int32(windows[0]) if config.windowed else None
            return Kind(jnp.asarray(turned[0]), window), None
        window = jnp.array(windows, jnp.int32) if config.windowed else None
        return None, Kind(jnp.asarray(np.stack(turned)), window)


def _view(
    kind: Kind | None, positions: Array, standing: Array | None, mask: Array | TreeMask
) -> View:
    """positions: of the tokens; standing: of the keys that a bool mask is about."""
    assert kind is not None
    if kind.window is not None:
        if isinstance(mask, TreeMask):
            mask = mask.within(kind.window)
        else:
            assert standing is not None
            mask = mask & (positions[..., :, None] - standing[..., None, :] < kind.window)
    return View(positions, kind.frequencies, mask)
