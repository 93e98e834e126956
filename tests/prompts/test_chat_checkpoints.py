"""Templates in the style of today's checkpoints: what is read and learned, against `transformers`."""

import datetime
import json

import pytest

from srpo_jax.data.records import Message
from srpo_jax.data.tokenizer import TokenizersTokenizer
from srpo_jax.prompts import Arguments, Renderer
from srpo_jax.runtime.errors import UserError
from tests.prompts.checkpoints import (
    CONVERSATIONS,
    KINDS,
    NAMED,
    TEMPLATES,
    definition,
    with_flags,
)

DATE = "2025-03-09"
# What cannot be learned as it would be generated, and why: the rest must be learned.
BEHIND_A_BLOCK = "has it generated behind '<think>"
OTHERWISE = "writes it otherwise once the conversation goes on"
SPECIAL = "special tokens in the text"
MULTI = ("two turns", "a system and two turns", "white space", "reasoning")
REFUSED = {
    **{("reasoning", name): OTHERWISE for name in MULTI},
    **{("reasoning, off", name): OTHERWISE for name in MULTI},
    **{("reasoning, begun", name): BEHIND_A_BLOCK for name in CONVERSATIONS},
    **{("reasoning only", name): OTHERWISE for name in MULTI},
    ("inst, system last", "a system and two turns"): OTHERWISE,
}


@pytest.fixture(scope="module", params=KINDS)
def theirs(request):
    """The tokenizer as `transformers` has it."""
    return as_theirs(definition(request.param), request.param)


def as_theirs(defined, kind):
    import tokenizers
    import transformers

    made = tokenizers.Tokenizer.from_str(defined)
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **NAMED)
    made.kind, made.definition = kind, defined
    return made


@pytest.fixture(autouse=True)
def _today(monkeypatch):
    from transformers.utils import chat_template_utils

    class Today(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Today)


def ours(theirs, template, given):
    tokenizer = TokenizersTokenizer(
        theirs.definition,
        theirs.eos_token_id,
        theirs.bos_token_id,
        template,
        special_tokens=theirs.special_tokens_map,
    )
    arguments = tuple(f"{name}={json.dumps(value)}" for name, value in given.items())
    return Renderer("dialogue", tokenizer, Arguments(arguments, DATE))


def asked(messages):
    return [Message(**m) for m in messages]


def talks(name, theirs):
    """The conversations that the two can be compared on."""
    return {
        talk: messages
        for talk, messages in CONVERSATIONS.items()
        # It takes a system message for an answer.
        if not (name == "inst, as it is" and messages[0]["role"] == "system")
        # Behind a special token that is to stay text they put a space of their own.
        and not (talk == SPECIAL and theirs.kind != "bytes")
    }


def apply(theirs, name, messages, **more):
    """Their ids; a system message that the template refuses is joined with the first user's."""
    import jinja2

    template, given = TEMPLATES[name]
    more = {"return_dict": False} | more

    def ids(messages):
        if name == "parts":
            messages = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages]
        return theirs.apply_chat_template(messages, chat_template=template, **given, **more)

    try:
        return ids(messages)
    except jinja2.TemplateError:
        system, user, *rest = messages
        assert system["role"] == "system"
        return ids(
            [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
        )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_has_the_ids_of_transformers(name, theirs):
    renderer = ours(theirs, *TEMPLATES[name])
    for messages in talks(name, theirs).values():
        expected = apply(
            theirs, name, messages[:-1], add_generation_prompt=True, sanitize_control_tokens=True
        )
        assert list(renderer.prompt(asked(messages[:-1])).direct) == expected, messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_generated_is_learned_with_its_end(name, theirs):
    renderer = ours(theirs, *TEMPLATES[name])
    for talk, messages in talks(name, theirs).items():
        y = messages[-1]["content"]
        if (name, talk) in REFUSED:
            with pytest.raises(
                UserError, match=rf"^turn \d of {len(messages)} .*{REFUSED[name, talk]}"
            ):
                renderer.conversation(asked(messages[:-1]), y)
            continue
        segments = renderer.conversation(asked(messages[:-1]), y)
        prompt = renderer.prompt(asked(messages[:-1])).direct
        assert sum(segments[:-1], ()) == prompt, (talk, "the prompt of generation")
        if name != "reasoning only":  # where the end of an empty block joins its begin
            whole = apply(theirs, name, messages, sanitize_control_tokens=True)
            ids = list(sum(segments, ()))
            assert whole[: len(ids)] == ids, (talk, "the whole conversation")
        assert segments[-1][-1] == renderer.eos or name.startswith("marked with"), talk
        assert renderer.eos in segments[-1], talk
        assert len(segments) == 2 * sum(m["role"] == "assistant" for m in messages)


def test_special_tokens_in_a_text_stay_text(theirs):
    controls = {theirs.convert_tokens_to_ids(token) for token in theirs.all_special_tokens}
    controls |= {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    for name, (template, given) in TEMPLATES.items():
        renderer = ours(theirs, template, given)
        evil, mild = (
            renderer.prompt(text).direct for text in (CONVERSATIONS[SPECIAL][0]["content"], "What?")
        )
        assert [i for i in evil if i in controls] == [i for i in mild if i in controls], name


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name.startswith("marked")])
def test_marked_is_what_is_learned(name, theirs):
    renderer = ours(theirs, *TEMPLATES[name])
    for talk, messages in CONVERSATIONS.items():
        if talk == SPECIAL:
            continue  # they cannot keep those plain and give a mask
        segments = renderer.conversation(asked(messages[:-1]), messages[-1]["content"])
        learned = [i % 2 for i, segment in enumerate(segments) for _ in segment]
        given = apply(theirs, name, messages, return_dict=True, return_assistant_tokens_mask=True)
        mask = given["assistant_masks"][: len(learned)]
        if name == "marked without the end":  # which we learn, so that the model learns to stop
            mask = [
                m or (i == renderer.eos and bool(before))
                for m, i, before in zip(mask, given["input_ids"], [0, *mask], strict=False)
            ]
        assert [bool(m) for m in mask] == [bool(m) for m in learned], talk


def test_what_is_marked_of_the_prompt_is_not_learned(theirs):
    """As SmolLM3's template marks a turn with its head."""
    template, _ = TEMPLATES["marked"]
    head, begin = "{{ '<|im_start|>assistant\n' }}", "{% generation %}"
    assert head + begin in template
    marked, whole = (
        ours(theirs, text, {}) for text in (template, template.replace(head + begin, begin + head))
    )
    for messages in CONVERSATIONS.values():
        x, y = asked(messages[:-1]), messages[-1]["content"]
        assert whole.conversation(x, y) == marked.conversation(x, y)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [
        ("prepended", "rstrip"),
        ("prepended", "lstrip"),
        ("metaspace, always", "lstrip"),
        ("bytes", "rstrip"),
    ],
)
def test_tokens_that_take_the_space_beside_them(kind, flag):
    """As Phi 3's do: its template ends a prompt in a line's end, which is no token there."""
    theirs = as_theirs(with_flags(kind, **{flag: True}), kind)
    for name in ("markers and an end", "chatml", "inst, as it is", "reasoning, off"):
        renderer = ours(theirs, *TEMPLATES[name])
        for talk in ("one turn", "with a system", "white space"):
            messages = CONVERSATIONS[talk]
            x, y = asked(messages[:-1]), messages[-1]["content"]
            prompt = renderer.prompt(x)
            expected = apply(theirs, name, messages[:-1], add_generation_prompt=True)
            assert list(prompt.direct) == expected, (name, talk)
            if (name, talk) in REFUSED:
                continue
            whole = apply(theirs, name, messages)
            learned = [*prompt.direct, *renderer.answer(x, y), renderer.eos]
            assert whole[: len(learned)] == learned, (name, talk)
            assert list(sum(renderer.conversation(x, y), ()))[: len(learned)] == learned
            if name != "reasoning, off":
                said = [*messages, {"role": "user", "content": renderer.template.improvement}]
                shown = prompt.improve(renderer.answer(x, y, shown=True))
                assert list(shown) == apply(theirs, name, said, add_generation_prompt=True), talk


def test_an_end_that_is_no_token_behind_a_word_is_refused():
    theirs = as_theirs(with_flags("prepended", normalized=True), "prepended")
    with pytest.raises(
        UserError, match=r"ends an answer with '<\|end\|>', which the tokenizer reads"
    ):
        ours(theirs, *TEMPLATES["markers and an end"])
