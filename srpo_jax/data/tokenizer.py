"""Text to token ids and back, behind one protocol.

A tokenizer here adds nothing of its own: no beginning- or end-of-sequence token, no padding, no
truncation. Which special tokens a sequence carries is decided in one place, where prompts are
rendered, so they can be neither missing nor doubled.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from srpo_jax.runtime.errors import UserError

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
    that ids kept on disk are never read under another tokenizer. chat_template: Jinja source;
    chat_templates: those that have names, {name: source}. special_tokens: what a template may ask for,
    {"bos_token": "<s>"}. added_tokens: those read whole in a text, {spelling: only by special=True?}.
    eos_id: ends a sequence; stop_ids: everything that does, eos_id first. begins_with_bos: whether the
    model was trained on texts that begin with bos_id (a chat template says so itself).
    """

    @property
    def vocab_size(self) -> int: ...
    @property
    def eos_id(self) -> int: ...
    @property
    def stop_ids(self) -> tuple[int, ...]: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def begins_with_bos(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def chat_template(self) -> str | None: ...
    @property
    def chat_templates(self) -> Mapping[str, str]: ...
    @property
    def special_tokens(self) -> Mapping[str, str]: ...
    @property
    def added_tokens(self) -> Mapping[str, bool]: ...

    def encode(self, text: str, special: bool = False, continued: bool = False) -> list[int]:
        """Ids of text, nothing added.

        special=True reads special tokens written in the text (a rendered chat template) as such;
        False reads them as plain text, so a document cannot end a turn or start another.
        continued: other text stands before it, so that no tokenizer puts a space there of its own.
        """
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens are dropped, invalid UTF-8 becomes U+FFFD."""
        ...

    def token(self, token_id: int) -> str:
        """How the vocabulary spells a token, special ones included."""
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
    begins_with_bos = False
    eos_id = 2
    stop_ids: tuple[int, ...] = (2,)
    chat_template: str | None = CHATML
    chat_templates: Mapping[str, str] = {}
    special_tokens: Mapping[str, str] = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    added_tokens: Mapping[str, bool] = dict.fromkeys(_BYTE_SPECIAL, True)
    fingerprint = hashlib.sha256(b"pad 0, <|im_start|> 1, <|im_end|> 2, byte b 3+b").hexdigest()

    def encode(self, text: str, special: bool = False, continued: bool = False) -> list[int]:
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

    def token(self, token_id: int) -> str:
        named = {i: token for token, i in _BYTE_SPECIAL.items()}
        return named.get(token_id) or self.decode([token_id])


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
        stop_ids: tuple[int, ...] = (),
        begins_with_bos: bool | None = None,
        special_tokens: Mapping[str, str | None] | None = None,
        chat_templates: Mapping[str, str] | None = None,
    ):
        """stop_ids: eos_id alone by default. begins_with_bos: None leaves it to the definition.

        special_tokens: eos and bos by default. Raises UserError where the definition is no tokenizer.json.
        """
        try:
            parsed = json.loads(definition) | {"truncation": None, "padding": None}
            canonical = json.dumps(parsed, sort_keys=True, ensure_ascii=False)
            # Reading special tokens or not is a state of the library's object, not an argument: objects
            # that are never changed, instead of one that is switched at each call.
            self._start = _parsing_and_plain(canonical)
            rest = json.dumps(_continued(parsed), sort_keys=True, ensure_ascii=False)
            self._rest = self._start if rest == canonical else _parsing_and_plain(rest)
        except Exception as error:  # the library raises bare Exceptions
            raise UserError(f"this is not the definition of a tokenizer: {error}") from error
        self.definition = definition
        self._arguments = (
            *(definition, eos_id, bos_id, chat_template, stop_ids, begins_with_bos),
            *(special_tokens, chat_templates),
        )
        parsing = self._start[0]
        self.vocab_size: int = 1 + max(parsing.get_vocab().values())
        own = parsing.get_vocab(with_added_tokens=False).values()
        self.own_size: int = 1 + max(own, default=-1)  # without the tokens that were added to it
        self.eos_id = eos_id
        self.stop_ids = stop_ids or (eos_id,)
        self.bos_id = bos_id
        if begins_with_bos is None:
            begins_with_bos = bos_id is not None and parsing.encode("a").ids[:1] == [bos_id]
        self.begins_with_bos = begins_with_bos and bos_id is not None
        self.chat_template = chat_template
        self.chat_templates = chat_templates or {}
        self.special_tokens = _named(self, special_tokens or {})
        self.added_tokens: Mapping[str, bool] = {
            token.content: token.special for token in parsing.get_added_tokens_decoder().values()
        }
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
        token_id = self._start[0].token_to_id(token)
        if token_id is None:
            raise UserError(f"{path} has no token {token!r}: name one that its vocabulary has")
        return token_id

    def encode(self, text: str, special: bool = False, continued: bool = False) -> list[int]:
        parsing, plain = self._rest if continued else self._start
        return (parsing if special else plain).encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._start[0].decode(list(ids), skip_special_tokens=True)

    def token(self, token_id: int) -> str:
        return self._start[0].id_to_token(token_id) or ""

    def __reduce__(self) -> tuple[Any, ...]:
        # The library's own pickling forgets encode_special_tokens.
        return type(self), self._arguments


def _named(tokenizer: Tokenizer, given: Mapping[str, str | None]) -> dict[str, str]:
    """Special tokens by name: those given, None for those that there are not, and else eos and bos."""
    ids = {"eos_token": tokenizer.eos_id, "bos_token": tokenizer.bos_id}
    own = {name: tokenizer.token(i) for name, i in ids.items() if i is not None and i >= 0}
    return {name: token for name, token in {**own, **given}.items() if token is not None}


def _parsing_and_plain(
    definition: str,
) -> tuple[tokenizers.Tokenizer, tokenizers.Tokenizer]:
    """The tokenizer that reads special tokens in a text as such, and the one that does not."""
    parsing, plain = (tokenizers.Tokenizer.from_str(definition) for _ in range(2))
    plain.encode_special_tokens = True
    return parsing, plain


def _continued(definition: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, but for the space some put before a text."""

    def without(part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        kind = part.get("type")
        if kind == "Sequence":
            key = next(k for k in ("normalizers", "pretokenizers") if k in part)
            kept = [p for p in map(without, part[key]) if p is not None]
            return part | {key: kept}
        if kind == "Prepend":
            return None
        if kind == "Metaspace":
            return part | {"prepend_scheme": "never"}
        if kind == "ByteLevel":
            return part | {"add_prefix_space": False}
        return part

    changed = {key: without(definition.get(key)) for key in ("normalizer", "pre_tokenizer")}
    return definition | changed


def special_tokens(definition: str) -> dict[str, int]:
    """The tokens of a tokenizer.json beside and in its vocabulary, {token: id}; ValueError if malformed."""
    parsed = json.loads(definition)
    try:
        vocabulary = parsed["model"].get("vocab", {})
        known = (
            dict(vocabulary)
            if isinstance(vocabulary, dict)
            else {entry[0]: i for i, entry in enumerate(vocabulary)}
        )
        return known | {entry["content"]: entry["id"] for entry in parsed.get("added_tokens", [])}
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no definition of a tokenizer ({error})") from error


class SentencePieceTokenizer:
    """A SentencePiece model (.model file), and tokens that were added to it."""

    def __init__(
        self,
        path: str | Path,
        eos_id: int | None = None,
        bos_id: int | None = None,
        chat_template: str | None = None,
        stop_ids: tuple[int, ...] = (),
        begins_with_bos: bool | None = None,
        special_tokens: Mapping[str, str | None] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        added: Mapping[str, tuple[int, bool]] | None = None,
    ):
        """eos_id, bos_id: by default the model's own. added: {spelling: (id, only by special=True?)}.

        Raises UserError where the file is no such model.
        """
        self._arguments = (
            *(path, eos_id, bos_id, chat_template, stop_ids, begins_with_bos),
            *(special_tokens, chat_templates, added),
        )
        try:
            model = Path(path).read_bytes()
            self._start = sentencepiece.SentencePieceProcessor(model_proto=model)
            proto = getattr(sentencepiece_model_pb2, "ModelProto").FromString(model)  # noqa: B009 (made at run time)
            proto.normalizer_spec.add_dummy_prefix = False
            self._rest = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is no SentencePiece model: {error}") from error
        self.own_size: int = self._start.vocab_size()  # without the tokens that were added to it
        beyond = {t: one for t, one in (added or {}).items() if one[0] >= self.own_size}
        self._beyond = {token_id: (token, special) for token, (token_id, special) in beyond.items()}
        self.vocab_size: int = 1 + max([self.own_size - 1, *self._beyond])
        self.eos_id: int = self._start.eos_id() if eos_id is None else eos_id
        own = self._start.bos_id()
        self.bos_id: int | None = bos_id if bos_id is not None else own if own >= 0 else None
        self.stop_ids = stop_ids or (self.eos_id,)
        # SentencePiece models are used with a bos where they have one, unless it is said otherwise.
        self.begins_with_bos = begins_with_bos is not False and self.bos_id is not None
        self.chat_template = chat_template
        self.chat_templates = chat_templates or {}
        self.special_tokens = _named(self, special_tokens or {})
        self.fingerprint = hashlib.sha256(
            model
            + f"\neos {self.eos_id} bos {self.bos_id}".encode()
            + (repr(sorted(beyond.items())).encode() if beyond else b"")
        ).hexdigest()
        controls = {
            self._start.id_to_piece(i): i for i in range(self.own_size) if self._start.is_control(i)
        }
        self._whole = controls | {token: token_id for token, (token_id, _) in beyond.items()}
        self.added_tokens: Mapping[str, bool] = {
            **dict.fromkeys(controls, True),
            **{token: special for token, (_, special) in beyond.items()},
        }
        self._parsing = _any_of(list(self._whole))
        self._plain = _any_of([t for t, special in self.added_tokens.items() if not special])

    def piece_id(self, piece: str) -> int | None:
        """The id of a token as the vocabulary spells it, None where it has no such token."""
        if piece in self._whole:
            return self._whole[piece]
        found = self._start.piece_to_id(piece)
        return found if self._start.id_to_piece(found) == piece else None

    def encode(self, text: str, special: bool = False, continued: bool = False) -> list[int]:
        pattern = self._parsing if special else self._plain
        ids: list[int] = []
        for i, part in enumerate(pattern.split(text) if pattern else [text]):
            if i % 2:
                ids.append(self._whole[part])
            elif part:
                processor = self._rest if continued or ids else self._start
                ids.extend(processor.encode(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text, run = "", list[int]()

        def said() -> str:
            # A space before a text is the model's own only where the text begins.
            return str((self._rest if text else self._start).decode(run))

        for token_id in ids:
            if token_id < self.own_size:
                if not self._start.is_control(token_id):
                    run.append(token_id)
                continue
            token, special = self._beyond.get(token_id, ("", True))
            if not special:
                text, run = text + said() + token, []
        return text + said()

    def token(self, token_id: int) -> str:
        if token_id >= self.own_size:
            return self._beyond.get(token_id, ("", True))[0]
        piece: str = self._start.id_to_piece(token_id)
        return piece

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments


def _any_of(tokens: Sequence[str]) -> re.Pattern[str] | None:
    """Splits a text at tokens, the longest first; None for no tokens."""
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return re.compile(f"({pattern})") if tokens else None
