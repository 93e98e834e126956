"""How each family's config.json is read: its fields of DecoderConfig, by the name of the family."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from srpo_jax.models.architecture import Routing
from srpo_jax.models.families.keys import Keys
from srpo_jax.models.families.layer_kinds import FULL, SLIDING, read_kinds
from srpo_jax.runtime.errors import UserError

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")


def _common(
    keys: Keys, activation: str = "hidden_act", dropouts: Sequence[str] = DROPOUTS
) -> dict[str, Any]:
    """What all have. activation: the name of its entry. dropouts: entries that must be 0."""
    for dropout in dropouts:
        if keys.get(dropout, 0.0):
            raise keys.refuse(f"{dropout}={keys.get(dropout)} (0 is the only one)")
    if keys.get("quantization_config"):
        raise UserError(
            f"{keys.path}: its weights are quantised (quantization_config): give a checkpoint in "
            "float32 or bfloat16"
        )
    heads, width = keys.size("num_attention_heads"), keys.size("hidden_size")
    name = keys.get(activation, "silu")
    if name not in ACTIVATIONS:
        raise keys.refuse(f"the activation {name!r}")
    return {
        "vocab_size": keys.size("vocab_size"),
        "width": width,
        "layers": keys.size("num_hidden_layers"),
        "heads": heads,
        "kv_heads": keys.size("num_key_value_heads", heads),
        "head_dim": keys.size("head_dim", width // heads),
        "mlp_width": keys.size("intermediate_size"),
        "max_length": keys.size("max_position_embeddings"),
        "tied": keys.get("tie_word_embeddings", False),
        "activation": ACTIVATIONS[name],
        "norm_eps": keys.get("rms_norm_eps", 1e-6),
    }


def _biases(keys: Keys) -> tuple[str, ...]:
    attention = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    mlp = ("gate", "up", "down") if keys.get("mlp_bias") else ()
    return (*attention, *mlp)


def _full(fields: Mapping[str, Any]) -> list[str]:
    return [FULL] * fields["layers"]


def llama(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    keys.get("sliding_window")  # transformers does not read it either
    return {**fields, "biases": _biases(keys), **read_kinds(keys, fields, _full(fields))}


def mistral(keys: Keys) -> dict[str, Any]:
    """All layers have the window, where there is one."""
    fields = _common(keys)
    window = keys.get("sliding_window")
    types = [SLIDING if window else FULL] * fields["layers"]
    return {**fields, **read_kinds(keys, fields, types, window=window)}


def mixtral(keys: Keys) -> dict[str, Any]:
    """As Mistral, each MLP several experts; its router's noise in training is not here."""
    if keys.get("router_jitter_noise"):
        raise keys.refuse("router_jitter_noise (0 is the only one)")
    return {**mistral(keys), "routing": _routing(keys, normed=True)}


def _routing(keys: Keys, normed: bool) -> Routing:
    """The number of experts has two names, and `transformers` takes one for the other."""
    experts = keys.get("num_experts")
    if experts is None:
        experts = keys.need("num_local_experts")
    return Routing(experts, keys.need("num_experts_per_tok"), normed)


def phi3(keys: Keys) -> dict[str, Any]:
    return mistral(keys)


def _qwen(keys: Keys, biases: tuple[str, ...], query_key_norm: str) -> dict[str, Any]:
    fields = _common(keys)
    window = keys.get("sliding_window") if keys.get("use_sliding_window") else None
    keys.get("sliding_window")
    first = keys.get("max_window_layers") if window else fields["layers"]
    types = [FULL if i < first else SLIDING for i in range(fields["layers"])]
    return {
        **fields,
        "biases": biases,
        "query_key_norm": query_key_norm,
        **read_kinds(keys, fields, types, window=window, alike=False),
    }


def qwen2(keys: Keys) -> dict[str, Any]:
    return _qwen(keys, ("query", "key", "value"), "none")


def qwen3(keys: Keys) -> dict[str, Any]:
    return _qwen(keys, _biases(keys), "head")


def qwen3_moe(keys: Keys) -> dict[str, Any]:
    """As Qwen3, with a window in all layers or none, and experts of a width of their own."""
    fields = _common(keys)
    window = keys.get("sliding_window") if keys.get("use_sliding_window") else None
    keys.get("sliding_window")
    layers, step = range(fields["layers"]), keys.size("decoder_sparse_step")
    plain = keys.get("mlp_only_layers", ())
    if any((i + 1) % step or i in plain for i in layers):
        raise keys.refuse(
            "layers without experts beside those with (decoder_sparse_step, mlp_only_layers)"
        )
    types = [SLIDING if window else FULL for _ in layers]
    return {
        **fields,
        "mlp_width": keys.size("moe_intermediate_size"),
        "routing": _routing(keys, bool(keys.get("norm_topk_prob"))),
        "biases": _biases(keys),
        "query_key_norm": "head",
        **read_kinds(keys, fields, types, window=window),
    }


def _gemma(keys: Keys, sees_all: Callable[[int], bool]) -> tuple[dict[str, Any], list[str]]:
    """Fields, and each layer's type where the config does not say: sees_all of its number."""
    fields = _common(keys, "hidden_activation")
    keys.get("hidden_act")  # what Gemma had before; hidden_activation replaced it
    if keys.get("use_bidirectional_attention"):
        raise keys.refuse("attention in both directions")
    if keys.get("attention_bias"):
        raise keys.refuse("attention_bias")
    default = [FULL if sees_all(i) else SLIDING for i in range(fields["layers"])]
    fields |= {
        "norm_offset": 1.0,
        "norms": "both",
        "embedding_scale": fields["width"] ** 0.5,
        "attention_scale": keys.need("query_pre_attn_scalar") ** -0.5,
        "attention_softcap": keys.get("attn_logit_softcapping"),
        "logit_softcap": keys.get("final_logit_softcapping"),
    }
    return fields, default


def gemma2(keys: Keys) -> dict[str, Any]:
    fields, types = _gemma(keys, lambda i: i % 2 == 1)
    window = keys.get("sliding_window")
    return {**fields, **read_kinds(keys, fields, types, window=window, alike=False)}


def gemma3(keys: Keys) -> dict[str, Any]:
    period = keys.need("sliding_window_pattern")
    fields, types = _gemma(keys, lambda i: (i + 1) % period == 0)
    window, local = keys.get("sliding_window"), keys.need("rope_local_base_freq")
    kinds = read_kinds(keys, fields, types, window=window, alike=False, local_theta=local)
    return {**fields, "query_key_norm": "head", **kinds}


def smollm3(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    interval = keys.need("no_rope_layer_interval")
    default = [int((i + 1) % interval != 0) for i in range(fields["layers"])]
    rotated = keys.get("no_rope_layers", default)
    if len(rotated) < fields["layers"]:
        raise UserError(
            f"{keys.path}: no_rope_layers has {len(rotated)} entries for {fields['layers']} layers"
        )
    rotated = rotated[: fields["layers"]]
    window = keys.get("sliding_window") if keys.get("use_sliding_window") else None
    keys.get("sliding_window")
    types = [SLIDING if window and not r else FULL for r in rotated]
    unrotated = [i for i, r in enumerate(rotated) if not r]
    kinds = read_kinds(keys, fields, types, window=window, alike=False, unrotated=unrotated)
    return {**fields, "biases": _biases(keys), **kinds}


def olmo2(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    if keys.get("attention_bias"):
        raise keys.refuse("attention_bias")
    extra = {"norms": "after", "query_key_norm": "together"}
    return {**fields, **extra, **read_kinds(keys, fields, _full(fields))}


def olmo3(keys: Keys) -> dict[str, Any]:
    """As OLMo 2, with windows in three of four layers and rotations of their own in the others."""
    fields = _common(keys)
    if keys.get("attention_bias"):
        raise keys.refuse("attention_bias")
    types = [FULL if (i + 1) % 4 == 0 else SLIDING for i in range(fields["layers"])]
    window = keys.get("sliding_window")
    extra = {"norms": "after", "query_key_norm": "together"}
    # rope_theta is of layers that see all; transformers has another for the rest nowhere but in its code.
    kinds = read_kinds(keys, fields, types, window=window, alike=False, local_theta=5e5)
    return {**fields, **extra, **kinds}


def granite(keys: Keys) -> dict[str, Any]:
    return {
        **llama(keys),
        "embedding_scale": float(keys.get("embedding_multiplier", 1.0)),
        "residual_scale": float(keys.get("residual_multiplier", 1.0)),
        "attention_scale": float(keys.need("attention_multiplier")),
        "logit_scale": 1.0 / keys.get("logits_scaling", 1.0),
    }


def _cohere(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    return {
        **fields,
        "query_key_norm": "heads" if keys.get("use_qk_norm") else "none",
        "norm": "layer",
        "norm_bias": False,
        "norm_eps": keys.need("layer_norm_eps"),
        "parallel": True,
        "one_norm": True,
        "biases": _biases(keys),
        "rope_interleaved": True,
        "logit_scale": float(keys.need("logit_scale")),
    }


def cohere(keys: Keys) -> dict[str, Any]:
    fields = _cohere(keys)
    return {**fields, **read_kinds(keys, fields, _full(fields))}


def cohere2(keys: Keys) -> dict[str, Any]:
    """Layers that see all are not rotated."""
    fields = _cohere(keys)
    fields["head_dim"] = fields["width"] // fields["heads"]
    period = keys.need("sliding_window_pattern")
    default = [FULL if (i + 1) % period == 0 else SLIDING for i in range(fields["layers"])]
    unrotated = [i for i, kind in enumerate(keys.get("layer_types", default)) if kind == FULL]
    window = keys.get("sliding_window")
    kinds = read_kinds(keys, fields, default, window=window, alike=False, unrotated=unrotated)
    return {**fields, **kinds}


def starcoder2(keys: Keys) -> dict[str, Any]:
    """Its published configs name the dropout that it was trained with; here there is none."""
    fields = _common(keys, dropouts=())
    for dropout in ("attention_dropout", "residual_dropout", "embedding_dropout"):
        keys.get(dropout)
    window = keys.get("sliding_window")
    types = [SLIDING if window else FULL] * fields["layers"]
    biased = ("query", "key", "value", "output", "up", "down") if keys.get("use_bias") else ()
    return {
        **fields,
        "norm": "layer",
        "norm_eps": keys.need("norm_epsilon"),
        "gated": False,
        "biases": biased,
        **read_kinds(keys, fields, types, window=window),
    }


def gpt_neox(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    fields["head_dim"] = fields["width"] // fields["heads"]
    fields["kv_heads"] = fields["heads"]
    biased = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    types = _full(fields)
    return {
        **fields,
        "norm": "layer",
        "norm_eps": keys.get("layer_norm_eps"),
        "parallel": keys.get("use_parallel_residual"),
        "gated": False,
        "biases": (*biased, "up", "down"),
        **read_kinds(keys, fields, types, theta="rotary_emb_base", fraction="rotary_pct"),
    }
