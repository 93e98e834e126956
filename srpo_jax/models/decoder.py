"""One decoder-only transformer, described by its config.

Grouped-query attention under an explicit mask with rotary positions given as *input*, an MLP or routed
experts, norms before or after them; see DecoderConfig for what model families vary. Nothing here knows of
prefix trees, meshes or losses: whoever calls says which position each token has and which earlier tokens
it sees.

Shapes: B batch, S query tokens, C cache slots, L layers, D width, H query heads, K key/value heads,
Hd head size, F MLP width, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.attention import TreeMask
from srpo_jax.models.block import Block, Norm, View
from srpo_jax.models.cache import Cache, CacheView
from srpo_jax.models.experts import Load
from srpo_jax.models.product import KEPT, einsum
from srpo_jax.runtime import mesh as mesh_module

Array = jax.Array
LayerState = nnx.State[Any, Any]
Layers = list[LayerState]  # see `Decoder.unrolled_layers`
UNLIMITED = 1 << 30  # a window that every position fits into


class Kind(NamedTuple):
    """`LayerKind` as arrays: frequencies float32 [rotated / 2, rounded up], zeros without rotation;
    amplitude float32 []; window int32.

    For all layers with L in front. amplitude: None where all are 1. window: None where no layer has one.
    """

    frequencies: Array
    amplitude: Array | None
    window: Array | None


class Embedder(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (config.vocab_size, config.width), jnp.float32)
        self.embedding = nnx.Param(init * config.width**-0.5, axes=("vocab", "embed"))


class Head(nnx.Module):
    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (config.width, config.vocab_size), jnp.float32)
        self.kernel = nnx.Param(init * config.width**-0.5, axes=("embed", "vocab"))


class Score(nnx.Module):
    """The number that a reward model gives to a hidden state: kernel float32 [D, 1], without a bias."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        init = jax.random.normal(rngs.params(), (config.width, 1), jnp.float32)
        # As Stiennon et al. (arXiv:2009.01325) begin: rewards of order 1, whatever the width.
        self.kernel = nnx.Param(init * (config.width + 1) ** -0.5, axes=("embed", None))

    def __call__(self, hidden: Array) -> Array:
        """[..., D] -> float32 [...]."""
        # Elementwise: a product of matrices would round its inputs on a TPU.
        found: Array = (hidden.astype(jnp.float32) * self.kernel[...][:, 0]).sum(-1)
        return found


def _kept(remat: str) -> Any:
    """What of the forward pass stays for the backward pass: on the devices, or in their host's memory."""
    policies = jax.checkpoint_policies
    if remat == "dots":
        return policies.save_only_these_names(KEPT)
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[KEPT],
        offload_src="device",
        offload_dst="pinned_host",
    )


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
        self.head = None if config.tied or config.rewards else Head(config, rngs)
        self.score = Score(config, rngs) if config.rewards else None

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        mask: Array | TreeMask,
        *,
        adapter: bool = True,
        dropout: Array | None = None,
    ) -> Array:
        """Hidden states [B, S, D] of tokens [B, S] int32 at positions [B, S] int32.

        mask: who sees whom, bool [B, S, S] (True where the row token sees the column token) or a
        TreeMask. adapter=False computes the base model, as if no LoRA had been trained: the reference
        policy. dropout: the key for the adapters' dropout; None for none.
        """
        return self.with_load(tokens, positions, mask, None, adapter=adapter, dropout=dropout)[0]

    def with_load(
        self,
        tokens: Array,
        positions: Array,
        mask: Array | TreeMask,
        counted: Array | None,
        *,
        adapter: bool = True,
        dropout: Array | None = None,
    ) -> tuple[Array, Load | None]:
        """Hidden states as of a call, and the routed experts' loads [L, E], of counted tokens, bool [B, S].

        None for the loads of a model without experts, and where nothing is counted (None).
        """
        config = self.config
        graphdef, layers = nnx.split(self.blocks)
        common, each = self._kinds()
        keys = None
        if adapter and dropout is not None and config.lora_dropout > 0:
            keys = jax.random.split(dropout, config.layers)

        def step(x: Array, inputs: Any) -> tuple[Array, Load | None]:
            state, kind, key = inputs
            block = nnx.merge(graphdef, state)
            adapted = adapter if key is None else key
            view = _view(common or kind, positions, positions, mask)
            x, _, load = block(x, view, adapted, counted=counted)
            # Weights come to the tokens, not the other way round.
            return mesh_module.constrain(x, ("batch", None, None)), load

        if config.remat == "full":
            step = jax.checkpoint(step, prevent_cse=False)
        elif config.remat in ("dots", "offload"):
            step = jax.checkpoint(step, prevent_cse=False, policy=_kept(config.remat))
        x, loads = jax.lax.scan(step, self._embed(tokens), (layers, each, keys))
        return self.final_norm(x), loads

    def extend(
        self,
        tokens: Array,
        positions: Array,
        mask: Array | TreeMask,
        cache: Cache,
        slot: Array | int,
        *,
        before: Cache | None = None,
        layers: Layers | None = None,
    ) -> tuple[Array, Cache]:
        """Hidden states [B, S, D] of S more tokens, and the cache with them in slots slot … slot+S-1.

        tokens, positions: int32 [B, S]. mask: bool [B, S, C'], which of the first C' slots a token sees, of
        `before` and then of the cache (the tokens' own are among them); or a TreeMask, under which the
        tokens see one another alone.
        before: slots that are seen and stay as they are. In a decoding loop, only what changes should go
        around.
        layers: from `unrolled_layers`, with a cache made for them; else the layers are scanned.
        """
        x = self._embed(tokens)
        graphdef, stacked = nnx.split(self.blocks)
        common, each = self._kinds()
        cache = cache.with_positions(positions, slot)
        key_positions = self._key_positions(mask, before, cache)

        def apply(
            state: LayerState, kind: Kind | None, x: Array, cached: CacheView
        ) -> tuple[Array, Cache]:
            block = nnx.merge(graphdef, state)
            view = _view(common or kind, positions, key_positions, mask)
            x, own, _ = block(x, view, True, cached)
            assert own is not None
            return x, own

        if layers is None:

            def step(carry: tuple[Array, Cache], inputs: Any) -> tuple[tuple[Array, Cache], None]:
                (x, cache), (state, layer, kind) = carry, inputs
                return apply(state, kind, x, CacheView(cache, before, layer, slot)), None

            numbers = jnp.arange(self.config.layers)
            (x, cache), _ = jax.lax.scan(step, (x, cache), (stacked, numbers, each))
            return self.final_norm(x), cache
        updated = []
        for i, state in enumerate(layers):
            kind = jax.tree.map(lambda a, i=i: a[i], each)
            seen = None if before is None else before.of(i)
            x, own = apply(state, kind, x, CacheView(cache.of(i), seen, None, slot))
            updated.append(own)
        keys, values = [own.keys for own in updated], [own.values for own in updated]
        return self.final_norm(x), dataclasses.replace(cache, keys=keys, values=values)

    def unrolled_layers(self) -> Layers:
        """The layers' parameters apart, for `extend`: to be made once, outside a decoding loop.

        On CPUs a matrix that is a slice of a stack multiplies 2 (float32) to 8 (bfloat16) times more
        slowly than one that stands alone, so each is copied out; the barrier keeps XLA from undoing it.
        """
        _, stacked = nnx.split(self.blocks)
        apart = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(self.config.layers)]
        layers: Layers = jax.lax.optimization_barrier(apart)
        return layers

    def logits(self, hidden: Array) -> Array:
        """[..., D] -> float32 [..., V]."""
        batch = "abc"[: hidden.ndim - 1]
        if self.head is None:
            # The tied table is multiplied as it lies: transposing it costs more than the product.
            spec, kernel = f"{batch}d,vd->{batch}v", self.embedder.embedding
        else:
            spec, kernel = f"{batch}d,dv->{batch}v", self.head.kernel
        logits = einsum(spec, hidden, kernel[...].astype(self.config.dtype), "float32")
        logits = logits if self.config.logit_scale == 1.0 else logits * self.config.logit_scale
        cap = self.config.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)

    def head_kernel(self) -> Array:
        """The vocabulary projection [V, D] in the compute dtype, for `vocabulary.log_probabilities`."""
        if self.head is None:
            return self.embedder.embedding[...].astype(self.config.dtype)
        return self.head.kernel[...].astype(self.config.dtype).T

    def _embed(self, tokens: Array) -> Array:
        config = self.config
        x = self.embedder.embedding[...][tokens].astype(config.dtype)
        if config.embedding_scale == 1.0:
            return x
        return x * jnp.asarray(config.embedding_scale, config.dtype)

    def _key_positions(
        self, mask: Array | TreeMask, before: Cache | None, cache: Cache
    ) -> Array | None:
        """int32 [B, C'] of the slots that a bool mask is about, where a window must know them."""
        if isinstance(mask, TreeMask) or not self.config.windowed:
            return None
        known = [part.positions for part in (before, cache) if part is not None]
        positions = jnp.concatenate([x for x in known if x is not None], axis=1)
        return positions[:, : mask.shape[-1]]

    def _kinds(self) -> tuple[Kind | None, Kind | None]:
        """What all layers have in common, or else [L, …], each layer's own."""
        config = self.config
        kinds = [config.kind(layer) for layer in range(config.layers)]
        turned = [
            np.zeros((config.rotated + 1) // 2, np.float32)
            if k.rope is None
            else k.rope.frequencies(config.rotated)
            for k in kinds
        ]
        amplitudes = np.array([k.rope.amplitude if k.rope else 1.0 for k in kinds], np.float32)
        windows = np.array([k.window or UNLIMITED for k in kinds], np.int32)
        alike = len(set(kinds)) == 1
        arrays: list[Any] = [
            np.stack(turned),
            amplitudes if (amplitudes != 1.0).any() else None,
            windows if config.windowed else None,
        ]
        arrays = [None if a is None else jnp.asarray(a[0] if alike else a) for a in arrays]
        return (Kind(*arrays), None) if alike else (None, Kind(*arrays))


def _view(
    kind: Kind | None, positions: Array, key_positions: Array | None, mask: Array | TreeMask
) -> View:
    """positions: of the tokens; key_positions: of the keys that a bool mask is about."""
    assert kind is not None
    if kind.window is not None:
        if isinstance(mask, TreeMask):
            mask = mask.within(kind.window)
        else:
            assert key_positions is not None
            mask = mask & (positions[..., :, None] - key_positions[..., None, :] < kind.window)
    return View(positions, kind.frequencies, kind.amplitude, mask)
