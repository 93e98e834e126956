import json
import pickle
from concurrent.futures import ThreadPoolExecutor

import jinja2
import pytest
import tokenizers

from srpo_jax.data.byte_level import byte_level_bpe
from srpo_jax.data.tokenizer import ByteTokenizer, Tokenizer, TokenizersTokenizer
from srpo_jax.runtime.errors import UserError

TRICKY = [
    "",
    "plain",
    " two  spaces ",
    "a\n\n\tb\r\n",
    "naïve Ωmega 漢字 👩\u200d👧",
    "１２ ½ 3.14",
    "\x00\x7f",
]
TURN = "<|im_start|>user\nhi<|im_end|>"


def definition(**changes) -> str:
    """All bytes, one merge (h i), and the two chat tokens as ids 0 and 1."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    special = ["<|im_start|>", "<|im_end|>"]
    text = byte_level_bpe([*special, *alphabet, "hi"], [("h", "i")], special, "smollm")
    return json.dumps(json.loads(text) | changes)


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request):
    return ByteTokenizer() if request.param == "bytes" else TokenizersTokenizer(definition(), 1, 0)


@pytest.mark.parametrize("text", [*TRICKY, TURN])
def test_decoding_gives_the_text_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def test_special_tokens_are_read_only_when_asked(tokenizer):
    marks = {tokenizer.bos_id, tokenizer.eos_id}
    assert not marks & set(tokenizer.encode(TURN))
    ids = tokenizer.encode(TURN, special=True)
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert ids[1:-1] == tokenizer.encode("user\nhi")


def test_special_tokens_decode_to_nothing(tokenizer):
    assert tokenizer.decode(tokenizer.encode(TURN, special=True)) == "user\nhi"


def test_a_broken_character_is_replaced(tokenizer):
    ids = tokenizer.encode("é")
    assert tokenizer.decode(ids[:1]) == "\ufffd"


def test_threads_that_ask_differently_do_not_disturb_each_other(tokenizer):
    expected = {special: tokenizer.encode(TURN, special) for special in (False, True)}
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: tokenizer.encode(TURN, i % 2 == 0), range(200)))
    assert results == [expected[i % 2 == 0] for i in range(200)]


def test_a_pickled_copy_is_the_same_tokenizer(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    for special in (False, True):
        assert copy.encode(TURN, special) == tokenizer.encode(TURN, special)


def test_byte_vocabulary_shards_over_eight_devices():
    assert ByteTokenizer.vocab_size % 8 == 0


def test_byte_tokenizer_ignores_ids_that_are_no_byte():
    assert ByteTokenizer().decode([0, 1, 2, 3 + ord("a"), 259, 263]) == "a"


def test_the_byte_chat_template_renders_one_turn():
    rendered = jinja2.Template(ByteTokenizer().chat_template or "").render(
        messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True
    )
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


def test_merges_are_applied_and_digits_stand_alone():
    tokenizer = TokenizersTokenizer(definition(), 1)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("hi 12")] == ["hi", " ", "1", "2"]


def test_truncation_and_padding_of_the_definition_are_switched_off():
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = TokenizersTokenizer(definition(truncation=truncation), 1)
    plain = TokenizersTokenizer(definition(), 1)
    assert tokenizer.encode("abcdef") == plain.encode("abcdef")
    assert tokenizer.fingerprint == plain.fingerprint


def test_the_fingerprint_follows_what_determines_ids():
    base = TokenizersTokenizer(definition(), 1, 0)
    others: list[Tokenizer] = [
        TokenizersTokenizer(definition(), 0, 1),
        TokenizersTokenizer(definition(normalizer={"type": "Lowercase"}), 1, 0),
        ByteTokenizer(),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert TokenizersTokenizer(definition(), 1, 0, "template").fingerprint == base.fingerprint


def test_a_tokenizer_file_is_read_with_its_tokens_by_name(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(definition(), encoding="utf-8")
    tokenizer = TokenizersTokenizer.from_file(path, "<|im_end|>", "<|im_start|>")
    assert (tokenizer.eos_id, tokenizer.bos_id) == (1, 0)
    with pytest.raises(UserError, match=r"tokenizer\.json has no token '</s>'"):
        TokenizersTokenizer.from_file(path, "</s>")


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": 3}'])
def test_an_unusable_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        TokenizersTokenizer.from_file(path, "</s>")


def test_a_vocabulary_that_cannot_be_rebuilt_is_refused():
    with pytest.raises(UserError, match="known: gpt-2, smollm"):
        byte_level_bpe(["a"], [], [], "llama-bpe")
    with pytest.raises(UserError, match="1 tokens of the vocabulary are repeated"):
        byte_level_bpe(["a", "a"], [], [], "gpt-2")
