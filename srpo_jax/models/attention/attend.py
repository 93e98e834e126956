"""Attention itself: dense here, in blocks by the module that fits the machine."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from srpo_jax.models.attention import blockwise, pallas
from srpo_jax.models.attention.logits import Logits
from srpo_jax.models.attention.mask import TreeMask
from srpo_jax.models.product import einsum
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import rules

Array = jax.Array
LOGITS = (
    1 << 27
)  # float32 attention logits over a cache that are alive on a device: half a gigabyte


def attend(
    query: Float[Array, "B S H Hd"],
    key: Float[Array, "B C K Hd"],
    value: Float[Array, "B C K Hd"],
    mask: Bool[Array, "B S C"] | TreeMask,
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B S H Hd"]:
    """Grouped-query attention, [B, S, H, Hd]; softmax and sums in float32, products in the inputs' dtype.

    query [B, S, H, Hd]; key, value [B, C, K, Hd], K a divisor of H. mask: bool [B, S, C], or a TreeMask
    for C = S. scale of the logits: by default Hd**-0.5. softcap c: logits become c tanh(logits / c).
    A query that sees nothing (row padding) gets something finite.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if not isinstance(mask, TreeMask):
        return dense(query, key, value, mask, scale, softcap)
    module = pallas if mask.kind == "pallas" else blockwise
    program = functools.partial(module.attend, logits=Logits(scale, softcap))
    key, value = (_enough_heads(x, query.shape[2]) for x in (key, value))
    return _on_mesh(program)(query, key, value, mask)


def attend_cached(
    query: Float[Array, "B S H Hd"],
    parts: Sequence[tuple[Float[Array, "B K Hd _"], Float[Array, "B K _ Hd"]]],
    mask: Bool[Array, "B S C"],
    *,
    scale: float | None = None,
    softcap: float | None = None,
) -> Float[Array, "B S H Hd"]:
    """`attend` with a cache's keys [B, K, Hd, C] and values [B, K, C, Hd] under a bool mask [B, S, C].

    parts: of the cache; C counts the slots of all. Not differentiated: of the float32 logits [B, H, S, C]
    only LOGITS are alive on a device at a time, those of some of the queries.
    """
    batch, length, heads, _ = query.shape
    devices = mesh_module.current_parts("batch") * mesh_module.current_parts("heads")
    each = batch * heads * mask.shape[-1] // devices  # logits of a query of every row
    pieces = -(-length * each // LOGITS)
    if pieces <= 1:
        return _attend(query, parts, mask, scale, softcap)
    size = -(-length // min(pieces, length))
    padded = -(-length // size) * size
    padding = [(0, 0), (0, padded - length)]

    def split(x: Array) -> Array:
        """[B, S, …] -> [pieces, B, size, …]."""
        x = jnp.pad(x, padding + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:]).swapaxes(0, 1)

    one = lambda piece: _attend(piece[0], parts, piece[1], scale, softcap)
    out: Array = jax.lax.map(one, (split(query), split(mask)))
    return out.swapaxes(0, 1).reshape(batch, padded, *query.shape[2:])[:, :length]


def _attend(
    query: Array,
    parts: Sequence[tuple[Array, Array]],
    mask: Array,
    scale: float | None,
    softcap: float | None,
) -> Array:
    batch, length, heads, head_dim = query.shape
    kv_heads = parts[0][0].shape[1]
    grouped = query.reshape(batch, length, kv_heads, -1, head_dim).transpose(0, 2, 3, 1, 4)
    grouped = grouped.reshape(batch, kv_heads, -1, head_dim)  # a key head's queries: one product
    logits = [einsum("bkqd,bkdc->bkqc", grouped, keys, "float32") for keys, _ in parts]
    joined = jnp.concatenate(logits, -1) * (head_dim**-0.5 if scale is None else scale)
    if softcap is not None:
        joined = softcap * jnp.tanh(joined / softcap)
    seen = jnp.tile(mask, (1, heads // kv_heads, 1))[:, None]
    joined = jnp.where(seen, joined, np.finfo(np.float32).min)
    weights = jax.nn.softmax(joined, axis=-1).astype(parts[0][1].dtype)
    ends = np.cumsum([values.shape[2] for _, values in parts])[:-1]
    out = sum(
        einsum("bkqc,bkcd->bkqd", weight, values, "float32")
        for weight, (_, values) in zip(jnp.split(weights, ends, -1), parts, strict=True)
    )
    out = jnp.asarray(out, query.dtype).reshape(batch, kv_heads, -1, length, head_dim)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


def dense(
    query: Array, key: Array, value: Array, mask: Array, scale: float, softcap: float | None
) -> Array:
    """The definition that the others are tested against; see `attend`."""
    keys, values = key.transpose(0, 2, 3, 1), value.swapaxes(1, 2)
    return _attend(query, [(keys, values)], mask, scale, softcap)


def _enough_heads(x: Array, heads: int) -> Array:
    """Keys or values [B, C, K, Hd], each head so often that every device can have those of its queries."""
    wanted = shared_heads(heads, x.shape[2], mesh_module.current_parts("heads"))
    return x if wanted == x.shape[2] else jnp.repeat(x, wanted // x.shape[2], axis=2)


def shared_heads(heads: int, kv_heads: int, devices: int) -> int:
    """How many key heads there are once they are repeated, so that so many devices get equally many."""
    wanted = math.lcm(kv_heads, devices)
    return wanted if heads % wanted == 0 else heads


def _on_mesh(program: Callable[..., Array]) -> Callable[..., Array]:
    """Each device attends for its own rows and heads: nothing for the partitioner to decide."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return program
    heads = rules.spec(mesh, ("batch", None, "heads", None))
    rows = rules.spec(mesh, ("batch",))
    return jax.shard_map(
        program, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
