"""Which of two an answer prefers: from log-probabilities, from JSON, from what models write.

A verdict is a number in [0, 1], the preference for what was shown first: A 1, B 0, a tie 1/2.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from srpo_jax.judges.judge import GRID
from srpo_jax.judges.llm.answer import CUT, UNPARSABLE, Answer, Fault
from srpo_jax.judges.llm.prompts import Template

_NOUN = r"(?:summary|response|answer|option|completion|text|candidate|choice|assistant|version)"
_MARKS = " \t\r\n*_`\"'“”‘’()[]{}<>.:;,!#~=-–—|$\\"
# Repeats are bounded: a pattern that may begin anywhere would try every length of a long run of blanks.
_OPENING = r"[\s*_`\"'“(\[{<]{0,12}"
# "Answer: B", "my verdict is **A**", "Preferred: Summary A".
_STATED = (
    r"(?:answer|verdict|decision|judge?ment|preferred|preference|choice|winner|better|best)\b"
    r"(?:\s{1,9}(?:one|" + _NOUN + r"))?" + r"[*_`\"')\]]{0,9}\s{0,9}(?:\bis\b|:|=)" + _OPENING
)
_KEYS = ("verdict", "answer", "winner", "preferred", "choice", "better")
_DOUBT = re.compile(
    r"\b(?:not|never|neither|nor|cannot|both|worse|worst|inferior|unsure|unclear|unable)\b|n['’]t\b",
    re.IGNORECASE,
)
# "Summary A is too long" names what is blamed; "A is better, with fewer errors" does not.
_PRAISE = re.compile(
    r"\b(?:better|best|prefer\w*|choose|chose|pick|favou?r\w*|superior|wins?|winner|tie)\b", re.I
)
_FAULT = re.compile(
    r"\b(?:too|less|lower|weak\w*|poor\w*|wrong|incorrect|inaccura\w+|imprecise|incomplete|unfinished|"
    r"unsupported|misleading|misstates?|vague|wordy|verbose|redundant|repeat\w*|repetiti\w+|lack\w*|"
    r"misses|missing|omit\w*|fail\w*|errors?|mistakes?|invent\w*|hallucinat\w*|contradict\w*)\b",
    re.I,
)
# What follows a lone "A" that is the label and not the article.
_VERB = r"(?:is|was|wins|does|has|and|or|over|because|since|seems|than|as|by|would|gets|reads)\b"
_ARTICLE = rf"(?<=\bA)\s{{1,9}}(?!{_VERB})[A-Za-z]"


class Label(NamedTuple):
    """A label of the template, and where in the text it stands; start -1: nowhere in particular."""

    name: str
    start: int


def read(answer: Answer, template: Template, mode: str, label_mass: float) -> float:
    """The verdict. mode: "logprobs", "json" or "text"; Fault where there is none."""
    found = parse(answer.content, template)
    if mode == "logprobs" and answer.tokens:
        soft = _soft(answer, template, found, label_mass)
        if soft is not None:
            return soft
    if answer.cut:
        raise Fault(CUT, f"by the limit of tokens: {_end(answer)}")
    if found is None and not answer.content.strip() and answer.reasoning.strip():
        # Some servers take the whole answer for thinking: what it ends with counts.
        found = parse(answer.reasoning.strip().splitlines()[-1], template)
    if found is None:
        raise Fault(UNPARSABLE, _end(answer))
    return _SCORES.get(found.name, 0.5)


_SCORES = {"A": 1.0, "B": 0.0}


def _end(answer: Answer) -> str:
    said = answer.raw or answer.reasoning
    return " ".join(said.split())[-300:] or "the answer is empty"


def parse(text: str, template: Template) -> Label | None:
    """The one label that a text gives as its answer; None where it names several, or none."""
    for reader in (_from_json, _bare, _bracketed, _stated, _lines, _named):
        labels = reader(text, template)
        if labels:
            return labels[-1] if len({label.name for label in labels}) == 1 else None
    return None


def is_json(text: str, template: Template) -> bool:
    """Whether an answer is JSON with a verdict, and nothing else."""
    bare = text.strip().removeprefix("```json").strip("`\n ")
    return bare[:1] == "{" and bare[-1:] == "}" and bool(_from_json(bare, template))


def _match(text: str, template: Template) -> str | None:
    """The label that a text is, marks around it apart, in either case."""
    bare = re.sub(rf"^{_NOUN}\s+", "", text.strip(_MARKS), flags=re.IGNORECASE).strip(_MARKS)
    return next((label for label in template.labels if bare.lower() == label.lower()), None)


def _place(text: str, label: str, start: int = 0) -> int:
    """Where a label stands in a text that has it; a letter as a word of its own."""
    found = re.search(rf"(?<!\w){re.escape(label)}(?!\w)", text[start:], re.IGNORECASE)
    return start + found.start() if found else -1


def _bare(text: str, template: Template) -> list[Label]:
    label = _match(text, template)
    # "Answer A": the last, as `_match` leaves the noun out.
    places = list(re.finditer(rf"(?<!\w){re.escape(label)}(?!\w)", text, re.I)) if label else []
    return [Label(label, places[-1].start() if places else -1)] if label else []


def _from_json(text: str, template: Template) -> list[Label]:
    """{"verdict": "A"}, also in a fence or behind other words."""
    found = []
    for part in re.finditer(r"\{[^{}]*\}", text):
        try:
            values = json.loads(part[0])
        except ValueError:
            continue
        for key in _KEYS:
            label = _match(str(values.get(key, "")), template) if isinstance(values, dict) else None
            if label:
                colon = text.find(":", text.find(f'"{key}"', part.start()))
                found.append(Label(label, _place(text, label, colon)))
                break
    return found


def _bracketed(text: str, template: Template) -> list[Label]:
    """[[A]], as the arenas write it, or \\boxed{A}."""
    return _matches(re.finditer(r"(?:\[\[|\\boxed\{)([^\[\]{}]*)[\]}]", text), template)


def _stated(text: str, template: Template) -> list[Label]:
    """ "Answer: B", "the better summary is A"; in lower case at the end of a line only."""
    names = "|".join(map(re.escape, template.labels))
    subject = rf"(?i:{_STATED}(?:an?\s{{1,9}})?(?:{_NOUN}\s{{1,9}}{_OPENING})?)"
    one = rf"({names})(?!\w)(?!\s{{0,9}}(?:[,/&|+]|\b(?i:or|and)\b)\s{{0,9}}(?i:{names})\b)"
    within = re.compile(rf"{subject}{one}(?!{_ARTICLE})")
    ended = re.compile(rf"{subject}((?i:{names}))[\s*_`\"')\]}}.!]{{0,12}}$", re.MULTILINE)
    found = _matches(within.finditer(text), template) + _matches(ended.finditer(text), template)
    return sorted(found, key=lambda label: label.start)


def _lines(text: str, template: Template) -> list[Label]:
    """The lines that are a label and nothing else, if the first or the last is one."""
    lines = [line for line in re.finditer(r"[^\n]+", text) if line[0].strip(_MARKS)]
    labels = [_match(line[0], template) for line in lines]
    if not lines or not (labels[0] or labels[-1]):
        return []
    return [
        Label(label, _place(text, label, line.start()))
        for line, label in zip(lines, labels, strict=True)
        if label
    ]


def _named(text: str, template: Template) -> list[Label]:
    """ "Summary A is better": all labels a text names, unless it doubts, or finds faults alone."""
    if _DOUBT.search(text) or (_FAULT.search(text) and not _PRAISE.search(text)):
        return []
    found = []
    for letter in (label for label in template.labels if len(label) == 1):
        word = rf"(?<![\w'’])({letter})(?![\w'’])"
        after_noun = rf"(?i:\b{_NOUN})\s{{1,9}}{_OPENING}({letter})(?![\w'’])"
        found += _matches(re.finditer(after_noun, text), template)
        found += _matches(re.finditer(rf"{word}(?!{_ARTICLE})", text), template)
    for label in (label for label in template.labels if len(label) > 1):
        found += _matches(re.finditer(rf"(?<!\w)({re.escape(label)})(?!\w)", text, re.I), template)
    return sorted(found, key=lambda label: label.start)


def _matches(found: Iterable[re.Match[str]], template: Template) -> list[Label]:
    labels = ((_match(match[1], template), match.start(1)) for match in found)
    return [Label(label, start) for label, start in labels if label]


def _soft(
    answer: Answer, template: Template, found: Label | None, label_mass: float
) -> float | None:
    """P(A) + P(tie) / 2 of the labels where the verdict stands; None where there is no such place.

    That is where `parse` found it. An answer of one word needs not be a label, if labels were likely.
    """
    words = [t for t in answer.tokens if t.start >= answer.offset and t.text.strip(_MARKS)]
    if found is not None and found.start >= 0:
        place = answer.offset + found.start
        at = next((t for t in words if t.start <= place < t.start + len(t.text)), None)
    else:
        at = words[0] if len(words) == 1 else None
    if at is None or (answer.cut and at is not words[0]):  # a cut answer may have gone on otherwise
        return None
    mass = dict.fromkeys(template.labels, 0.0)
    for text, logprob in at.top:
        label = _token_label(text, template)
        if label:
            mass[label] += math.exp(min(logprob, 0.0))
    whole = sum(mass.values())
    if not whole or (found is None and whole < label_mass):
        return None
    soft = (mass["A"] + (mass[template.tie] / 2 if template.tie else 0.0)) / whole
    return round(soft * GRID) / GRID


def _token_label(token: str, template: Template) -> str | None:
    """The label that a token is, or of a longer one the beginning."""
    bare = token.strip(_MARKS).lower()
    for label in template.labels:
        if bare and (bare == label.lower() or (len(label) > 1 and label.lower().startswith(bare))):
            return label
    return None
