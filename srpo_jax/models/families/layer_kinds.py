"""What config.json says of attention's reach and of rotary positions, layer by layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.families.keys import Keys
from srpo_jax.runtime.errors import UserError


def read_rope(keys: Keys, given: Mapping[str, Any], theta: float) -> Rope:
    """From a dict of the kind of rope_scaling or rope_parameters; theta where it has none."""
    kind = given.get("rope_type", given.get("type", "default"))
    theta = float(given.get("rope_theta") or theta)
    limit = keys.need("max_position_embeddings")
    original = keys.get("original_max_position_embeddings") or given.get(
        "original_max_position_embeddings", limit
    )
    amplitude = given.get("attention_factor")
    if kind == "default":
        return Rope(theta)
    if kind == "linear":
        return Rope(theta, "linear", float(given["factor"]))
    if kind == "llama3":
        return Rope(
            theta,
            "llama3",
            float(given["factor"]),
            float(given["low_freq_factor"]),
            float(given["high_freq_factor"]),
            int(given["original_max_position_embeddings"]),
        )
    if kind == "yarn" and not given.get("mscale") and given.get("truncate", True):
        factor = float(given["factor"])
        slow, fast = given.get("beta_slow") or 1.0, given.get("beta_fast") or 32.0
        amplitude = amplitude or (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
        return Rope(theta, "yarn", factor, slow, fast, original, amplitude=amplitude)
    if kind in ("longrope", "su"):  # its name in the first Phi-3
        factor = given.get("factor") or limit / original
        scaled = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        factors = tuple(map(float, given["short_factor"]))
        return Rope(theta, "longrope", factors=factors, amplitude=amplitude or scaled)
    raise keys.refuse(f"rotary positions of the kind {kind!r}")


def read_kinds(
    keys: Keys,
    fields: Mapping[str, Any],
    types: Sequence[str],
    *,
    theta: float = 10_000.0,
    local_theta: float | None = None,
    unrotated: Sequence[int] = (),
) -> dict[str, Any]:
    """layer_kinds and rotary_dim. types: of attention, one a layer, where layer_types does not say.

    theta, local_theta: where the config does not say; layers with a window may have a base of their own.
    """
    types = keys.get("layer_types", types)
    for kind in types:
        if kind not in ("full_attention", "sliding_attention"):
            raise keys.refuse(f"layers of the type {kind!r}")
    if len(types) != fields["layers"]:
        raise UserError(
            f"{keys.path}: layer_types has {len(types)} entries for {fields['layers']} layers"
        )
    window = keys.get("sliding_window")
    if "sliding_attention" in types and not window:
        raise UserError(f"{keys.path} has layers with a sliding window and no 'sliding_window'")
    if window and window >= fields["max_length"]:
        window = None
    given = keys.get("rope_parameters") or {}
    old = {"rope_theta": keys.get("rope_theta", theta), **(keys.get("rope_scaling") or {})}
    fraction = given.get("partial_rotary_factor", keys.get("partial_rotary_factor", 1.0))
    ropes = {}
    for kind in set(types):
        own = given.get(kind, given if given else old)
        if kind == "sliding_attention" and not given and local_theta is not None:
            own = {"rope_theta": keys.get("rope_local_base_freq", local_theta)}
        ropes[kind] = read_rope(keys, own, theta)
    kinds = [
        LayerKind(
            window if kind == "sliding_attention" else None, None if i in unrotated else ropes[kind]
        )
        for i, kind in enumerate(types)
    ]
    rotated = int(fields["head_dim"] * fraction)
    reach = [int(r.factor * r.original_length) for r in ropes.values() if r.scaling == "yarn"]
    return {
        "max_length": max([fields["max_length"], *reach]),
        "layer_kinds": _shortest(kinds),
        "rotary_dim": None if rotated == fields["head_dim"] else rotated,
    }


def _shortest(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that gives these layers when it is repeated."""
    whole = tuple(kinds)
    for n in range(1, len(whole)):
        if all(kind == whole[i % n] for i, kind in enumerate(whole)):
            return whole[:n]
    return whole
