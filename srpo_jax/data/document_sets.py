"""Sets of documents from anywhere, and the table of those that are ready to use.

A set is one record: where the documents are, how a record of it becomes one, and whether the model was
trained on such documents (its role). In a configuration a set is written as the name of one of RECIPES, as
a file, or as a dictionary of DocumentSet's fields:

    config.evaluate.documents = ("tldr", {"source": "news.parquet", "fields": ("prompt=body", "gold=head")})
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_jax.data import columns, documents, records, reddit, sources
from srpo_jax.data.columns import Malformed, Unusable
from srpo_jax.data.documents import BUILT_IN, Document
from srpo_jax.data.records import Message, Record
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.settings import check, one_of, setting

IN, OUT = "in", "out"
_NAME = re.compile(r"\w[\w.+-]*")
_SUFFIXES = re.compile(r"(\.(jsonl|json|gz|parquet|array_record))+$")

# --- formats: a record -> a document, its id still empty where the record has none -------------------


def _documents(record: Record) -> Document:
    """prompt or messages, gold?, id?; of every format also about?, see `_about`.

    prompt: a text or a list of {"role", "content"}. gold: a text, or a conversation whose last words are
    the assistant's. messages: a conversation; if the assistant ends it, that is the gold.
    """
    prompt, gold = record.get("prompt"), record.get("gold")
    columns.check_texts({"prompt": prompt, "gold": gold})
    if prompt is None and record.get("messages") is not None:
        said = records.conversation(record["messages"], "messages")
        if said and said[-1].role == "assistant":
            said, gold = said[:-1], said[-1].content if gold is None else gold
        prompt = said
    elif isinstance(prompt, list | tuple):
        prompt = records.conversation(prompt, "prompt")
    if isinstance(gold, list | tuple):
        _, gold = records.last_answer(gold, "gold")
    if isinstance(prompt, tuple):
        if not prompt or prompt[-1].role == "assistant":
            raise Malformed("the prompt is a conversation that does not wait for the assistant")
    elif not isinstance(prompt, str):
        raise Malformed("'prompt' is missing or not a text")
    if gold is not None and not isinstance(gold, str):
        raise Malformed("'gold' is not a text")
    return Document(_id(record), prompt, gold)


def _tldr(record: Record) -> Document:
    """Posts of Reddit with the author's summary, put as the comparisons of configs/tldr.py are."""
    prompt, gold = reddit.summarized(record)
    post = record.get("info", record)
    named = {"id": post.get("id"), **record} if isinstance(post, Mapping) else record
    return _documents({"id": named.get("id"), "prompt": prompt, "gold": gold})


def _turns(record: Record) -> Document:
    """Questions as Arena-Hard and MT-Bench keep them: turns, texts or {"content"}; the first is asked.

    Of later turns nothing is asked: they would need the answers to earlier ones.
    """
    turns = record.get("turns")
    if not isinstance(turns, list | tuple) or not turns:
        raise Malformed("'turns' is missing or empty")
    first = turns[0].get("content") if isinstance(turns[0], Mapping) else turns[0]
    named = next((record[key] for key in ("id", "question_id", "uid") if record.get(key)), None)
    return _documents({"id": named, "prompt": first, "gold": record.get("gold")})


def _of_pairs(read: Callable[[Record], records.Pair]) -> Callable[[Record], Document]:
    """A format of training pairs: the prompt with the chosen completion as gold."""

    def document(record: Record) -> Document:
        pair = read(record)
        return Document(_id(record), pair.prompt, pair.chosen)

    return document


FORMATS: dict[str, Callable[[Record], Document]] = {
    **{name: _of_pairs(read) for name, read in records.FORMATS.items()},
    "documents": _documents,
    "tldr": _tldr,  # without a gold, too
    "turns": _turns,
}


def _id(record: Record) -> str:
    named = record.get("id")
    if isinstance(named, bool) or not isinstance(named, str | int | None):
        raise Malformed("'id' is neither a text nor a whole number")
    return "" if named is None else str(named)


# --- sets ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DocumentSet:
    """One set of documents."""

    source: str = setting(
        "",
        "a name of RECIPES, JSON lines, Parquet, array_record, a directory of `datasets`, "
        "hub:OWNER/NAME[:CONFIG][@REVISION] or tfds:NAME",
    )
    name: str = setting("", "in reports and of files; empty takes that of the source")
    role: str = setting(
        "", "whether such documents were trained on; empty: the first set was", one_of("", IN, OUT)
    )
    format: str = setting("documents", "how a record holds a document", one_of(*FORMATS))
    split: str = setting("", "of sources that have splits; empty takes the program's")
    fields: tuple[str, ...] = setting((), "other names, e.g. ('prompt=document', 'gold=summary')")
    text: str = setting(
        "", "the prompt made of several fields, e.g. '{article}\\n\\nFocus: {aspect}'"
    )
    template: str = setting("", "around the prompt, in place of config.data.template")

    def __post_init__(self) -> None:
        check(self, "config.evaluate.documents")
        if not self.source:
            raise UserError(
                "a set of documents has no source: name a file, or a data set of the hub"
            )
        if self.name and not _NAME.fullmatch(self.name):
            raise UserError(
                f"{self.name!r} cannot name a set of documents: letters, digits, '.', '_', '+' and '-'"
            )


# The public data sets, in the fields that they have there.
RECIPES = {
    **{name: DocumentSet(name, name) for name in BUILT_IN},
    # 6,553 test posts; id, subreddit, title, post, summary.
    "tldr": DocumentSet(
        "hub:vwxyzjn/summarize_from_feedback_tldr_3_filtered", "tldr", format="tldr"
    ),
    # 11,334 test articles; document, summary, id.
    "xsum": DocumentSet(
        "hub:EdinburghNLP/xsum", "xsum", fields=("prompt=document", "gold=summary")
    ),
    # 2,000 prompts; prompt, prompt_id, chosen, rejected, messages. What was chosen is a model's answer,
    # no gold.
    "ultrafeedback": DocumentSet(
        "hub:HuggingFaceH4/ultrafeedback_binarized",
        "ultrafeedback",
        split="test_prefs",
        fields=("id=prompt_id",),
    ),
    # 805 instructions; instruction, output, generator, dataset. The output is the reference model's.
    "alpaca_eval": DocumentSet(
        "hub:tatsu-lab/alpaca_eval:alpaca_eval",
        "alpaca_eval",
        split="eval",
        fields=("prompt=instruction", "gold=output"),
    ),
    # 500 questions; question_id, category, cluster, turns ([{content}]).
    "arena_hard": DocumentSet(
        "hub:lmarena-ai/arena-hard-auto-v0.1", "arena_hard", split="train", format="turns"
    ),
}


def resolve(entries: Sequence[str | DocumentSet], split: str) -> tuple[DocumentSet, ...]:
    """What the entries of config.evaluate.documents mean: every set with name, role and split.

    A dictionary's source may name a recipe, of which it changes what it says. Raises UserError where two
    sets have one name.
    """
    made: list[DocumentSet] = []
    for entry in entries:
        one = _completed(DocumentSet(entry) if isinstance(entry, str) else entry)
        role = one.role or (OUT if made else IN)
        made.append(dataclasses.replace(one, role=role, split=one.split or split))
    names = [one.name for one in made]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"two sets of documents are called {name!r}: give each a name of its own, "
                "{'source': …, 'name': …}"
            )
    return tuple(made)


def _completed(given: DocumentSet) -> DocumentSet:
    recipe = RECIPES.get(given.source)
    if recipe is None:
        return dataclasses.replace(given, name=given.name or _named_by(given.source))
    plain = DocumentSet(given.source)
    said = {
        field.name: getattr(given, field.name)
        for field in dataclasses.fields(given)
        if getattr(given, field.name) != getattr(plain, field.name)
    }
    return dataclasses.replace(recipe, **said)


def _named_by(source: str) -> str:
    """news of folder/news.jsonl.gz, hub:owner/news:config@revision and tfds:news/3.0.0."""
    last = source.removeprefix("tfds:").split("/")[0] if source.startswith("tfds:") else source
    if last.startswith("hub:"):
        last = last.removeprefix("hub:").partition("@")[0].partition(":")[0]
    last = Path(last).name
    return re.sub(r"[^\w.+-]", "_", _SUFFIXES.sub("", last)).lstrip(".+-") or "documents"


def read(chosen: DocumentSet, setting: str = "config.evaluate") -> list[Document]:
    """All documents of a set, in their order; ids are the records' own, else a hash of the content.

    setting: the section that names the set, for errors. Records without a text, and those equal to an
    earlier one, are left out and counted on standard error. Raises UserError naming the file and the
    record that is malformed, or has the id of another.
    """
    if chosen.source in BUILT_IN:
        return list(documents.load(chosen.source, chosen.split))
    found: list[Document] = []
    places: dict[str, str] = {}
    unusable: list[tuple[str, str]] = []
    for where, document, own in _located(chosen, setting, unusable):
        if document.id in places and own:
            raise UserError(f"{where}: the id {document.id!r} is that of {places[document.id]} too")
        if document.id in places:
            unusable.append((f"the same as {places[document.id]}", where))
            continue
        places[document.id] = where
        found.append(document)
    if unusable:
        reason, where = unusable[0]
        sources.say_left_out(chosen.source, len(unusable), where, reason)
    if not found:
        raise UserError(f"{chosen.source} holds no documents")
    return found


def _located(
    chosen: DocumentSet, setting: str, unusable: list[tuple[str, str]]
) -> Iterator[tuple[str, Document, bool]]:
    """(place, document, whether the id is the record's own); what is left out goes to `unusable`."""
    names = columns.mapping(chosen.fields, setting)
    for at, number, record in sources.read(chosen.source, chosen.split, setting, "documents"):
        where = f"{at}{number}"
        try:
            document = _read_record(record, chosen, names)
            _check(document)
        except Malformed as error:
            raise UserError(f"{where}: {error}") from error
        except Unusable as error:
            unusable.append((str(error), where))
            continue
        own = bool(document.id)
        if not own:
            document = dataclasses.replace(document, id=content_hash(document))
        yield where, dataclasses.replace(document, split=chosen.split), own


def _read_record(record: Any, chosen: DocumentSet, names: Mapping[str, str]) -> Document:
    if not isinstance(record, Mapping):
        raise Malformed(f"a document is a JSON object, not {type(record).__name__}")
    others = {ours: theirs for ours, theirs in names.items() if ours != "about"}
    renamed = columns.renamed(record, others, "fields")
    if chosen.text:
        try:
            renamed["prompt"] = chosen.text.format_map(renamed)
        except (KeyError, ValueError, IndexError, AttributeError) as error:
            raise Malformed(
                f"the text {chosen.text!r} cannot be made of it ({error!r}): it has "
                f"{columns.known(record)}"
            ) from error
    return dataclasses.replace(FORMATS[chosen.format](renamed), about=_about(record, names))


def _about(record: Record, names: Mapping[str, str]) -> str:
    """What the document is about, from a column that the prompt may be made of, too."""
    column = names.get("about", "about")
    if "about" in names and column not in record:
        raise Malformed(f"there is no {column!r} (fields): it has {columns.known(record)}")
    named = record.get(column)
    if isinstance(named, bool) or not isinstance(named, str | int | None):
        raise Malformed(f"{column!r}, what it is about, is neither a text nor a whole number")
    return "" if named is None else str(named)


def _check(document: Document) -> None:
    for name, text in (("prompt", document.text), ("gold", document.gold)):
        if text is not None and not text.strip():
            raise Unusable(f"its {name} is empty")
        columns.check_characters(name, text or "")


def content_hash(document: Document) -> str:
    """16 hexadecimal digits of a hash of prompt and gold."""
    content = json.dumps([_plain(document.prompt), document.gold], ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _plain(prompt: str | tuple[Message, ...]) -> Any:
    return prompt if isinstance(prompt, str) else [dataclasses.asdict(m) for m in prompt]


def to_json(document: Document) -> dict[str, Any]:
    """What `from_json` reads."""
    said = {"id": document.id, "prompt": _plain(document.prompt), "gold": document.gold}
    return said | ({"about": document.about} if document.about else {})


def from_json(record: Mapping[str, Any]) -> Document:
    """A document as `to_json` wrote it."""
    return dataclasses.replace(_documents(record), about=_about(record, {}))
