"""Tokenizers of model directories against `transformers`: same text, same ids, the same ends."""

import json
import pickle

import pytest
import sentencepiece
import tokenizers

from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.prompts.chat import Chat
from srpo_jax.runtime.errors import UserError
from tests.checkpoints import save_tokenizer

TEXTS = [
    "Hello there",
    " two  spaces\n\nand lines",
    "Ωμέγα 漢字 👍🏽",
    "</s> is no end",
    "1 + 1 = 2",
]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """A SentencePiece model as Llama 2's: a space before every text, bytes for what is unknown."""
    directory = tmp_path_factory.mktemp("pieces")
    corpus = directory / "corpus.txt"
    corpus.write_text("\n".join(f"hello there friend number {i}, how are you?" for i in range(200)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "bos_token": {"content": "<s>"}})
    )
    return directory


def test_sentencepiece(pieces):
    tokenizer = read_tokenizer(pieces)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.begins_with_bos) == (1, 2, True)
    ids = tokenizer.encode("hello there")
    assert tokenizer.token(ids[0]).startswith("▁")
    assert tokenizer.decode(ids) == "hello there"
    # What continues a text gets no space of its own.
    assert (
        tokenizer.decode([*ids, *tokenizer.encode("hello", continued=True)]) == "hello therehello"
    )
    assert tokenizer.encode("</s>") != [2]
    assert tokenizer.encode("hello</s>", special=True)[-1] == 2
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("how are Ω") == tokenizer.encode("how are Ω")
    assert again.fingerprint == tokenizer.fingerprint


def test_tokens_that_were_added_to_sentencepiece(pieces, tmp_path):
    """As fine-tuned models have them: beside the pieces, in one of two files, and one ends a turn."""
    (tmp_path / "tokenizer.model").write_bytes((pieces / "tokenizer.model").read_bytes())
    plain = read_tokenizer(pieces)
    more = {"<|im_end|>": 320, "<call>": 321}
    (tmp_path / "added_tokens.json").write_text(json.dumps(more))
    said = {"eos_token": "<|im_end|>", "bos_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    one = read_tokenizer(tmp_path)
    (tmp_path / "added_tokens.json").unlink()
    decoder = {str(i): {"content": t, "special": t == "<|im_end|>"} for t, i in more.items()}
    decoder["2"] = {"content": "</s>", "special": True}
    said |= {"added_tokens_decoder": decoder}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(said))
    other = pickle.loads(pickle.dumps(read_tokenizer(tmp_path)))
    assert one.fingerprint == other.fingerprint != plain.fingerprint
    for tokenizer in (one, other):
        assert (tokenizer.eos_id, tokenizer.vocab_size, tokenizer.own_size) == (320, 322, 320)
        assert tokenizer.added_tokens["<|im_end|>"]
        hello, there = plain.encode("hello"), plain.encode("there", continued=True)
        assert tokenizer.encode("hello<call>there") == [*hello, 321, *there]
        assert tokenizer.encode("hello<|im_end|>", special=True) == [*hello, 320]
        assert 320 not in tokenizer.encode("hello<|im_end|>")
        assert tokenizer.decode([*hello, 321, *there, 320]) == "hello<call>there"
        assert (tokenizer.token(320), tokenizer.token(5)) == ("<|im_end|>", plain.token(5))


def test_sentencepiece_as_tokenizers_knows_it(pieces, tmp_path):
    """The same pieces as a tokenizer.json, whose space before a text is a normaliser."""
    model = sentencepiece.SentencePieceProcessor(str(pieces / "tokenizer.model"))
    vocabulary = {model.id_to_piece(i): i for i in range(model.vocab_size())}
    scores = {p: model.get_score(i) for p, i in vocabulary.items()}
    ranked = sorted(
        (
            (a, p[len(a) :])
            for p in vocabulary
            for a in (p[:i] for i in range(1, len(p)))
            if a in vocabulary and p[len(a) :] in vocabulary and not p.startswith("<")
        ),
        key=lambda pair: -scores["".join(pair)],
    )
    there = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, ranked, unk_token="<unk>", fuse_unk=True, byte_fallback=True
        )
    )
    there.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    there.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "bos_token": "<s>"}')
    one, other = read_tokenizer(pieces), read_tokenizer(tmp_path)
    for text in ("hello there friend", "how are you?"):
        for continued in (False, True):
            assert one.encode(text, continued=continued) == other.encode(text, continued=continued)


def test_ids_are_those_of_transformers(tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="install srpo_jax[dev] to run this test"
    )
    save_tokenizer(tmp_path)
    there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    here = read_tokenizer(tmp_path)
    for text in TEXTS[:3]:
        assert here.encode(text, special=True) == there.encode(text, add_special_tokens=False)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": TEXTS[0]},
        {"role": "assistant", "content": TEXTS[2]},
        {"role": "user", "content": TEXTS[4]},
    ]
    expected = there.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert list(Chat(here).ids(messages)) == expected


def test_every_end_is_known(tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 2]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    assert read_tokenizer(tmp_path).stop_ids == (2, 6, 5)


def test_files_that_stay_are_read_once(tmp_path):
    save_tokenizer(tmp_path)
    first = read_tokenizer(tmp_path)
    assert read_tokenizer(tmp_path) is first
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [6, 2]}')
    assert read_tokenizer(tmp_path).stop_ids == (2, 6)


def test_a_template_may_be_a_file_or_one_of_several(tmp_path):
    save_tokenizer(
        tmp_path, [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    )
    assert read_tokenizer(tmp_path).chat_template == "d"
    (tmp_path / "chat_template.jinja").write_text("j")
    assert read_tokenizer(tmp_path).chat_template == "j"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "not the definition of a tokenizer|cannot read"),
        ("tokenizer_config.json", "{", "is no JSON"),
        ("tokenizer_config.json", "{}", "names no end of sequence"),
    ],
)
def test_what_is_malformed_is_named(name, content, message, tmp_path):
    save_tokenizer(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_tokenizer(tmp_path)
