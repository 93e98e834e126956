"""A model as it came: what it is, its tokenizer, how its weights are read, and the files that say so."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srpo_jax.data.tokenizer import Tokenizer, TokenizersTokenizer
from srpo_jax.data.tokenizer_files import files_of
from srpo_jax.models import export, huggingface
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.models.weights import Parameters
from srpo_jax.runtime.files import whole


@dataclasses.dataclass(frozen=True)
class Source:
    """Architecture, tokenizer and, unless weights are to be drawn at random, how to read them.

    files: the directory with config.json and the tokenizer's files, where there is one; there is none of a
    GGUF file, which says the same, nor of a tokenizer that is a part of this package.
    """

    config: DecoderConfig
    tokenizer: Tokenizer
    read_parameters: Callable[[], Parameters] | None
    files: Path | None = None

    def described(self) -> dict[str, Any]:
        """config.json of the language model, or one like Llama's where the source has none."""
        if self.files is not None:
            return huggingface.describe(self.files)
        return export.describe(self.config) | {
            "eos_token_id": self.tokenizer.eos_id,
            "bos_token_id": self.tokenizer.bos_id,
        }

    def tokenizer_files(self) -> Path | dict[str, str]:
        """The directory that has them, or {name: content} made of the tokenizer; {} where it has none."""
        if self.files is not None:
            return self.files
        tokenizer = self.tokenizer
        if not isinstance(tokenizer, TokenizersTokenizer):
            return {}
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "eos_token": tokenizer.token(tokenizer.eos_id),
            "bos_token": None if tokenizer.bos_id is None else tokenizer.token(tokenizer.bos_id),
            "chat_template": tokenizer.chat_template,
            "model_max_length": self.config.max_length,
        }
        generation = {"eos_token_id": list(tokenizer.stop_ids), "bos_token_id": tokenizer.bos_id}
        return {
            "tokenizer.json": tokenizer.definition,
            "tokenizer_config.json": json.dumps(
                {k: v for k, v in settings.items() if v is not None}
            ),
            "generation_config.json": json.dumps(generation),
        }

    def keep(self, directory: Path) -> None:
        """Writes what says architecture and tokenizer, to be read once the source is gone.

        Nothing is kept of a source whose tokenizer is a part of this package.
        """
        held = self.tokenizer_files()
        if not held:
            return
        directory.mkdir(parents=True, exist_ok=True)
        if isinstance(held, Path):
            for name in ("config.json", *files_of(held)):
                with whole(directory / name) as part:
                    shutil.copyfile(held / name, part)
            return
        config = json.dumps(self.described(), indent=2) + "\n"
        for name, content in {**held, "config.json": config}.items():
            with whole(directory / name) as part:
                part.write_text(content, encoding="utf-8")
