"""The table of families, and what it makes of a config.json."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.families import readers, tensors
from srpo_jax.models.families.keys import Keys
from srpo_jax.runtime.errors import UserError


@dataclasses.dataclass(frozen=True)
class Family:
    """read: config.json -> fields of DecoderConfig. tensors: name -> the parameters it holds.

    {} in a name stands for the number of the layer, {expert} for that of one of its experts; a name whose
    parameters the model does not have is not used. Several parameters stand one after the other in the
    rows of their tensor, or, if its name is in `by_head`, in turn for each head.
    whole: names of tensors that have the shape of their parameter, which is otherwise flat if no matrix.
    stacked: of a model with experts, what some directories have in place of those tensors: all experts of
    a layer in one, [experts, rows, columns].
    """

    read: Callable[[Keys], dict[str, Any]]
    tensors: Mapping[str, tuple[str, ...]]
    by_head: frozenset[str] = frozenset()
    whole: frozenset[str] = frozenset()
    stacked: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


# By config.json's model_type.
FAMILIES: dict[str, Family] = {
    "llama": Family(readers.llama, tensors.like_llama(tensors.BEFORE)),
    "mistral": Family(readers.mistral, tensors.like_llama(tensors.BEFORE)),
    "mixtral": Family(
        readers.mixtral,
        tensors.like_llama(tensors.BEFORE, tensors.MIXTRAL),
        stacked=tensors.STACKED,
    ),
    "qwen2": Family(readers.qwen2, tensors.like_llama(tensors.BEFORE)),
    "qwen3": Family(readers.qwen3, tensors.like_llama(tensors.BEFORE)),
    "qwen3_moe": Family(
        readers.qwen3_moe,
        tensors.like_llama(tensors.BEFORE, tensors.QWEN3_MOE),
        stacked=tensors.STACKED,
    ),
    "gemma2": Family(readers.gemma2, tensors.like_llama(tensors.AROUND)),
    "gemma3_text": Family(readers.gemma3, tensors.like_llama(tensors.AROUND)),
    "smollm3": Family(readers.smollm3, tensors.like_llama(tensors.BEFORE)),
    "olmo2": Family(readers.olmo2, tensors.like_llama(tensors.AFTER)),
    "olmo3": Family(readers.olmo3, tensors.like_llama(tensors.AFTER)),
    "granite": Family(readers.granite, tensors.like_llama(tensors.BEFORE)),
    "cohere": Family(
        readers.cohere,
        tensors.like_llama(tensors.PARALLEL),
        whole=frozenset(f"model.layers.{{}}.self_attn.{part}_norm.weight" for part in "qk"),
    ),
    "cohere2": Family(readers.cohere2, tensors.like_llama(tensors.PARALLEL)),
    "starcoder2": Family(readers.starcoder2, tensors.STARCODER2),
    "phi3": Family(readers.phi3, tensors.PHI3),
    "gpt_neox": Family(
        readers.gpt_neox,
        tensors.GPT_NEOX,
        frozenset(f"gpt_neox.layers.{{}}.{tensors.NEOX_QKV}.{part}" for part in ("weight", "bias")),
    ),
}


def family(model_type: str, path: Path) -> Family:
    """The entry of FAMILIES; UserError naming the file for a model_type that has none."""
    if model_type not in FAMILIES:
        raise UserError(
            f"{path} holds a model of the kind {model_type!r}; known are {', '.join(FAMILIES)}, gemma3"
        )
    return FAMILIES[model_type]


# What the text part of Gemma 3 (4B and larger) is where its config does not say, beside UNSAID: published
# ones say little.
_GEMMA3_UNSAID = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "max_position_embeddings": 131_072,
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
