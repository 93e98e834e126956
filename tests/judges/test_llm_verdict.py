"""Reading a verdict in what endpoints send and models write."""

import json
import math
import time

import pytest

from srpo_jax.judges.llm import answer as answers
from srpo_jax.judges.llm import verdict
from srpo_jax.judges.llm.answer import Fault
from srpo_jax.judges.llm.prompts import SUMMARY, Template
from tests.judges.endpoint import reply

LETTERS = Template(task="letters", question="{prompt} {a} {b}", tie="C")
NO_TIES = Template(task="no ties", question="{prompt} {a} {b}", tie="")


def read(said, template=SUMMARY, mode="text", mass=0.1, **more):
    """The verdict in a reply; the reason where there is none."""
    try:
        answer = answers.read(reply(said, **more)[2].decode())
        return verdict.read(answer, template, mode, mass)
    except Fault as fault:
        return fault.reason


@pytest.mark.parametrize(
    "said",
    [
        *("A", "A.", "**A**", "a", " a\n", "(A)", "[[A]]", '"A"', "`A`", "A)", "Summary A", "<A>"),
        *("Answer: A", "answer: a", "**Answer:** A", "Answer: **A**", "The answer is A."),
        *("My verdict is **A**.", "Verdict: Summary A", "Preferred: A", "Final answer: A"),
        *(
            "Summary A is better",
            "Summary A is better.",
            "I prefer A.",
            "A is better",
            "A is better: it has fewer errors and is less wordy.",
            "**A** is better.",
        ),
        *("I would choose Summary **A**.", "The better summary is A", "The better one is A."),
        "<think>B is short, but A is right.</think>\nA",
        "<think>\nA or B?\n</think>\n\n**A**",
        "B seems long. Hmm.\n</think>\nA",  # a template that opens the thinking itself
        "<|channel|>analysis<|message|>B?<|end|><|channel|>final<|message|>A",
        "A\n\nSummary B leaves out the point.",
        "Summary B leaves out the point.\n\nA",
        "Comparison: A is precise where B rambles.\nPreferred: A",
        "Summary A:\nprecise\nSummary B:\nlong\nAnswer: A",
        "Answer: A because B is wrong.",
        "\\boxed{A}",
        '{"verdict": "A"}',
        '```json\n{"verdict": "A"}\n```',
        'Here it is: {"reason": "B is long", "verdict": "A"}',
        *("A better summary names the year: Answer: A", "Answer: Option A"),
    ],
)
def test_what_models_write(said):
    assert read(said) == 1.0


@pytest.mark.parametrize(
    ("said", "score"),
    [
        *[("B", 0.0), ("b.", 0.0), ("The better summary is B, as it is short.", 0.0)],
        *[("A better summary is B", 0.0), ("Answer: B", 0.0)],
        *[
            ("tie", 0.5),
            ("Tie.", 0.5),
            ("**Tie**", 0.5),
            ("It's a tie.", 0.5),
            ("Answer: a tie", 0.5),
        ],
        *[('{"verdict": "tie"}', 0.5), ("TIE", 0.5), ("Answer: tie", 0.5)],
    ],
)
def test_the_other_verdicts(said, score):
    assert read(said) == score


@pytest.mark.parametrize(
    "said",
    [
        *(
            "",
            None,
            "Both are good.",
            "Summary A is as good as Summary B.",
            "A or B",
            "Answer: A or B",
        ),
        *(
            "Answer: A/B",
            "A and B are equal",
            "A better summary would be shorter.",
            "I cannot say.",
        ),
        *(
            "Summary A is worse.",
            "Not A.",
            "[[A]] [[B]]",
            "A\nB",
            "C",
            "AB",
            "Answer: A\nAnswer: B",
        ),
        *('{"verdict": "neither"}', '{"verdict": "A"} {"verdict": "B"}', "Summary A isn't better"),
        "<think>A is better",  # thinking that has no end
        *("Summary B is less accurate.", "A is too long.", "Summary A omits the date."),
        *("I'd rate Summary A lower.", "The worst is A", "Summary A repeats itself."),
    ],
)
def test_what_names_both_or_neither_is_no_verdict(said):
    assert read(said) == "no verdict in the answer"


def test_the_template_says_what_a_tie_is():
    assert read("C", LETTERS) == read("[[C]]", LETTERS) == read("Answer: c", LETTERS) == 0.5
    assert read("tie", LETTERS) == read("tie", NO_TIES) == "no verdict in the answer"
    assert read("A", NO_TIES) == 1.0


def test_reasoning_that_is_kept_apart():
    kept = {"role": "assistant", "content": "B", "reasoning_content": "A is nice. Answer: A"}
    assert read(kept) == 0.0
    # Some servers take the whole answer for thinking.
    assert read({**kept, "content": None}) == 1.0
    assert read({**kept, "content": None, "reasoning_content": "A or B? Hm"}) != 1.0


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"choices": [{"message"', "broken answer"),
        ("<html>Sign in</html>", "broken answer"),
        ('{"error": {"message": "overloaded"}}', "broken answer"),
        ('{"choices": []}', "broken answer"),
        ('{"choices": null}', "broken answer"),
        ('{"choices": [{"message": null}]}', "broken answer"),
        ("[]", "broken answer"),
        ("null", "broken answer"),
        ('{"choices": [{"message": {"content": null, "refusal": "I will not."}}]}', "refused"),
        (
            '{"choices": [{"finish_reason": "content_filter", "message": {"content": ""}}]}',
            "filtered",
        ),
    ],
)
def test_replies_without_an_answer(text, reason):
    with pytest.raises(Fault) as caught:
        answers.read(text)
    assert caught.value.reason == reason


@pytest.mark.parametrize("said", ["A", "Summary A is better, but", "<think>Let me see", None, ""])
def test_an_answer_cut_off_is_no_verdict(said):
    assert read(said, finish="length") == "cut off"


def token(text, **top):
    """A token with probabilities of the likeliest ones."""
    listed = [{"token": t, "logprob": math.log(p)} for t, p in top.items()]
    return {"token": text, "logprob": math.log(top.get(text, 0.5)), "top_logprobs": listed}


def soft(said, tokens, template=SUMMARY, **more):
    return read(said, template, "logprobs", logprobs=tokens, **more)


def test_log_probabilities_of_the_labels():
    assert soft("A", [token("A", A=0.6, B=0.2)]) == pytest.approx(0.75)
    assert soft("B", [token("B", A=0.2, B=0.4, tie=0.4)]) == pytest.approx(0.4)
    assert soft("A", [token("A", A=0.5, B=0.25, C=0.25)], LETTERS) == pytest.approx(0.625)
    # Of what is no label nothing is taken; a label in other clothes is one.
    assert soft(
        " a", [token(" a", **{" a": 0.3, "A": 0.3, " B": 0.2, "The": 0.2})]
    ) == pytest.approx(0.75)
    assert soft("A", [token("A", A=0.9)]) == 1.0


def test_log_probabilities_where_the_verdict_stands():
    thought = [token("<think>"), token("B", B=0.9, A=0.1), token("</think>"), token("\n")]
    tokens = [*thought, token("Answer"), token(":"), token(" A", **{" A": 0.8, " B": 0.2})]
    assert soft("<think>B</think>\nAnswer: A", tokens) == pytest.approx(0.8)
    ended = [token("A", A=0.8, B=0.2), token("<|im_end|>")]  # the token that ends it is in no text
    assert soft("A", ended) == pytest.approx(0.8)
    in_json = [token('{"'), token("verdict"), token('":"'), token("B", A=0.3, B=0.7), token('"}')]
    assert soft('{"verdict":"B"}', in_json) == pytest.approx(0.3)


def test_log_probabilities_of_thinking_that_is_kept_apart():
    """Some servers list its tokens, too, which the content does not have."""
    said = {"role": "assistant", "content": "A", "reasoning_content": 'Is "A" it? No:'}
    thought = [token("Is"), token(' "'), token("A", A=0.1, B=0.9), token('" it? No:')]
    answered = [token("\n"), token("A", A=0.8, B=0.2), token("<|im_end|>")]
    assert soft(said, thought + answered) == pytest.approx(0.8)
    # White space around the answer is not in the content either.
    spaced = [token("\n"), token(" A", **{" A": 0.8, " B": 0.2}), token("\n")]
    assert soft(said, thought + spaced) == pytest.approx(0.8)
    lines = [token("Answer:"), token("\n"), token("A", A=0.8, B=0.2), token("\n")]
    assert soft("Answer:\nA", thought + lines) == pytest.approx(0.8)


def test_log_probabilities_of_a_single_token():
    """With max_tokens=1 the answer is always cut off, and may be another word."""
    assert soft("A", [token("A", A=0.6, B=0.2)], finish="length") == pytest.approx(0.75)
    assert soft("The", [token("The", The=0.5, A=0.3, B=0.1)], finish="length") == pytest.approx(
        0.75
    )
    assert soft("The", [token("The", The=0.95, A=0.03)], finish="length") == "cut off"
    assert soft("Both A and", [token("Both", Both=0.5, A=0.4), token(" A", **{" A": 1.0})]) != 1.0


def test_without_log_probabilities_the_text_counts():
    assert soft("Answer: B", None) == 0.0
    assert soft("Answer: B", []) == 0.0


def test_only_json_is_json():
    assert verdict.is_json('{"verdict": "A"}', SUMMARY)
    assert verdict.is_json('```json\n{"verdict": "tie"}\n```', SUMMARY)
    for other in ("A", '{"verdict": "X"}', 'Well: {"verdict": "A"}', json.dumps(["A"])):
        assert not verdict.is_json(other, SUMMARY)


def test_halves_of_surrogate_pairs_are_no_trouble():
    answer = answers.read('{"choices": [{"message": {"content": "A \\ud83d"}}]}')
    answer.raw.encode("utf-8")


@pytest.mark.parametrize("text", ["answer" + " " * 100_000, "*" * 100_000, "A " * 30_000 + "\n"])
def test_a_long_answer_is_read_in_time(text):
    """Linear, not quadratic: well below the seconds that a backtracking pattern takes."""
    began = time.perf_counter()
    verdict.parse(text, SUMMARY)
    assert time.perf_counter() - began < 20
