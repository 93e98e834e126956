"""Several reports in one: the same documents, more models, all differences made anew."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.codec import from_json
from srpo_jax.reporting.data import Report, Rules
from srpo_jax.reporting.evidence import Documents, Evidence, JudgeRecord, Texts
from srpo_jax.reporting.verdicts import VerdictTable
from srpo_jax.runtime import storage
from srpo_jax.runtime.errors import UserError

FILE = "results.json"


def read(place: str | Path) -> Report:
    """The report in a folder, or in a results file, gzipped or not. Raises UserError where none is."""
    given = storage.place(place)
    path = given if given.name.endswith((".json", ".json.gz")) else given / FILE
    try:
        content = path.read_bytes()
        if path.name.endswith(".gz"):
            content = gzip.decompress(content)
        return from_json(content.decode())
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(
            f"{path} is not gzipped, or is damaged: name the results of a report"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text: name the results of a report") from error
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}): name the folder of a report"
        ) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def compare(folders: Sequence[str | Path], *, title: str, joined: bool = False) -> Report:
    """One report of all models of the reports in `folders`, see `read`.

    A set of documents that several have must have the same documents; models written alike in several
    (the start policy) are shown once, models of one name that wrote different texts are told apart by
    their folder. joined: of models of one name that have no set in common it is said that they are one.
    Raises UserError for fewer than two folders, for documents, their roles, judges or rules that differ,
    and, unless joined, for models of one name of which no set shows whether they are one.
    """
    flag = "--join" if joined else "--compare"
    if len(folders) < 2:
        raise UserError(f"{flag} needs at least two folders of reports")
    names = short_names(folders)
    found = [read(folder) for folder in folders]
    reports = [each.evidence for each in found]
    if not joined:
        for model in dict.fromkeys(model for each in reports for model in each.models):
            _require_shown(model, reports, names)
    sets = _sets(reports, names)
    texts: dict[tuple[str, str], Texts] = {}
    tables: dict[object, VerdictTable] = {}
    renamed = [_told_apart(each, i, reports, names) for i, each in enumerate(reports)]
    for each in renamed:
        for written in each.texts:
            texts.setdefault((written.model, written.documents), written)
        for table in each.tables:
            tables.setdefault(table.key, table)
    evidence = Evidence(
        title=title,
        sets=sets,
        texts=tuple(texts.values()),
        tables=tuple(tables.values()),
        judges=common_judges(reports, names),
        facts=common_facts(reports, names),
        command=f"python -m srpo_jax.evaluate {flag} {' '.join(map(str, folders))}",
    )
    made = assemble(evidence, common_rules([each.rules for each in found], names))
    said = {name: decoding(each) for each, name in zip(reports, names, strict=True)}
    if len(set(filter(None, said.values()))) < 2:
        return made
    how = "; ".join(f"{name} {one or 'unknown'}" for name, one in said.items())
    return replace(made, notes=made.notes | {"decoding": f"Not all were decoded alike: {how}."})


def common_facts(parts: Sequence[Evidence], names: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The facts and the command of all, each behind its report's name."""
    return tuple(
        (f"{name}: {label}", value)
        for name, part in zip(names, parts, strict=True)
        for label, value in (*part.facts, ("command", part.command))
    )


def common_rules(rules: Sequence[Rules], names: Sequence[str]) -> Rules:
    """The rules of all; UserError where they differ."""
    for each, name in zip(rules, names, strict=True):
        if each.missing_as_ties != rules[0].missing_as_ties:
            raise UserError(
                f"one of {names[0]} and {name} counts missing verdicts as ties, the other leaves them out: "
                "report both with the same config.judge.missing"
            )
    return rules[0]


def short_names(folders: Sequence[str | Path]) -> list[str]:
    """Short and distinct: the workdir's name where the folder is its `report`, else the whole path."""
    paths = [storage.absolute(storage.place(folder)) for folder in folders]
    short = [
        path.parent.name if path.name == "report" else path.name.partition(".json")[0]
        for path in paths
    ]
    return [
        name if short.count(name) == 1 else str(folder)
        for name, folder in zip(short, folders, strict=True)
    ]


def _sets(reports: Sequence[Evidence], names: Sequence[str]) -> tuple[Documents, ...]:
    found: dict[str, tuple[Documents, str]] = {}
    templates: dict[str, dict[str, str]] = {}
    for each, name in zip(reports, names, strict=True):
        for documents in each.sets:
            first, owner = found.setdefault(documents.name, (documents, name))
            templates.setdefault(documents.name, {})[name] = documents.template
            if first.ids != documents.ids:
                raise UserError(
                    f"{owner} and {name} judge different documents of {documents.name!r} "
                    f"({_first_difference(first.ids, documents.ids)}): evaluate both on the same"
                )
            if (first.golds, first.prompts) != (documents.golds, documents.prompts):
                raise UserError(
                    f"{owner} and {name} have other texts or golds under the same ids of "
                    f"{documents.name!r}: evaluate both on the same documents"
                )
            if first.role != documents.role:
                raise UserError(
                    f"{documents.name!r} is {first.role} in {owner} and {documents.role} in {name}: give "
                    "it the same `role` (config.evaluate.documents) in both"
                )
    return tuple(
        replace(documents, template=common_template(templates[documents.name]))
        for documents, _ in found.values()
    )


def decoding(evidence: Evidence) -> str:
    """What the texts depend on of how they were decoded, as `evaluate` says it; "" where nothing does."""
    said = dict(evidence.facts).get("decoding", "").split(", ")
    return ", ".join(one for one in said if one.split(" ")[0] not in ("batch_size", "refill"))


def common_template(templates: Mapping[str, str]) -> str:
    """How prompts were put in all reports; where that differs, in each. templates: by report."""
    if len(set(templates.values())) == 1:
        return next(iter(templates.values()))
    return ", ".join(f"{template or 'unknown'} ({name})" for name, template in templates.items())


def _first_difference(a: Sequence[str], b: Sequence[str]) -> str:
    if len(a) != len(b):
        return f"{len(a):,} and {len(b):,} of them"
    i = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    return f"number {i} is {a[i]!r} in one and {b[i]!r} in the other"


def common_judges(reports: Sequence[Evidence], names: Sequence[str]) -> tuple[JudgeRecord, ...]:
    """Each judge once, costs added; UserError where one name stands for two judges."""
    found: dict[str, tuple[JudgeRecord, str]] = {}
    for each, name in zip(reports, names, strict=True):
        for judge in each.judges:
            if judge.name not in found:
                found[judge.name] = (judge, name)
                continue
            first, owner = found[judge.name]
            if first.identity != judge.identity:
                raise UserError(
                    f"the judge {judge.name!r} of {owner} has another description, prompt or parameters "
                    f"than that of {name}: their verdicts cannot be compared"
                )
            costs = {
                item: first.cost.get(item, 0.0) + judge.cost.get(item, 0.0)
                for item in (*first.cost, *judge.cost)
            }
            found[judge.name] = (replace(first, cost=costs), owner)
    return tuple(judge for judge, _ in found.values())


def _told_apart(
    evidence: Evidence, index: int, reports: Sequence[Evidence], names: Sequence[str]
) -> Evidence:
    """The evidence with models renamed "model (report)" where another report's of that name differ."""
    others = [each for i, each in enumerate(reports) if i != index]
    new = {
        model: f"{model} ({names[index]})"
        for model in evidence.models
        if any(model in other.models and not _same(model, evidence, other) for other in others)
    }
    if not new:
        return evidence
    return replace(
        evidence,
        texts=tuple(
            replace(each, model=new.get(each.model, each.model)) for each in evidence.texts
        ),
        tables=tuple(
            replace(
                each,
                key=replace(
                    each.key,
                    model=new.get(each.key.model, each.key.model),
                    opponent=new.get(each.key.opponent, each.key.opponent),
                ),
            )
            for each in evidence.tables
        ),
    )


def _require_shown(model: str, reports: Sequence[Evidence], names: Sequence[str]) -> None:
    """UserError for a model of several reports that no chain of sets links, on which texts could differ."""
    written = {
        name: {each.documents for each in report.texts if each.model == model}
        for report, name in zip(reports, names, strict=True)
        if model in report.models
    }
    first, *others = written
    linked = written[first]
    while nearer := [name for name in others if written[name] & linked]:
        others = [name for name in others if name not in nearer]
        linked = linked.union(*(written[name] for name in nearer))
    if others:
        raise UserError(
            f"{model!r} of {first} and of {others[0]} may be two models: they have no set of documents in "
            "common that would show it; give one another name (config.evaluate.models), or, if they are "
            "one, put the reports together with --join"
        )


def _same(model: str, a: Evidence, b: Evidence) -> bool:
    """Whether a model wrote the same in both, on every set that both have it on."""
    first = {each.documents: each.revisions for each in a.texts if each.model == model}
    second = {each.documents: each.revisions for each in b.texts if each.model == model}
    return all(first[name] == second[name] for name in first.keys() & second.keys())
