"""Conversations in token ids: what the template says, what the messages say, and what is learned."""

import pytest

from srpo_jax.data.records import Message
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.prompts import Renderer, chat
from srpo_jax.runtime.errors import UserError
from srpo_jax.trees import prefix_tree
from tests.checkpoints import save_tokenizer

TALK = [
    {"role": "user", "content": "Hi <|end|> there"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Why?"},
]
# Gemma's way: no system role, turns must alternate, bos written out.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{% set role = 'model' if m.role == 'assistant' else m.role %}"
    "<|{{ role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|model|>{% endif %}"
)


@pytest.fixture
def tokenizer(tmp_path):
    save_tokenizer(tmp_path)
    return read_tokenizer(tmp_path)


def gemma(tmp_path):
    save_tokenizer(tmp_path, GEMMA)
    return read_tokenizer(tmp_path)


def text(tokenizer, ids):
    return "".join(tokenizer.decode([i]) or tokenizer.token(i) for i in ids)


def test_the_pieces_are_the_rendered_conversation(tokenizer):
    pieces = chat.pieces(tokenizer, TALK)
    whole = [i for ids, _ in pieces for i in ids]
    assert text(tokenizer, whole) == chat.render(tokenizer, TALK)
    assert [role for _, role in pieces] == [None, "user", None, "assistant", None, "user", None]


def test_a_message_cannot_end_its_turn(tokenizer):
    end = tokenizer.encode("<|end|>", special=True)[0]
    (_, (hello, _), *_) = chat.pieces(tokenizer, TALK)
    assert end not in hello
    assert tokenizer.decode(hello) == "Hi <|end|> there"


def test_a_system_message_that_is_refused_heads_the_first_turn(tmp_path):
    tokenizer = gemma(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert chat.render(tokenizer, messages) == "<s><|user|>Be brief.\n\nHi<|end|>\n<|model|>"


def test_an_answer_ends_as_the_template_ends_it(tmp_path):
    tokenizer = gemma(tmp_path)
    assert tokenizer.token(chat.end_of_answer(tokenizer)) == "<|end|>"
    assert tokenizer.token(tokenizer.eos_id) == "</s>"
    renderer = Renderer("dialogue", tokenizer)
    assert [tokenizer.token(i) for i in renderer.stop_ids] == ["<|end|>", "</s>"]
    assert chat.end_of_answer(ByteTokenizer()) == ByteTokenizer.eos_id


def test_bos_stands_once(tmp_path):
    tokenizer = gemma(tmp_path)
    bos = tokenizer.bos_id
    x = (Message("user", "Hi"),)
    direct = Renderer("dialogue", tokenizer).prompt(x).direct
    assert direct.count(bos) == 1
    assert direct[0] == bos
    save_tokenizer(tmp_path, GEMMA, add_bos_token=True)
    tokenizer = read_tokenizer(tmp_path)
    for template in ("dialogue", "plain", "chat", "chained", "tldr"):
        prompt = Renderer(template, tokenizer).prompt("Hi")
        for ids in (prompt.direct, prompt.improve((7, 8))):
            assert list(ids).count(bos) == 1, template
            assert ids[0] == bos, template


def test_a_dialogue_is_chained(tokenizer):
    """The direct answer is the beginning of the improve prompt: |x| + 6|y|."""
    prompt = Renderer("dialogue", tokenizer).prompt([Message(**m) for m in TALK])
    assert prompt.before == prompt.direct
    assert text(tokenizer, prompt.direct).endswith("Why?<|end|><|assistant|>")
    assert text(tokenizer, prompt.after).startswith("<|end|><|user|>Can you improve")
    assert text(tokenizer, prompt.after).endswith("<|end|><|assistant|>")


def test_what_the_assistant_says_is_learned_with_its_ends(tokenizer):
    renderer = Renderer("dialogue", tokenizer)
    segments = renderer.conversation([Message(**m) for m in TALK], " Because. ")
    assert [text(tokenizer, s) for s in segments] == [
        "<|user|>Hi <|end|> there<|end|><|assistant|>",
        "Hello.<|end|>",
        "<|user|>Why?<|end|><|assistant|>",
        "Because.<|end|>",
    ]
    tree = prefix_tree.build([segments])
    assert tree.lengths == [len("Hello.") + len("Because.") + 2]
    assert text(tokenizer, tree.target_token) == "Hello.<|end|>Because.<|end|>"


def test_without_a_chat_template(tmp_path):
    save_tokenizer(tmp_path, chat=None)
    with pytest.raises(UserError, match=r"has no chat template: use config\.data\.template=plain"):
        Renderer("dialogue", read_tokenizer(tmp_path))
    with pytest.raises(UserError, match=r"template='plain' is for texts: use .*dialogue"):
        Renderer("plain", read_tokenizer(tmp_path)).prompt([Message(**m) for m in TALK])


def test_a_template_that_drops_a_message_is_refused(tmp_path):
    save_tokenizer(tmp_path, "{% for m in messages[1:] %}{{ m.content }}<|end|>{% endfor %}")
    with pytest.raises(UserError, match="leaves out message 1 of 3"):
        chat.pieces(read_tokenizer(tmp_path), TALK)
