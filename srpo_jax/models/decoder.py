"""One decoder-only transformer, described by its config.

RMSNorm, rotary positions given as *input*, grouped-query attention under an explicit mask, a gated
MLP, tied or untied head. Nothing here knows of prefix trees, meshes or losses: whoever calls says at
which position each token stands and which earlier tokens it sees.

Shapes: B batch, S query tokens, C cache slots, L layers, D width, H query heads, K key/value heads,
Hd head size, F MLP width, V vocabulary.
"""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import nnx

from srpo_jax.models.attention import TreeMask, attend, attend_cached
from srpo_jax.models.lora import Projection
from srpo_jax.models.product import KEPT, einsum
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Architecture (what the weights mean) and how it is computed."""

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tied: bool = True
    max_length: int = 2048
    dtype: str = "bfloat16"
    remat: str = "full"
    attention: str = "auto"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}: grouped-query "
                "attention needs equally many query heads for each key head"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd: rotary positions need pairs")


@flax.struct.dataclass
class Cache:
    """Keys and values of the tokens read so far, keys already rotated, in the compute dtype.

    keys [B, K, Hd, C] and values [B, K, C, Hd], as the products of a decoding step want them: one array
    with L in front for scanned layers, or a list of L arrays for unrolled ones. Which slots hold something
    is the caller's knowledge, and reaches the model as the attention mask.
    """

    keys: Any
    values: Any

    @classmethod
    def zeros(
        cls, config: DecoderConfig, batch: int, slots: int, unrolled: bool = False
    ) -> "Cache":
        kv_heads, size = config.kv_heads, config.head_dim

        def make(*shape: int) -> Any:
            axes = ("batch", "kv_heads", None, None)
            if unrolled:
                empty = jnp.zeros(shape, config.dtype)
                return [mesh_module.constrain(empty, axes) for _ in range(config.layers)]
            stacked = jnp.zeros((config.layers, *shape), config.dtype)
            return mesh_module.constrain(stacked, ("layers", *axes))

        return cls(make(batch, kv_heads, size, slots), make(batch, kv_heads, slots, size))

    def write(self, key: Array, value: Array, layer: Array | None, slot: Array | int) -> "Cache":
        """With [B, S, K, Hd] in slots from `slot` on, of a layer of the stack or (None) of one alone.

        Only the new slots are written, in place; a layer's cache that goes through the scan's outputs
        would be moved whole at each decoded token.
        """
        key, value = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
        key_at: tuple = (0, 0, 0, slot)
        value_at: tuple = (0, 0, slot, 0)
        if layer is not None:
            key_at, value_at = (layer, *key_at), (layer, *value_at)
            key, value = key[None], value[None]
        update = jax.lax.dynamic_update_slice
        return Cache(update(self.keys, key, key_at), update(self.values, value, value_at))

    def first(self, slots: int | None, layer: Array | None) -> tuple[Array, Array]:
        """Keys [B, K, Hd, slots] and values [B, K, slots, Hd] of the first slots of a layer; None: all."""
        keys, values = self.keys, self.values
        if layer is not None:
            keys, values = (
                jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (keys, values)
            )
        return keys[..., :slots], values[:, :, :slots]


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, computed in float32."""

    def __init__(self, size: int, eps: float):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(size, jnp.float32), axes=(None,))

    def __call__(self, x: Array) -> Array:
        x32 = x.astype(jnp.float32)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        return (x32 * self.scale[...].astype(jnp.float32)).astype(x.dtype)


def rotary(x: Array, positions: Array, theta: float) -> Array:
    """Rotates [B, S, heads, Hd] by positions [B, S]; the two halves of Hd are the pairs."""
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


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

    def __call__(
        self,
        x: Array,
        positions: Array,
        mask: Array | TreeMask,
        adapter: bool,
        cache: Cache | None = None,
        before: Cache | None = None,
        layer: Array | None = None,
        slot: Array | int = 0,
    ) -> tuple[Array, Cache | None]:
        theta = self.config.rope_theta
        query = rotary(self.query(x, adapter), positions, theta)
        key = rotary(self.key(x, adapter), positions, theta)
        value = self.value(x, adapter)
        if cache is not None:
            cache = cache.write(key, value, layer, slot)
        if cache is None or isinstance(mask, TreeMask):
            attended = attend(query, key, value, mask)
        else:
            read = [] if before is None else [before.first(None, layer)]
            slots = mask.shape[-1] - sum(keys.shape[-1] for keys, _ in read)
            attended = attend_cached(query, [*read, cache.first(slots, layer)], mask)
        return self.output(attended, adapter), cache


class MLP(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        project = functools.partial(Projection, config=config, rngs=rngs)
        self.gate = project("gate", (config.width,), (config.mlp_width,), ("embed", "mlp"))
        self.up = project("up", (config.width,), (config.mlp_width,), ("embed", "mlp"))
        self.down = project("down", (config.mlp_width,), (config.width,), ("mlp", "embed"))

    def __call__(self, x: Array, adapter: bool) -> Array:
        return self.down(jax.nn.silu(self.gate(x, adapter)) * self.up(x, adapter), adapter)


class Block(nnx.Module):
    """One layer: pre-norm attention and pre-norm gated MLP, each with a residual."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, rngs)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = MLP(config, rngs)

    def __call__(self, x, positions, mask, adapter, *cached):
        attended, cache = self.attention(self.attention_norm(x), positions, mask, adapter, *cached)
        x = x + attended
        return x + self.mlp(self.mlp_norm(x), adapter), cache


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
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else Head(config, rngs)

    def __call__(
        self, tokens: Array, positions: Array, mask: Array | TreeMask, *, adapter: bool = True
    ) -> Array:
        """Hidden states [B, S, D] of tokens [B, S] int32 standing at positions [B, S] int32.

        mask: who sees whom, bool [B, S, S] (True where the row token sees the column token) or a
        TreeMask. adapter=False computes the base model, as if no LoRA had been trained: the reference
        policy.
        """
        config = self.config
        graphdef, layers = nnx.split(self.blocks)

        def step(x: Array, state: nnx.State) -> tuple[Array, None]:
            block = nnx.merge(graphdef, state)
            x, _ = block(x, positions, mask, adapter)
            # Weights come to the tokens, not the other way round.
            return mesh_module.constrain(x, ("batch", None, None)), None

        if config.remat == "full":
            step = jax.checkpoint(step, prevent_cse=False)
        elif config.remat == "dots":
            policy = jax.checkpoint_policies.save_only_these_names(KEPT)
            step = jax.checkpoint(step, prevent_cse=False, policy=policy)
        x, _ = jax.lax.scan(step, self._embed(tokens), layers)
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
        if layers is None:

            def step(carry, inputs):
                state, layer = inputs
                block = nnx.merge(graphdef, state)
                x, cache = carry
                return block(x, positions, mask, True, cache, before, layer, slot), None

            numbers = jnp.arange(self.config.layers)
            (x, cache), _ = jax.lax.scan(step, (x, cache), (stacked, numbers))
            return self.final_norm(x), cache
        keys, values = [], []
        for i, state in enumerate(layers):
            block = nnx.merge(graphdef, state)
            own, seen = (
                None if c is None else Cache(c.keys[i], c.values[i]) for c in (cache, before)
            )
            x, new = block(x, positions, mask, True, own, seen, None, slot)
            keys.append(new.keys)
            values.append(new.values)
        return self.final_norm(x), Cache(keys, values)

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
        return einsum(spec, hidden, kernel[...].astype(self.config.dtype), "float32")

    def head_kernel(self) -> Array:
        """The vocabulary projection [V, D] in the compute dtype, for `scoring.log_probabilities`."""
        if self.head is None:
            return self.embedder.embedding[...].astype(self.config.dtype)
        return self.head.kernel[...].astype(self.config.dtype).T

    def _embed(self, tokens: Array) -> Array:
        return self.embedder.embedding[...][tokens].astype(self.config.dtype)
