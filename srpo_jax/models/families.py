"""What Hugging Face calls the parts of a decoder: config.json -> DecoderConfig, tensors -> parameters.

Each family is one entry of FAMILIES: a function that reads its config, and the names of its tensors. What
a config asks for and no function reads is refused by name (see `Keys`).
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_jax.models.architecture import DecoderConfig, LayerKind, Rope
from srpo_jax.runtime.errors import UserError

# Entries of config.json that say nothing about what the model computes.
SILENT = frozenset(
    """
    model_type architectures torch_dtype dtype transformers_version use_cache initializer_range
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id name_or_path
    auto_map cache_implementation pretraining_tp return_dict output_attentions output_hidden_states
    id2label label2id problem_type num_labels is_decoder is_llama_config transformers.js_config
    classifier_dropout chunk_size_feed_forward original_max_position_embeddings max_window_layers
    no_rope_layer_interval sliding_window_pattern unsloth_fixed unsloth_version model_max_length
    tokenizer_class rope_interleaved task_specific_params
    """.split()  # noqa: SIM905 (a list of names reads worse)
)
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
DROPOUTS = ("attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop")


class Keys:
    """config.json, and which of its entries have been read."""

    def __init__(self, path: Path, content: Mapping[str, Any]):
        self.path = path
        self._content = content
        self._read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """The entry; default where it is missing or null."""
        self._read.add(key)
        value = self._content.get(key)
        return default if value is None else value

    def need(self, key: str) -> Any:
        if (value := self.get(key)) is None:
            raise UserError(f"{self.path} lacks {key!r}: it is not the whole config of a model")
        return value

    def refuse(self, what: str) -> UserError:
        return UserError(f"{self.path} asks for {what}, which this decoder does not have")

    def check_all_read(self) -> None:
        """UserError for an entry that nobody has read, unless it is silent or asks for nothing."""
        for key, value in self._content.items():
            if key in self._read | SILENT or key.startswith("_") or not value:
                continue
            raise UserError(
                f"{self.path} asks for {key}={value!r}, which this decoder does not know: if it changes "
                "nothing in what the model computes, remove the entry"
            )


@dataclasses.dataclass(frozen=True)
class Family:
    """read: config.json -> fields of DecoderConfig. tensors: name -> the parameters it holds.

    {} in a name stands for the number of the layer; a name whose parameters the model does not have is
    not used. Several parameters stand one after the other in the rows of their tensor, or, if its name is
    in `by_head`, in turn for each head.
    """

    read: Callable[[Keys], dict[str, Any]]
    tensors: Mapping[str, tuple[str, ...]]
    by_head: frozenset[str] = frozenset()


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


def _rope(keys: Keys, given: Mapping[str, Any], theta: float) -> Rope:
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


def _kinds(
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
        ropes[kind] = _rope(keys, own, theta)
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


def _everywhere(keys: Keys, fields: Mapping[str, Any], kind: str) -> list[str]:
    return [kind] * fields["layers"]


def _llama(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    attention = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    mlp = ("gate", "up", "down") if keys.get("mlp_bias") else ()
    types = _everywhere(keys, fields, "full_attention")
    return {**fields, "biases": (*attention, *mlp), **_kinds(keys, fields, types)}


def _mistral(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    kind = "sliding_attention" if keys.get("sliding_window") else "full_attention"
    return {**fields, **_kinds(keys, fields, _everywhere(keys, fields, kind))}


def _phi3(keys: Keys) -> dict[str, Any]:
    """Where long texts are read with other rotations than short ones, only short ones can be read."""
    scaling = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    fields = _mistral(keys)
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
        **_kinds(keys, fields, types),
    }


def _qwen2(keys: Keys) -> dict[str, Any]:
    return _qwen(keys, ("query", "key", "value"), "none")


def _qwen3(keys: Keys) -> dict[str, Any]:
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


def _gemma2(keys: Keys) -> dict[str, Any]:
    fields, types = _gemma(keys, lambda i: i % 2 == 1)
    return {**fields, **_kinds(keys, fields, types)}


def _gemma3(keys: Keys) -> dict[str, Any]:
    period = keys.get("sliding_window_pattern", keys.get("_sliding_window_pattern", 6))
    fields, types = _gemma(keys, lambda i: (i + 1) % period == 0)
    keys.get("rope_local_base_freq")
    kinds = _kinds(keys, fields, types, theta=1e6, local_theta=10_000.0)
    return {**fields, "query_key_norm": "head", **kinds}


def _smollm3(keys: Keys) -> dict[str, Any]:
    fields = _common(keys, tied=True)
    interval = keys.get("no_rope_layer_interval", 4)
    default = [int((i + 1) % interval != 0) for i in range(fields["layers"])]
    rotated = keys.get("no_rope_layers", default)
    local = bool(keys.get("use_sliding_window")) and bool(keys.get("sliding_window"))
    types = ["sliding_attention" if local and not r else "full_attention" for r in rotated]
    attention = ("query", "key", "value", "output") if keys.get("attention_bias") else ()
    mlp = ("gate", "up", "down") if keys.get("mlp_bias") else ()
    unrotated = [i for i, r in enumerate(rotated) if not r]
    kinds = _kinds(keys, fields, types, theta=2e6, unrotated=unrotated)
    return {**fields, "biases": (*attention, *mlp), **kinds}


def _olmo2(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    if keys.get("attention_bias"):
        raise keys.refuse("attention_bias")
    types = _everywhere(keys, fields, "full_attention")
    extra = {"norms": "after", "query_key_norm": "together"}
    return {**fields, **extra, **_kinds(keys, fields, types)}


def _gpt_neox(keys: Keys) -> dict[str, Any]:
    fields = _common(keys)
    given = keys.get("rope_parameters") or {}
    fraction = given.get("partial_rotary_factor", keys.get("rotary_pct", 0.25))
    theta = float(given.get("rope_theta", keys.get("rotary_emb_base", 10_000.0)))
    rope = _rope(keys, given or keys.get("rope_scaling") or {}, theta)
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
_BEFORE = {
    "input_layernorm.weight": "blocks.attention_norm.scale",
    "post_attention_layernorm.weight": "blocks.mlp_norm.scale",
}
_AFTER = {
    "post_attention_layernorm.weight": "blocks.attention_post_norm.scale",
    "post_feedforward_layernorm.weight": "blocks.mlp_post_norm.scale",
}
_AROUND = {
    "input_layernorm.weight": "blocks.attention_norm.scale",
    **_AFTER,
    "pre_feedforward_layernorm.weight": "blocks.mlp_norm.scale",
}


def _like_llama(norms: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    parts = {**_with_biases({**_ATTENTION, **_GATED}), **_QUERY_KEY_NORM, **norms}
    return {**_OUTSIDE, **_named(_LAYER, parts)}


_PHI3 = {
    **_OUTSIDE,
    **_named(
        _LAYER,
        {
            "self_attn.qkv_proj.weight": "blocks.attention.query.kernel blocks.attention.key.kernel "
            "blocks.attention.value.kernel",
            "self_attn.o_proj.weight": "blocks.attention.output.kernel",
            "mlp.gate_up_proj.weight": "blocks.mlp.gate.kernel blocks.mlp.up.kernel",
            "mlp.down_proj.weight": "blocks.mlp.down.kernel",
            **_BEFORE,
        },
    ),
}
_NEOX_QKV = "attention.query_key_value"
_GPT_NEOX = {
    "gpt_neox.embed_in.weight": ("embedder.embedding",),
    "gpt_neox.final_layer_norm.weight": ("final_norm.scale",),
    "gpt_neox.final_layer_norm.bias": ("final_norm.bias",),
    "embed_out.weight": ("head.kernel",),
    **_named(
        "gpt_neox.layers.{}.",
        {
            **_with_biases(
                {
                    _NEOX_QKV: "attention.query attention.key attention.value",
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

# By config.json's model_type.
FAMILIES: dict[str, Family] = {
    "llama": Family(_llama, _like_llama(_BEFORE)),
    "mistral": Family(_mistral, _like_llama(_BEFORE)),
    "qwen2": Family(_qwen2, _like_llama(_BEFORE)),
    "qwen3": Family(_qwen3, _like_llama(_BEFORE)),
    "gemma2": Family(_gemma2, _like_llama(_AROUND)),
    "gemma3_text": Family(_gemma3, _like_llama(_AROUND)),
    "smollm3": Family(_smollm3, _like_llama(_BEFORE)),
    "olmo2": Family(_olmo2, _like_llama(_AFTER)),
    "phi3": Family(_phi3, _PHI3),
    "gpt_neox": Family(
        _gpt_neox,
        _GPT_NEOX,
        frozenset(f"gpt_neox.layers.{{}}.{_NEOX_QKV}.{part}" for part in ("weight", "bias")),
    ),
}


def family(model_type: str, path: Path) -> Family:
    """The entry of FAMILIES; UserError naming the file for a model_type that has none."""
    if model_type not in FAMILIES:
        raise UserError(
            f"{path} holds a model of the kind {model_type!r}; known are {', '.join(FAMILIES)}, gemma3"
        )
    return FAMILIES[model_type]


# What the text part of Gemma 3 (4B and larger) is where its config does not say: published ones say little.
_GEMMA3_UNSAID = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "query_pre_attn_scalar": 256,
    "hidden_activation": "gelu_pytorch_tanh",
}


def text_part(content: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's content; of a model that sees pictures too, what it says of the language model."""
    if content.get("model_type") != "gemma3":
        return dict(content)
    outer = {k: v for k, v in content.items() if k.endswith(("dtype", "_token_id"))}
    inner = {k: v for k, v in (content.get("text_config") or {}).items() if v is not None}
    kind = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
    return _GEMMA3_UNSAID | outer | inner | kind


def architecture(path: Path, content: Mapping[str, Any]) -> DecoderConfig:
    """config.json's content as a DecoderConfig.

    Raises UserError for an unknown model_type, a missing entry, and whatever the decoder does not have.
    """
    keys = Keys(path, content)
    try:
        fields = family(keys.need("model_type"), path).read(keys)
        keys.check_all_read()
        return DecoderConfig(**fields)
    except KeyError as error:
        raise UserError(f"{path}: what it says of rotary positions lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}") from error
