"""Text to token ids and back, behind one protocol.

A tokenizer here adds nothing of its own: no beginning- or end-of-sequence token, no padding, no
truncation. Which special tokens a sequence carries is decided in one place, where prompts are
rendered, so they can be neither missing nor doubled.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from srpo_jax.errors import UserError

# Messages between the two special tokens every chat model of this family has; no system prompt.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer(Protocol):
    """What the rest of the package knows of a tokenizer.

    vocab_size: every id is below it. fingerprint: sha256 (hex) of all that determines the ids, so
    that ids kept on disk are never read under another tokenizer. chat_template: Jinja source.
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def chat_template(self) -> str | None: ...

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of text, nothing added.

        special=True reads special tokens written in the text (a rendered chat template) as such;
        False reads them as plain text, so a document cannot end a turn or start another.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are dropped, invalid UTF-8 becomes U+FFFD."""
        ...


_FIRST_BYTE = 3
_BYTE_SPECIAL = {"<|im_start|>": 1, "<|im_end|>": 2}


class ByteTokenizer:
    """One token a byte, for tiny models: 0 padding, 1 bos, 2 eos, then the 256 bytes.

    bos and eos are written <|im_start|> and <|im_end|>, so chat templates work. Ids 259 to 263 only
    make the vocabulary a multiple of 8, which shards; like special tokens they decode to nothing.
    """

    vocab_size = 264
    bos_id: int | None = 1
    eos_id = 2
    chat_template: str | None = CHATML
    fingerprint = hashlib.sha256(b"pad 0, <|im_start|> 1, <|im_end|> 2, byte b 3+b").hexdigest()

    def encode(self, text: str, special: bool = False) -> list[int]:
        pieces = re.split(r"(<\|im_start\|>|<\|im_end\|>)", text) if special else [text]
        ids: list[int] = []
        for piece in pieces:
            if special and piece in _BYTE_SPECIAL:
                ids.append(_BYTE_SPECIAL[piece])
            else:
                ids.extend(_FIRST_BYTE + byte for byte in piece.encode())
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        values = (i - _FIRST_BYTE for i in ids)
        return bytes(value for value in values if 0 <= value < 256).decode(errors="replace")


class TokenizersTokenizer:
    """A tokenizer of the `tokenizers` library, given as the text of a tokenizer.json.

    Truncation and padding the definition may ask for are switched off. Safe to share between
    threads and to pickle.
    """

    def __init__(
        self,
        definition: str,
        eos_id: int,
        bos_id: int | None = None,
        chat_template: str | None = None,
    ):
        """Raises UserError where the definition is no tokenizer.json."""
        try:
            parsed = json.loads(definition) | {"truncation": None, "padding": None}
            canonical = json.dumps(parsed, sort_keys=True, ensure_ascii=False)
            # Reading special tokens or not is a state of the library's object, not an argument:
            # two objects, neither ever changed, instead of one that is switched at each call.
            self._parsing = tokenizers.Tokenizer.from_str(canonical)
            self._plain = tokenizers.Tokenizer.from_str(canonical)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"this is not the definition of a tokenizer: {error}") from error
        self._plain.encode_special_tokens = True
        self._arguments = (definition, eos_id, bos_id, chat_template)
        self.vocab_size: int = 1 + max(self._parsing.get_vocab().values())
        self.eos_id = eos_id
        self.bos_id = bos_id
        self.chat_template = chat_template
        self.fingerprint = hashlib.sha256(
            f"{canonical}\neos {eos_id} bos {bos_id}".encode()
        ).hexdigest()

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        eos_token: str,
        bos_token: str | None = None,
        chat_template: str | None = None,
    ) -> "TokenizersTokenizer":
        """Reads a tokenizer.json; eos and bos are named as written in its vocabulary.

        Raises UserError where the file is missing or malformed, or lacks one of the two tokens.
        """
        try:
            definition = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the tokenizer {path}: {error}") from error
        try:
            tokenizer = cls(definition, eos_id=-1)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return cls(
            definition,
            eos_id=tokenizer._id(eos_token, path),
            bos_id=None if bos_token is None else tokenizer._id(bos_token, path),
            chat_template=chat_template,
        )

    def _id(self, token: str, path: str | Path) -> int:
        token_id = self._parsing.token_to_id(token)
        if token_id is None:
            raise UserError(f"{path} has no token {token!r}: name one that its vocabulary has")
        return token_id

    def encode(self, text: str, special: bool = False) -> list[int]:
        tokenizer = self._parsing if special else self._plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._parsing.decode(list(ids), skip_special_tokens=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickling forgets encode_special_tokens.
        return type(self), self._arguments


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
