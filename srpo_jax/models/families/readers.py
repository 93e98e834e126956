"""How each family's config.json is read: its fields of DecoderConfig, by the name of the family."""

from collections.abc import Callable, Mapping
from typing import Any

from srpo_jax.models.architecture import LayerKind
from srpo_jax.models.families.keys import Keys
from srpo_jax.models.families.layer_kinds import read_kinds, read_rope

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")


def _common(keys: Keys, *, tied: bool = False) -> dict[str, Any]:
    """What all have. tied: where the config does not say."""
    for dropout in DROPOUTS:
        if keys.get(dropout, 0.0):
            raise keys.refuse(f"{dropout}={keys.get(dropout)} (0 is the only one)")
    if keys.get("quantization_config"):
        raise keys.refuse("quantised weights: give a checkpoint in float32 or bfloat16")
    heads, width = keys.need("num_attention_heads"), keys.need("hidden_size")
    activation = keys.get("hidden_activation") or keys.get("hidden_act", "silu")
    keys.get("hidden_act")
    if activation not in ACTIVATIONS:
        raise keys.refuse(f"the activation {activation!r}")
    return {
        "vocab_size": keys.need("vocab_size"),
        "width": width,
        "layers": keys.need("num_hidden_layers"),
        "heads": heads,
        "kv_heads": keys.get("num_key_value_heads", heads),
        "head_dim": keys.get("head_dim", width // heads),
        "mlp_width": keys.need("intermediate_size"),
        "max_length": keys.need("max_position_embeddings"),
        "tied": keys.get("tie_word_embeddings", tied),
        "activation": ACTIVATIONS[activation],
        "norm_eps": keys.get("rms_norm_eps", 1e-6),
    }


def _everywhere(keys: Keys, fields: Mapping[str, Any], kind: str) -> list[str]:
    return [kind] * fields["layers"]


def llama(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    attention = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    mlp = ("gate", "up", "down") if keys.get("mlp_bias") else ()
    types = _everywhere(keys, fields, "full_attention")
    return {**fields, "biases": (*attention, *mlp), **read_kinds(keys, fields, types)}


def mistral(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    kind = "sliding_attention" if keys.get("sliding_window") else "full_attention"
    return {**fields, **read_kinds(keys, fields, _everywhere(keys, fields, kind))}


def phi3(keys: Keys) -> dict[str, Any]:
    """Where long texts are read with other rotations than short ones, only short ones can be read."""
    scaling = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    fields = mistral(keys)
    if scaling.get("rope_type", scaling.get("type", "default")) != "default":
        original = scaling.get("original_max_position_embeddings")
        original = original or keys.need("original_max_position_embeddings")
        fields["max_length"] = min(fields["max_length"], original)
    return fields


def _qwen(keys: Keys, biases: tuple[str, ...], query_key_norm: str) -> dict[str, Any]:
    fields = _common(keys)
    first = (
        keys.get("max_window_layers", fields["layers"]) if keys.get("use_sliding_window") else None
    )
    keys.get("sliding_window")
    types = [
        "full_attention" if first is None or i < first else "sliding_attention"
        for i in range(fields["layers"])
    ]
    return {
        **fields,
        "biases": biases,
        "query_key_norm": query_key_norm,
        **read_kinds(keys, fields, types),
    }


def qwen2(keys: Keys) -> dict[str, Any]:
    return _qwen(keys, ("query", "key", "value"), "none")


def qwen3(keys: Keys) -> dict[str, Any]:
    biases = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    return _qwen(keys, biases, "head")


def _gemma(keys: Keys, sees_all: Callable[[int], bool]) -> tuple[dict[str, Any], list[str]]:
    """Fields, and each layer's type where the config does not say: sees_all of its number."""
    fields = _common(keys, tied=True)
    if keys.get("use_bidirectional_attention"):
        raise keys.refuse("attention in both directions")
    if keys.get("attention_bias"):
        raise keys.refuse("attention_bias")
    default = [
        "full_attention" if sees_all(i) else "sliding_attention" for i in range(fields["layers"])
    ]
    fields |= {
        "norm_offset": 1.0,
        "norms": "both",
        "embedding_scale": fields["width"] ** 0.5,
        "attention_scale": keys.get("query_pre_attn_scalar", fields["head_dim"]) ** -0.5,
        "attention_softcap": keys.get("attn_logit_softcapping"),
        "logit_softcap": keys.get("final_logit_softcapping"),
    }
    return fields, default


def gemma2(keys: Keys) -> dict[str, Any]:
    fields, types = _gemma(keys, lambda i: i % 2 == 1)
    return {**fields, **read_kinds(keys, fields, types)}


def gemma3(keys: Keys) -> dict[str, Any]:
    period = keys.get("sliding_window_pattern", keys.get("_sliding_window_pattern", 6))
    fields, types = _gemma(keys, lambda i: (i + 1) % period == 0)
    keys.get("rope_local_base_freq")
    kinds = read_kinds(keys, fields, types, theta=1e6, local_theta=10_000.0)
    return {**fields, "query_key_norm": "head", **kinds}


def smollm3(keys: Keys) -> dict[str, Any]:
    fields = _common(keys, tied=True)
    interval = keys.get("no_rope_layer_interval", 4)
    default = [int((i + 1) % interval != 0) for i in range(fields["layers"])]
    rotated = keys.get("no_rope_layers", default)
    local = bool(keys.get("use_sliding_window")) and bool(keys.get("sliding_window"))
    types = ["sliding_attention" if local and not r else "full_attention" for r in rotated]
    attention = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    mlp = ("gate", "up", "down") if keys.get("mlp_bias") else ()
    unrotated = [i for i, r in enumerate(rotated) if not r]
    kinds = read_kinds(keys, fields, types, theta=2e6, unrotated=unrotated)
    return {**fields, "biases": (*attention, *mlp), **kinds}


def olmo2(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    if keys.get("attention_bias"):
        raise keys.refuse("attention_bias")
    types = _everywhere(keys, fields, "full_attention")
    extra = {"norms": "after", "query_key_norm": "together"}
    return {**fields, **extra, **read_kinds(keys, fields, types)}


def gpt_neox(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    given = keys.get("rope_parameters") or {}
    fraction = given.get("partial_rotary_factor", keys.get("rotary_pct", 0.25))
    theta = float(given.get("rope_theta", keys.get("rotary_emb_base", 10_000.0)))
    rope = read_rope(keys, given or keys.get("rope_scaling") or {}, theta)
    biased = ("query", "key", "value", "output") if keys.get("attention_bias", True) else ()
    rotated = int(fields["head_dim"] * fraction)
    return {
        **fields,
        "kv_heads": fields["heads"],
        "norm": "layer",
        "norm_eps": keys.get("layer_norm_eps", 1e-5),
        "parallel": keys.get("use_parallel_residual", True),
        "gated": False,
        "biases": (*biased, "up", "down"),
        "layer_kinds": (LayerKind(rope=rope),),
        "rotary_dim": None if rotated == fields["head_dim"] else rotated,
    }
