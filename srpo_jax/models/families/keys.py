"""config.json as it is read: what is missing, and what nobody has read, is an error by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
