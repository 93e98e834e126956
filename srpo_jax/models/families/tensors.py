"""What each family calls its tensors: name -> the parameters it holds, see `table.Family`."""

from collections.abc import Mapping


def _named(prefix: str, names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    return {f"{prefix}{name}": tuple(held.split()) for name, held in names.items()}


def _with_biases(names: Mapping[str, str]) -> dict[str, str]:
    """A projection's weight holds the kernels, and its bias the biases."""
    made = {}
    for name, held in names.items():
        for theirs, ours in (("weight", "kernel"), ("bias", "bias")):
            made[f"{name}.{theirs}"] = " ".join(f"blocks.{part}.{ours}" for part in held.split())
    return made


_OUTSIDE = {
    "model.embed_tokens.weight": ("embedder.embedding",),
    "model.norm.weight": ("final_norm.scale",),
    "lm_head.weight": ("head.kernel",),
}
_LAYER = "model.layers.{}."
_ATTENTION = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.output",
}
_GATED = {"mlp.gate_proj": "mlp.gate", "mlp.up_proj": "mlp.up", "mlp.down_proj": "mlp.down"}
_QUERY_KEY_NORM = {
    "self_attn.q_norm.weight": "blocks.attention.query_norm.scale",
    "self_attn.k_norm.weight": "blocks.attention.key_norm.scale",
}
BEFORE = {
    "input_layernorm.weight": "blocks.attention_norm.scale",
    "post_attention_layernorm.weight": "blocks.mlp_norm.scale",
}
AFTER = {
    "post_attention_layernorm.weight": "blocks.attention_post_norm.scale",
    "post_feedforward_layernorm.weight": "blocks.mlp_post_norm.scale",
}
PARALLEL = {"input_layernorm.weight": "blocks.attention_norm.scale"}
AROUND = {
    "input_layernorm.weight": "blocks.attention_norm.scale",
    **AFTER,
    "pre_feedforward_layernorm.weight": "blocks.mlp_norm.scale",
}


def like_llama(
    norms: Mapping[str, str], mlp: Mapping[str, str] = _GATED
) -> dict[str, tuple[str, ...]]:
    parts = {**_with_biases({**_ATTENTION, **mlp}), **_QUERY_KEY_NORM, **norms}
    return {**_OUTSIDE, **_named(_LAYER, parts)}


# Routed experts, as they are published: each a tensor of its own.
MIXTRAL = {
    "block_sparse_moe.gate": "mlp.router",
    "block_sparse_moe.experts.{expert}.w1": "mlp.gate",
    "block_sparse_moe.experts.{expert}.w3": "mlp.up",
    "block_sparse_moe.experts.{expert}.w2": "mlp.down",
}
QWEN3_MOE = {
    "mlp.gate": "mlp.router",
    "mlp.experts.{expert}.gate_proj": "mlp.gate",
    "mlp.experts.{expert}.up_proj": "mlp.up",
    "mlp.experts.{expert}.down_proj": "mlp.down",
}
# As `transformers` 5 has them in memory, and may save them: all experts of a layer one tensor.
STACKED = _named(
    _LAYER,
    {
        "mlp.gate.weight": "blocks.mlp.router.kernel",
        "mlp.experts.gate_up_proj": "blocks.mlp.gate.kernel blocks.mlp.up.kernel",
        "mlp.experts.down_proj": "blocks.mlp.down.kernel",
    },
)


PHI3 = {
    **_OUTSIDE,
    **_named(
        _LAYER,
        {
            "self_attn.qkv_proj.weight": "blocks.attention.query.kernel blocks.attention.key.kernel "
            "blocks.attention.value.kernel",
            "self_attn.o_proj.weight": "blocks.attention.output.kernel",
            "mlp.gate_up_proj.weight": "blocks.mlp.gate.kernel blocks.mlp.up.kernel",
            "mlp.down_proj.weight": "blocks.mlp.down.kernel",
            **BEFORE,
        },
    ),
}
STARCODER2 = {
    **_OUTSIDE,
    "model.norm.bias": ("final_norm.bias",),
    **_named(
        _LAYER,
        {
            **_with_biases({**_ATTENTION, "mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"}),
            **BEFORE,
            "input_layernorm.bias": "blocks.attention_norm.bias",
            "post_attention_layernorm.bias": "blocks.mlp_norm.bias",
        },
    ),
}
NEOX_QKV = "attention.query_key_value"
GPT_NEOX = {
    "gpt_neox.embed_in.weight": ("embedder.embedding",),
    "gpt_neox.final_layer_norm.weight": ("final_norm.scale",),
    "gpt_neox.final_layer_norm.bias": ("final_norm.bias",),
    "embed_out.weight": ("head.kernel",),
    **_named(
        "gpt_neox.layers.{}.",
        {
            **_with_biases(
                {
                    NEOX_QKV: "attention.query attention.key attention.value",
                    "attention.dense": "attention.output",
                    "mlp.dense_h_to_4h": "mlp.up",
                    "mlp.dense_4h_to_h": "mlp.down",
                }
            ),
            "input_layernorm.weight": "blocks.attention_norm.scale",
            "input_layernorm.bias": "blocks.attention_norm.bias",
            "post_attention_layernorm.weight": "blocks.mlp_norm.scale",
            "post_attention_layernorm.bias": "blocks.mlp_norm.bias",
        },
    ),
}
