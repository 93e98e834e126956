"""Random checkpoints of every family, as `transformers` writes them, with a small tokenizer."""

import json
from pathlib import Path
from typing import Any

from srpo_jax.data.byte_level import byte_level_bpe

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 256,
    # Logits of order one, not the hundredths of the default: errors must be able to show.
    "initializer_range": 0.25,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
# name -> (transformers' config class, what differs from SMALL)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama 3.1": ("LlamaConfig", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True}),
    "llama, biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "mistral": ("MistralConfig", {"sliding_window": 9, "head_dim": 16}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2Config", {}),
    "qwen2, windows": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "Qwen3MoeConfig",
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20},
    ),
    "gemma2": (
        "Gemma2Config",
        {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 20},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            "head_dim": 16,
            "sliding_window": 8,
            "num_hidden_layers": 7,
            "query_pre_attn_scalar": 20,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            },
        },
    ),
    "smollm3": ("SmolLM3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "olmo3": (
        "Olmo3Config",
        {
            "sliding_window": 9,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 900.0,
                    "factor": 8.0,
                    "original_max_position_embeddings": 32,
                },
            },
        },
    ),
    "granite": (
        "GraniteConfig",
        {
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.2,
            "logits_scaling": 2.0,
            "tie_word_embeddings": True,
        },
    ),
    "cohere": ("CohereConfig", {"logit_scale": 0.25, "attention_bias": True}),
    "cohere, normed": ("CohereConfig", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("Cohere2Config", {"logit_scale": 0.25, "sliding_window": 9}),
    "starcoder2": ("Starcoder2Config", {"sliding_window": 9}),
    "phi3": ("Phi3Config", {"sliding_window": 12}),
    "phi3, longrope": (
        "Phi3Config",
        {
            "original_max_position_embeddings": 192,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 500.0,
                "partial_rotary_factor": 0.5,
                "short_factor": [1.1, 1.7, 4.0],
                "long_factor": [2.0, 8.0, 32.0],
            },
        },
    ),
    "qwen3, yarn": (
        "Qwen3Config",
        {
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 500.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
                "truncate": False,
                "mscale": 0.7,
                "mscale_all_dim": 0.4,
            },
        },
    ),
    "gpt-neox": ("GPTNeoXConfig", {"hidden_size": 64}),
    # Of 20 entries of a head 5 are rotated, in 3 pairs.
    "gpt-neox, odd": ("GPTNeoXConfig", {"hidden_size": 80}),
    "gpt-neox, sequential": (
        "GPTNeoXConfig",
        {"hidden_size": 64, "use_parallel_residual": False, "attention_bias": False},
    ),
}


def save(
    name: str,
    directory: Path,
    dtype: str = "float32",
    kind: str = "AutoModelForCausalLM",
    **more: Any,
) -> Any:
    """A random model of the case, and its directory as transformers writes it. more: in its config."""
    import torch
    import transformers

    family, changes = CASES[name]
    config = getattr(transformers, family)(**SMALL | changes | more)
    torch.manual_seed(0)
    model = getattr(transformers, kind).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.ndim == 1
            ):  # norms and biases start as ones and zeros, which hides mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model = model.to(getattr(torch, dtype))
    model.save_pretrained(directory)
    return model


def save_reward(name: str, directory: Path, **more: Any) -> Any:
    """A random reward model of the case, with a tokenizer."""
    save_tokenizer(directory)
    return save(name, directory, kind="AutoModelForSequenceClassification", num_labels=1, **more)


def save_with_vision(directory: Path) -> Any:
    """A random Gemma 3 that sees pictures too: the case "gemma3" in a model with a vision part."""
    import torch
    import transformers

    _, changes = CASES["gemma3"]
    seen = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    seen |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**SMALL | changes),
        vision_config=transformers.SiglipVisionConfig(**seen),
        mm_tokens_per_image=4,
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(directory)
    return model


CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")


def save_tokenizer(directory: Path, chat: str | None = CHAT, **changes: Any) -> None:
    """tokenizer.json of the 256 bytes and SPECIAL, whose ids 0, 1, 2 are those of SMALL."""
    letters = sorted(_byte_letters().values())
    definition = byte_level_bpe([*SPECIAL, *letters], [], SPECIAL, "gpt-2")
    (directory / "tokenizer.json").write_text(definition)
    config = {"eos_token": "</s>", "bos_token": "<s>", "chat_template": chat}
    config |= {"tokenizer_class": "PreTrainedTokenizerFast"} | changes
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def _byte_letters() -> dict[int, str]:
    """The letters that byte-level vocabularies write bytes with."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
