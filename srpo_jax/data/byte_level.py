"""The tokenizer.json of a byte-level byte-pair encoding, from a vocabulary and its merges."""

import json
from collections.abc import Sequence
from typing import Any

from srpo_jax.runtime.errors import UserError

_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
# How a text is cut into words before byte pairs are merged, by the name a GGUF gives it.
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
}


def byte_level_bpe(
    tokens: Sequence[str],
    merges: Sequence[Sequence[str]],
    special: Sequence[str],
    pre_tokenizer: str,
    added: Sequence[str] = (),
) -> str:
    """The tokenizer.json text of a byte-level byte-pair encoding.

    tokens: spelled in the byte-level alphabet, in order of id. merges: pairs of tokens, first wins.
    special: tokens that decode to nothing. added: tokens found whole in any text, before merging.
    A byte for which tokens has no entry is dropped on encoding: the vocabulary cannot express it.
    Raises UserError for repeated tokens and for a pre_tokenizer not in PRE_TOKENIZERS.
    """
    if pre_tokenizer not in PRE_TOKENIZERS:
        known = ", ".join(PRE_TOKENIZERS)
        raise UserError(f"cannot cut text into words as {pre_tokenizer!r} does; known: {known}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise UserError(f"{len(tokens) - len(vocabulary)} tokens of the vocabulary are repeated")
    whole = sorted((vocabulary[token], token) for token in {*special, *added})
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    definition = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, "special": token in special, **flags} for i, token in whole
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre_tokenizer]},
        "post_processor": None,
        "decoder": _BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": [list(pair) for pair in merges]},
    }
    return json.dumps(definition, ensure_ascii=False)
