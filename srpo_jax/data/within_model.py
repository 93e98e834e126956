"""A tokenizer that knows more tokens than its model."""

from collections.abc import Sequence

from srpo_jax.data.tokenizer import Tokenizer
from srpo_jax.runtime.errors import UserError


class WithinModel:
    """A tokenizer with added tokens that its model has no embedding for: text that holds one is refused."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int):
        """vocab_size: the model's. Raises UserError where beginning or end of a sequence is beyond it."""
        self._tokenizer = tokenizer
        for which, token_id in (("end", tokenizer.eos_id), ("beginning", tokenizer.bos_id)):
            if token_id is not None and token_id >= vocab_size:
                raise UserError(
                    f"the token {tokenizer.token(token_id)!r}, its {which} of sequence, has the id "
                    f"{token_id}, and the model's vocabulary ends at {vocab_size - 1}"
                )
        self.vocab_size = vocab_size
        self.eos_id = tokenizer.eos_id
        self.bos_id = tokenizer.bos_id
        self.stop_ids = tuple(i for i in tokenizer.stop_ids if i < vocab_size)
        self.begins_with_bos = tokenizer.begins_with_bos
        self.fingerprint = tokenizer.fingerprint
        self.chat_template = tokenizer.chat_template
        self.chat_templates = tokenizer.chat_templates
        self.special_tokens = tokenizer.special_tokens
        self.added_tokens = tokenizer.added_tokens

    def encode(self, text: str, special: bool = False, continued: bool = False) -> list[int]:
        """Raises UserError for a text that holds a token beyond the model's vocabulary."""
        ids = self._tokenizer.encode(text, special, continued)
        for token_id in ids:
            if token_id >= self.vocab_size:
                token = self._tokenizer.token(token_id)
                start = max(0, text.find(token) - 20)
                raise UserError(
                    f"the text {text[start : start + 60]!r} holds the token {token!r} of the id "
                    f"{token_id}, and the model's vocabulary ends at {self.vocab_size - 1}: leave the "
                    "text out"
                )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def token(self, token_id: int) -> str:
        return self._tokenizer.token(token_id)
