"""Conversations in token ids: what the template is offered, what is refused, and what is learned."""

import pytest

from srpo_jax.data.records import Message, Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.data.tokenizer_files import read_tokenizer
from srpo_jax.prompts import Arguments, Renderer
from srpo_jax.prompts.chat import Chat
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline
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


def test_a_message_cannot_end_its_turn(tokenizer):
    ids = Chat(tokenizer).ids(TALK)
    assert text(tokenizer, ids) == (
        "<|user|>Hi <|end|> there<|end|><|assistant|>Hello.<|end|><|user|>Why?<|end|><|assistant|>"
    )
    assert ids.count(tokenizer.encode("<|end|>", special=True)[0]) == len(TALK)


def test_a_system_message_that_is_refused_heads_the_first_turn(tmp_path):
    tokenizer = gemma(tmp_path)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    written = Chat(tokenizer).render(messages).text
    assert written == "<s><|user|>Be brief.\n\nHi<|end|>\n<|model|>"


def test_an_answer_ends_as_the_template_ends_it(tmp_path):
    tokenizer = gemma(tmp_path)
    assert tokenizer.token(tokenizer.eos_id) == "</s>"
    renderer = Renderer("dialogue", tokenizer)
    assert [tokenizer.token(i) for i in renderer.stop_ids] == ["<|end|>", "</s>"]
    assert Renderer("dialogue", ByteTokenizer()).eos == ByteTokenizer.eos_id


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
    with pytest.raises(UserError, match=r"has no chat template: use config\.data\.template=text"):
        Renderer("dialogue", read_tokenizer(tmp_path))
    with pytest.raises(UserError, match=r"template='plain' is for texts: use .*dialogue"):
        Renderer("plain", read_tokenizer(tmp_path)).prompt([Message(**m) for m in TALK])


def test_a_template_that_drops_a_message_is_refused(tmp_path):
    save_tokenizer(tmp_path, "{% for m in messages[1:] %}{{ m.content }}<|end|>{% endfor %}")
    with pytest.raises(UserError, match="leaves out message 1 of 3"):
        Chat(read_tokenizer(tmp_path)).ids(TALK)


def render(tmp_path, template, *given, date="2025-03-09", messages=TALK, **named):
    save_tokenizer(tmp_path, template, **named)
    return Chat(read_tokenizer(tmp_path), Arguments(given, date)).render(messages).text


SAID = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "given", "written"),
    [
        ("{{ strftime_now('%d %B %Y') }}", (), "09 March 2025"),
        (
            "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}2024{% endif %}",
            (),
            "2025",
        ),
        ("{{ pad_token }}{{ unk_token }}{{ cls_token }}", (), "<pad><unk>"),
        (
            "{{ {'b': 'é', 'a': 1} | tojson(ensure_ascii=true, sort_keys=true) }}",
            (),
            r'{"a": 1, "b": "\u00e9"}',
        ),
        ("{{ [1, 2] | tojson(separators=(',', ':')) }}", (), "[1,2]"),
        ("{{ 'none' if tools is none else 'some' }}", (), "none"),
        (
            "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            (),
            "01",
        ),
        (
            "{{ 'off' if thinking is false else 'on' }}{{ n + 1 }}{{ day }}",
            ("thinking=False", "n=2", "day=1 May"),
            "off31 May",
        ),
        ("{{ tools[0].name }}", ('tools=[{"name": "f"}]',), "f"),
    ],
)
def test_a_template_is_offered_what_transformers_offers(template, given, written, tmp_path):
    special = {"pad_token": "<pad>", "unk_token": {"content": "<unk>"}}
    assert render(tmp_path, template + SAID, *given, **special).startswith(written + "Hi")


@pytest.mark.parametrize(
    ("template", "given", "said"),
    [
        ("{{ 1 + 'a' }}", (), r"does not take these messages \(TypeError: unsupported operand"),
        ("{{ raise_exception('not so') }}", (), r"does not take these messages \(not so\)"),
        ("{% for m in messages %}", (), r"does not take these messages \(line 1 of it: "),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", (), r"\(RecursionError"),
        (
            SAID + "{{ enable_thinking }}",
            ("enable_thinkng=false",),
            "reads no 'enable_thinkng'; it reads enable_thinking",
        ),
        (SAID, ("messages=[]",), "'messages=\\[\\]' is not 'name=value'"),
        (SAID, ("thinking",), "'thinking' is not 'name=value'"),
    ],
)
def test_what_a_template_raises_is_one_sentence(template, given, said, tmp_path):
    with pytest.raises(UserError, match=said) as error:
        render(tmp_path, template, *given)
    assert "\n" not in str(error.value)


def test_templates_that_have_names(tmp_path):
    named = [{"name": "rag", "template": "r" + SAID}, {"name": "tool_use", "template": "t" + SAID}]
    with pytest.raises(UserError, match=r"chat templates rag, tool_use, and none called 'default'"):
        render(tmp_path, named)
    assert render(tmp_path, named, "chat_template=rag").startswith("rHi")
    with pytest.raises(UserError, match="none called 'other'"):
        render(tmp_path, named, "chat_template=other")


def test_dpo_needs_no_improve_prompt(tmp_path):
    """A prompt says why it has no improve prompt when it is asked for it."""
    save_tokenizer(
        tmp_path,
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{% if m.role == 'assistant' and loop.last %}{{ '(draft) ' }}{% endif %}"
        "{{ m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    )
    tokenizer = read_tokenizer(tmp_path)
    pair = Pair((Message("user", "Hi"),), "Yo", "No")
    for template in ("dialogue", "chained"):
        renderer = Renderer(template, tokenizer)
        asked = Pair("Hi", "Yo", "No") if template == "chained" else pair
        chosen, rejected = pipeline.pair_sequences(asked, renderer, ("w", "l"), "a:1")
        assert text(tokenizer, chosen[1]) == "(draft) Yo<|end|>"
        assert text(tokenizer, rejected[1]) == "(draft) No<|end|>"
        with pytest.raises(
            UserError, match=r"^a:1: .*has the model write an answer as '\(draft\) …'"
        ):
            pipeline.pair_sequences(asked, renderer, ("w", "l", "w|l"), "a:1")


def test_an_answer_that_the_template_cuts_once_it_is_shown(tmp_path):
    save_tokenizer(
        tmp_path,
        "{% for m in messages %}{{ '<|' + m.role + '|>' }}"
        "{{ (m.content if loop.last else m.content.split('!')[-1]) + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    )
    renderer = Renderer("dialogue", read_tokenizer(tmp_path))
    pair = Pair((Message("user", "Hi"),), "Well! Yo", "No")
    assert len(pipeline.pair_sequences(pair, renderer, ("w", "l"), "a:1")) == 2
    with pytest.raises(UserError, match=r"a:1: turn 2 \(assistant\): .*once another turn follows"):
        pipeline.pair_sequences(pair, renderer, ("w", "w|l"), "a:1")


def test_an_empty_answer_is_its_end(tokenizer):
    turns = [Message("user", "a"), Message("assistant", ""), Message("user", "b")]
    segments = Renderer("dialogue", tokenizer).conversation(turns, "c")
    assert [text(tokenizer, s) for s in segments[1::2]] == ["<|end|>", "c<|end|>"]


def test_white_space_in_a_conversation_is_the_templates_affair(tokenizer):
    direct = Renderer("dialogue", tokenizer).prompt([Message("user", " Hi\n")]).direct
    assert text(tokenizer, direct) == "<|user|> Hi\n<|end|><|assistant|>"


@pytest.mark.parametrize(
    ("behind", "first", "ends"),
    [
        ("{{ '<|end|>' }}", "Hello.<|end|>", ["<|end|>", "</s>"]),
        ("{{ '\n<|end|>' }}", "Hello.\n<|end|>", ["<|end|>", "</s>"]),
        ("", "Hello.", ["</s>"]),
    ],
)
def test_an_end_that_only_earlier_turns_have(behind, first, ends, tmp_path):
    """The template leaves the last turn open, as one that goes on; what opens a turn is no end."""
    save_tokenizer(
        tmp_path,
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
        f"{{% if not loop.last %}}{behind}{{% endif %}}{{% endfor %}}"
        f"{{% if add_generation_prompt %}}{behind}{{{{ '<|assistant|>' }}}}{{% endif %}}",
    )
    tokenizer = read_tokenizer(tmp_path)
    renderer = Renderer("dialogue", tokenizer)
    segments = renderer.conversation([Message(**m) for m in TALK], "Because.")
    assert [text(tokenizer, s) for s in segments[1::2]] == [first, "Because." + ends[0]]
    assert [tokenizer.token(i) for i in renderer.stop_ids] == ends


def test_a_turn_that_ends_generation_as_it_opens_ends_the_answer_before_it(tmp_path):
    """GLM's way: its generation config stops at the user's mark, and the template writes no other end."""
    save_tokenizer(
        tmp_path,
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    tokenizer = read_tokenizer(tmp_path)
    renderer = Renderer("dialogue", tokenizer)
    segments = renderer.conversation([Message(**m) for m in TALK], "Because.")
    assert [text(tokenizer, s) for s in segments[1::2]] == ["Hello.<|user|>", "Because.<|user|>"]
    assert [tokenizer.token(i) for i in renderer.stop_ids] == ["<|user|>", "</s>"]


def test_an_answer_of_which_the_template_leaves_out_a_part_is_refused(tmp_path):
    save_tokenizer(
        tmp_path,
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] | trim }}"
        "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}",
    )
    renderer = Renderer("dialogue", read_tokenizer(tmp_path))
    x, y = (Message("user", "2 + 2?"),), "<think>Two.</think> Four </s>."
    said = (
        r"^turn 2 of 2 \(assistant\): the chat template writes '<think>.*' as 'Four .*not all of it"
    )
    for learn in (renderer.answer, renderer.conversation):
        with pytest.raises(UserError, match=said):
            learn(x, y)
        assert learn(x, "Four  </s>.\n")
