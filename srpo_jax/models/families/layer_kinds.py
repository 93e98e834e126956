"""What config.json says of attention's reach and of rotary positions, layer by layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from srpo_jax.models.architecture import LayerKind, Rope
from srpo_jax.models.families.keys import Keys
from srpo_jax.runtime.errors import UserError

FULL, SLIDING = "full_attention", "sliding_attention"
PARTLY = ("phi3", "gpt_neox")  # model_type of those that know of a part that is not rotated


def _read_rope(keys: Keys, given: Mapping[str, Any]) -> Rope:
    """From a dict of the kind of rope_scaling or rope_parameters, rope_theta in it."""
    kind = given.get("rope_type") or given.get("type") or "default"
    theta = float(given["rope_theta"])
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
        low, high = float(given["low_freq_factor"]), float(given["high_freq_factor"])
        return Rope(theta, "llama3", float(given["factor"]), low, high, int(original))
    if kind == "yarn" and "short_factor" not in given:
        factor = float(given.get("factor") or limit / original)
        slow, fast = given.get("beta_slow") or 1.0, given.get("beta_fast") or 32.0
        scale, everywhere = given.get("mscale"), given.get("mscale_all_dim")
        if amplitude is None and scale and everywhere:
            amplitude = _yarn_amplitude(factor, scale) / _yarn_amplitude(factor, everywhere)
        elif amplitude is None:
            amplitude = _yarn_amplitude(factor)
        whole = bool(given.get("truncate", True))
        return Rope(
            theta, "yarn", factor, slow, fast, original, amplitude=amplitude, whole_pairs=whole
        )
    if kind in ("longrope", "su", "yarn"):  # its names in the first Phi-3
        factor = given.get("factor") or limit / original
        scaled = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        amplitude = scaled if amplitude is None else amplitude
        factors = tuple(map(float, given["short_factor"]))
        return Rope(
            theta, "longrope", original_length=original, factors=factors, amplitude=amplitude
        )
    raise keys.refuse(f"rotary positions of the kind {kind!r}")


def _yarn_amplitude(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0


def _same_ropes(keys: Keys, theta: str, fraction: str) -> dict[str, dict[str, Any]]:
    """What all layers turn by. theta, fraction: names of the entries beside the dict that it may lack."""
    given = keys.get("rope_scaling") or keys.get("rope_parameters") or {}
    keys.get("rope_parameters")
    if not isinstance(given, dict):
        raise UserError(
            f"{keys.path}: its rope_scaling is {given!r}, and not an object with a 'rope_type'"
        )
    if any(isinstance(value, Mapping) for value in given.values()):
        raise keys.refuse("rotary positions that differ from layer to layer")
    beside = {
        "rope_theta": keys.get(theta, 10_000.0),
        "partial_rotary_factor": keys.get(fraction, 1.0),
    }
    return {kind: beside | given for kind in (FULL, SLIDING)}


def _own_ropes(keys: Keys, local_theta: float) -> dict[str, dict[str, Any]]:
    """Layers with a window turn by a base of their own; a scaling is for those without."""
    given = keys.get("rope_parameters") or {}
    full = {"rope_theta": keys.need("rope_theta")} | (given.get(FULL) or {})
    local = {"rope_theta": local_theta} | (given.get(SLIDING) or {})
    return {FULL: full | (keys.get("rope_scaling") or {}), SLIDING: local}


def _ropes(
    keys: Keys, local_theta: float | None, theta: str, fraction: str
) -> dict[str, dict[str, Any]]:
    if local_theta is None:
        return _same_ropes(keys, theta, fraction)
    return _own_ropes(keys, local_theta)


def read_kinds(
    keys: Keys,
    fields: Mapping[str, Any],
    types: Sequence[str],
    *,
    window: int | None = None,
    alike: bool = True,
    unrotated: Sequence[int] = (),
    local_theta: float | None = None,
    theta: str = "rope_theta",
    fraction: str = "partial_rotary_factor",
) -> dict[str, Any]:
    """max_length, layer_kinds and rotary_dim.

    types: of attention, one a layer, where layer_types does not say. alike: layer_types must say the same.
    window: of layers that have one. local_theta: rotations may differ between the types; what those with a
    window turn by where rope_parameters does not say. theta, fraction: the names of the entries for all
    layers.
    """
    types = _layer_types(keys, fields["layers"], types, alike)
    if SLIDING in types and not window:
        raise UserError(f"{keys.path} has layers with a sliding window and no 'sliding_window'")
    entries = _ropes(keys, local_theta, theta, fraction)
    ropes = {kind: _read_rope(keys, entries[kind]) for kind in set(types)}
    # What yarn reaches, and what longrope turns as it does short texts.
    reach = [int(r.factor * r.original_length) for r in ropes.values() if r.scaling == "yarn"]
    short = [r.original_length for r in ropes.values() if r.scaling == "longrope"]
    length = min([max([fields["max_length"], *reach]), *short])
    if window and window >= length:
        window = None
    kinds = [
        LayerKind(window if kind == SLIDING else None, None if i in unrotated else ropes[kind])
        for i, kind in enumerate(types)
    ]
    rotated = {
        int(fields["head_dim"] * entries[k].get("partial_rotary_factor", 1.0)) for k in ropes
    }
    if len(rotated) > 1:
        raise keys.refuse("rotated parts of a head that differ from layer to layer")
    (width,) = rotated
    if width != fields["head_dim"] and keys.get("model_type") not in PARTLY:
        raise UserError(
            f"{keys.path} says that a part of each head is rotated ({fraction}), and models of this kind "
            "are rotated whole, whatever it says: remove the entry, if the model was trained so"
        )
    return {
        "max_length": length,
        "layer_kinds": _shortest(kinds),
        "rotary_dim": None if width == fields["head_dim"] else width,
    }


def _layer_types(keys: Keys, layers: int, default: Sequence[str], alike: bool) -> Sequence[str]:
    types: Sequence[str] = keys.get("layer_types", default)
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise keys.refuse(f"layers of the type {kind!r}")
    if len(types) != layers:
        raise UserError(f"{keys.path}: layer_types has {len(types)} entries for {layers} layers")
    if alike and list(types) != list(default):
        raise UserError(
            f"{keys.path}: layer_types says another thing than the rest of the config, and models of this "
            "kind do not read it: remove the entry, or correct it"
        )
    return types


def _shortest(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest pattern that gives these layers when it is repeated."""
    whole = tuple(kinds)
    for n in range(1, len(whole)):
        if all(kind == whole[i % n] for i, kind in enumerate(whole)):
            return whole[:n]
    return whole
