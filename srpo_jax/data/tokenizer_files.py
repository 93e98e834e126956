"""The tokenizer of a model's directory, as Hugging Face keeps it."""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from srpo_jax.data.tokenizer import (
    SentencePieceTokenizer,
    Tokenizer,
    TokenizersTokenizer,
    special_tokens,
)
from srpo_jax.runtime.errors import UserError

# What belongs to a tokenizer or to generation; exported as it was.
FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
)
NAMED_TEMPLATES = "additional_chat_templates"  # a folder: those that have names, each a file
# Those that a chat template may ask for, as `transformers` names them.
SPECIAL = tuple(f"{key}_token" for key in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


PIECES = "tokenizer.model"


def files_of(directory: Path) -> list[str]:
    """Those of FILES that a model's directory has, and its named chat templates, as paths below it."""
    named = sorted((directory / NAMED_TEMPLATES).glob("*.jinja"))
    there = [name for name in FILES if (directory / name).is_file()]
    return there + [f"{NAMED_TEMPLATES}/{path.name}" for path in named]


def read_tokenizer(directory: Path) -> Tokenizer:
    """From tokenizer.json or, without one, from tokenizer.model (SentencePiece); once while the files stay.

    End of sequence, beginning of sequence and chat template are those of tokenizer_config.json; what else
    may end a completion is read from generation_config.json.
    Raises UserError where a file is missing or malformed, or no end of sequence is named.
    """
    return _read(directory, _digest(directory))


def _digest(directory: Path) -> str:
    """Of the files that a tokenizer is read from."""
    whole = hashlib.sha256()
    for name in ("config.json", *files_of(directory)):
        path = directory / name
        content = path.read_bytes() if path.is_file() else b""
        whole.update(f"{name} {len(content)} ".encode() + content)
    return whole.hexdigest()


@functools.lru_cache(maxsize=8)  # a large one takes seconds, and a run's model is opened many times
def _read(directory: Path, digest: str) -> Tokenizer:
    config = _optional(directory / "tokenizer_config.json")
    model = _optional(directory / "config.json")
    generation = _optional(directory / "generation_config.json")
    names = _optional(directory / "special_tokens_map.json") | config
    template, templates = _chat_templates(directory, config)
    begins = config.get("add_bos_token")
    added = _added(directory, config)
    text, lookup = _definition(directory, added)

    def named(key: str) -> int | None:
        """The id of a special token: by its name, else the number in config.json."""
        token = _spelling(names.get(f"{key}_token"))
        if token is not None:
            if (found := lookup(token)) is None:
                raise UserError(
                    f"{directory}: its tokenizer has no token {token!r}, the {key}_token"
                )
            return found
        ids = _ids(generation, key) or _ids(model, key)
        return ids[0] if ids else None

    eos_id = named("eos")
    if eos_id is None:
        raise UserError(
            f"{directory} names no end of sequence: give tokenizer_config.json an 'eos_token'"
        )
    special = {key: _spelling(names[key]) for key in SPECIAL if key in names}
    given: dict[str, Any] = {
        "eos_id": eos_id,
        "bos_id": named("bos"),
        "chat_template": template,
        "stop_ids": tuple(dict.fromkeys((eos_id, *_ids(generation, "eos"), *_ids(model, "eos")))),
        "begins_with_bos": begins,
        "special_tokens": special,
        "chat_templates": templates,
    }
    try:
        if text:
            return TokenizersTokenizer(text, **given)
        return SentencePieceTokenizer(directory / PIECES, **given, added=added)
    except UserError as error:
        raise UserError(f"{directory}: {error}") from error


def _added(directory: Path, config: dict[str, Any]) -> dict[str, tuple[int, bool]]:
    """Tokens that were added to a SentencePiece model, {spelling: (id, whether a special one)}."""
    names = (config, _optional(directory / "special_tokens_map.json"))
    special = {_spelling(names_[key]) for names_ in names for key in SPECIAL if key in names_}
    found = {
        token: (token_id, token in special)
        for token, token_id in _optional(directory / "added_tokens.json").items()
    }
    for token_id, entry in (config.get("added_tokens_decoder") or {}).items():
        found[entry["content"]] = (int(token_id), bool(entry.get("special")))
    return found


def _definition(
    directory: Path, added: dict[str, tuple[int, bool]]
) -> tuple[str, Callable[[str], int | None]]:
    """The text of tokenizer.json, empty where there is none, and the id of a token by its name."""
    definition, pieces = directory / "tokenizer.json", directory / PIECES
    if definition.is_file():
        try:
            text = definition.read_text(encoding="utf-8")
            return text, special_tokens(text).get
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {definition}: {error}") from error
    if pieces.is_file():
        return "", SentencePieceTokenizer(pieces, eos_id=-1, added=added).piece_id
    raise UserError(f"{directory} has neither tokenizer.json nor {PIECES}")


def _optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object: fetch it again")
    return content


def _spelling(token: Any) -> str | None:
    """Of a special token, which older files keep as a record."""
    spelled: str | None = token.get("content") if isinstance(token, dict) else token
    return spelled


def _chat_templates(directory: Path, config: dict[str, Any]) -> tuple[str | None, dict[str, str]]:
    """The template, "default" where there are several, and those that have names."""
    folder = directory / NAMED_TEMPLATES
    named = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.jinja")}
    if (path := directory / "chat_template.jinja").is_file():
        return path.read_text(encoding="utf-8"), named
    template = _optional(directory / "chat_template.json").get("chat_template")
    template = template or config.get("chat_template")
    if isinstance(template, list):
        named |= {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    return template, named


def _ids(content: dict[str, Any], key: str) -> list[int]:
    value = content.get(f"{key}_token_id")
    return value if isinstance(value, list) else [] if value is None else [value]
