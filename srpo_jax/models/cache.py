"""Keys and values of the tokens that have been prefilled or decoded so far."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array


@flax.struct.dataclass
class Cache:
    """Keys, already rotated, and values, in the compute dtype.

    keys [B, K, Hd, C] and values [B, K, C, Hd], as the products of a decoding step want them: one array
    with L in front for scanned layers, or a list of L arrays for unrolled ones. Which slots are valid is
    the caller's knowledge, and reaches the model as the attention mask.
    positions: int32 [B, C], of the keys, where a layer's window must know them, else None.
    """

    keys: Any
    values: Any
    positions: Array | None = None

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

        positions = None
        if config.windowed:
            positions = mesh_module.constrain(jnp.zeros((batch, slots), jnp.int32), ("batch", None))
        return cls(
            make(batch, kv_heads, size, slots), make(batch, kv_heads, slots, size), positions
        )

    def with_positions(self, positions: Array, slot: Array | int) -> "Cache":
        """With those of tokens [B, S] in slots from `slot` on."""
        if self.positions is None:
            return self
        update = jax.lax.dynamic_update_slice_in_dim
        return dataclasses.replace(self, positions=update(self.positions, positions, slot, axis=1))

    def write(self, key: Array, value: Array, layer: Array | None, slot: Array | int) -> "Cache":
        """With [B, S, K, Hd] in slots from `slot` on, of a layer of the stack or (None) of one alone.

        Only the new slots are written, in place; a layer's cache that goes through the scan's outputs
        would be moved whole at each decoded token.
        """
        key, value = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
        key_at: tuple[Array | int, ...] = (0, 0, 0, slot)
        value_at: tuple[Array | int, ...] = (0, 0, slot, 0)
        if layer is not None:
            key_at, value_at = (layer, *key_at), (layer, *value_at)
            key, value = key[None], value[None]
        update = jax.lax.dynamic_update_slice
        keys, values = update(self.keys, key, key_at), update(self.values, value, value_at)
        return dataclasses.replace(self, keys=keys, values=values)

    def first(self, slots: int | None, layer: Array | None) -> tuple[Array, Array]:
        """Keys [B, K, Hd, slots] and values [B, K, slots, Hd] of the first slots of a layer; None: all."""
        keys, values = self.keys, self.values
        if layer is not None:
            keys, values = (
                jax.lax.dynamic_index_in_dim(x, layer, keepdims=False) for x in (keys, values)
            )
        return keys[..., :slots], values[:, :, :slots]

    def of(self, layer: int) -> "Cache":
        """One layer of an unrolled cache."""
        return Cache(self.keys[layer], self.values[layer])


@dataclasses.dataclass(frozen=True)
class CacheView:
    """The cache as one layer uses it while S tokens go through.

    own: takes the tokens' keys and values, in slots from `slot` on. before: seen in front of it and left
    as it is, None for nothing. layer: int32, which one of the stack both are asked for; None where they
    are of that layer alone.
    """

    own: Cache
    before: Cache | None
    layer: Array | None
    slot: Array | int

    def write(self, key: Array, value: Array) -> "CacheView":
        """With [B, S, K, Hd] in its own cache."""
        own = self.own.write(key, value, self.layer, self.slot)
        return dataclasses.replace(self, own=own)

    def parts(self, slots: int) -> list[tuple[Array, Array]]:
        """Keys and values for `attend_cached`: the first slots of both caches together, in this order."""
        before = [] if self.before is None else [self.before.first(None, self.layer)]
        rest = slots - sum(keys.shape[-1] for keys, _ in before)
        return [*before, self.own.first(rest, self.layer)]
