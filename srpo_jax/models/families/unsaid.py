"""What a config.json says by leaving an entry out, and which entries ask for nothing."""

from typing import Any

# By model_type: what `transformers` takes for an entry that is missing (null is another matter), where
# that is not what every family has. A test compares each with its configuration classes.
UNSAID: dict[str, dict[str, Any]] = {
    "mistral": {"num_key_value_heads": 8, "sliding_window": 4096},
    "mixtral": {
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen2": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    "qwen3_moe": {
        "num_key_value_heads": 4,
        "sliding_window": 4096,
        "decoder_sparse_step": 1,
        "moe_intermediate_size": 768,
        "num_local_experts": 128,
        "num_experts_per_tok": 8,
    },
    "gemma2": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    "smollm3": {
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
        "rope_theta": 2e6,
    },
    "olmo2": {"rms_norm_eps": 1e-5},
    "olmo3": {
        "rms_norm_eps": 1e-5,
        "sliding_window": 4096,
        "rope_theta": 5e5,
    },
    "granite": {"attention_multiplier": 1.0},
    "cohere": {"tie_word_embeddings": True, "layer_norm_eps": 1e-5, "logit_scale": 0.0625}
    | {"rope_theta": 5e5},
    "cohere2": {"tie_word_embeddings": True, "layer_norm_eps": 1e-5, "logit_scale": 0.0625}
    | {"sliding_window": 4096, "sliding_window_pattern": 4},
    "starcoder2": {
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "norm_epsilon": 1e-5,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    "phi3": {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096},
    "gpt_neox": {"hidden_act": "gelu", "attention_bias": True, "use_parallel_residual": True}
    | {"rotary_pct": 0.25, "rotary_emb_base": 1e4, "layer_norm_eps": 1e-5},
}

# Entries that say nothing about what the model computes.
SILENT = frozenset(
    """
    model_type architectures torch_dtype dtype transformers_version use_cache initializer_range
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id name_or_path
    auto_map pretraining_tp return_dict output_attentions output_hidden_states attn_implementation
    id2label label2id problem_type num_labels is_decoder is_llama_config transformers.js_config
    classifier_dropout chunk_size_feed_forward original_max_position_embeddings max_window_layers
    no_rope_layer_interval sliding_window_pattern unsloth_fixed unsloth_version model_max_length
    tokenizer_class task_specific_params output_router_logits router_aux_loss_coef
    use_flash_attention use_flash_attention_2 use_flash_attn flash_attn gradient_checkpointing
    use_gradient_checkpointing fp16 bf16 fp32
    """.split()  # noqa: SIM905 (a list of names reads worse)
)
# Settings of generation: they belong into generation_config.json, and older programs kept them here.
GENERATION = frozenset(
    """
    max_length min_length max_new_tokens min_new_tokens do_sample early_stopping num_beams temperature
    top_k top_p min_p typical_p epsilon_cutoff eta_cutoff repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    output_logits return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens num_beam_groups
    diversity_penalty renormalize_logits guidance_scale penalty_alpha stop_strings max_time
    cache_implementation cache_config encoder_repetition_penalty assistant_confidence_threshold
    num_assistant_tokens num_assistant_tokens_schedule target_lookbehind assistant_lookbehind
    """.split()  # noqa: SIM905
)
# Entries that ask for nothing at one of these values; of any other they are refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "full_attn_mod": (0, 1),
    "interpolate_factor": (1,),
    "rope_interleaved": (False,),
    "rope_type": ("default",),
    "rope_ratio": (1,),
    "rope_scaling_factor": (1,),
    "rotary_pct": (1,),
    "position_embedding_type": ("rope", "rotary"),
    "norm_type": ("rms_norm", "rmsnorm"),
    "scale_attn_weights": (True,),
    "attention_softmax_in_fp32": (True,),
    "scale_attention_softmax_in_fp32": (True,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "residual_scale": (1,),
    "scale_emb": (1,),
    "routed_scaling_factor": (1,),
    "scoring_func": ("softmax",),
    "n_group": (1,),
    "topk_group": (1,),
    "is_causal": (True,),
    "causal": (True,),
}
# The same of single families, by model_type.
_COHERE: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("rope_gptj",),
    "rope_interleaved": (True,),
    "norm_type": ("layer_norm", "layernorm"),
    "order_of_interleaved_layers": ("local_attn_first",),
    "use_embedding_sharing": (True,),
    "use_parallel_embedding": (True,),
    "use_parallel_block": (True,),
    "use_gated_activation": (True,),
}
OWN_NEUTRAL: dict[str, dict[str, tuple[Any, ...]]] = {
    "cohere": _COHERE,
    "cohere2": _COHERE,
    "gpt_neox": {"norm_type": ("layer_norm", "layernorm")},
    "starcoder2": {
        "mlp_type": ("default",),
        "norm_type": ("layer_norm",),
        "activation_function": ("gelu", "gelu_pytorch_tanh"),  # hidden_act is what is computed
    },
}
# Older names of entries, which some checkpoints keep beside the present ones: {older: present}.
OLDER = {
    "num_local_experts": "num_experts",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_head_kv": "num_key_value_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "n_ctx": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "seq_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "hidden_dim": "intermediate_size",
    "d_ff": "intermediate_size",
    "max_seq_length": "max_position_embeddings",
    "max_sequence_length": "max_position_embeddings",
    "padded_vocab_size": "vocab_size",
    "hidden_activation": "hidden_act",
    "rms_norm_epsilon": "rms_norm_eps",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "multi_query_group_num": "num_key_value_heads",
    "ffn_hidden_size": "intermediate_size",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "layer_norm_eps",
    "layer_switch": "sliding_window_pattern",
    "norm_eps": "rms_norm_eps",
}
