"""Several reports in one: the same models, other documents each. Parts of a set, or seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.compare import (
    common_facts,
    common_judges,
    common_rules,
    common_template,
    decoding,
    read,
    short_names,
)
from srpo_jax.reporting.data import Report
from srpo_jax.reporting.evidence import Documents, Evidence, Texts
from srpo_jax.reporting.student import mean_of
from srpo_jax.reporting.verdicts import VerdictTable
from srpo_jax.reporting.wording import percent, points
from srpo_jax.runtime.errors import UserError


def pool(folders: Sequence[str | Path], *, title: str) -> Report:
    """One report of all documents of the reports in `folders` (see `compare.read`), models by name.

    A model of one name may have other weights in each: trained with another seed, say. Intervals and tests
    are over documents, as if all of one part's had not the same weights in common: what other seeds would
    bring is not in them. It is in the facts: the change from y_0 in each part, and its mean over parts with
    Student's interval. Raises UserError for fewer than two folders, a document that two reports have,
    and reports whose models, sets, comparisons, decoding, judges or rules differ.
    """
    if len(folders) < 2:
        raise UserError("--pool needs at least two folders of reports")
    names = short_names(folders)
    found = [read(folder) for folder in folders]
    parts = [each.evidence for each in found]
    for part, name in zip(parts[1:], names[1:], strict=True):
        _require_alike(parts[0], part, names[0], name)
    evidence = Evidence(
        title=title,
        sets=tuple(_set(parts, names, each.name) for each in parts[0].sets),
        texts=tuple(_texts(parts, each) for each in parts[0].texts),
        tables=tuple(_table(parts, each) for each in parts[0].tables),
        judges=common_judges(parts, names),
        facts=(*_changes(found, names), *common_facts(parts, names)),
        command=f"python -m srpo_jax.evaluate --pool {' '.join(map(str, folders))}",
    )
    made = assemble(evidence, common_rules([each.rules for each in found], names))
    return replace(
        made, notes=made.notes | {"interval": f"{made.notes['interval']} of these parts"}
    )


def _changes(found: Sequence[Report], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """A fact of each comparison: first and last win rate of each part, and their mean change over parts."""
    for curve in found[0].curves:
        own = [next(c for c in each.curves if c.key == curve.key) for each in found]
        ends = [(each.cells[0].rate, each.cells[-1].rate) for each in own]
        gains = [each.gain(part) for each, part in zip(found, own, strict=True)]
        said = [
            f"{name} {percent(first.mean)} to {percent(last.mean)} % ({points(gain.mean)})"
            for name, (first, last), gain in zip(names, ends, gains, strict=True)
            if first and last and gain
        ]
        if len(said) < len(found):
            continue  # nothing is revised, or nobody judged it
        change = mean_of([gain.mean for gain in gains if gain])
        key, ends_at = curve.key, f"{points(change.low)} to {points(change.high)}"
        yield (
            f"by part: {key.model} on {key.documents}, {key.judge} against {key.opponent}",
            f"{'; '.join(said)}; over parts {points(change.mean)} ({ends_at}, 95 % by Student's t)",
        )


def _require_alike(first: Evidence, other: Evidence, name: str, other_name: str) -> None:
    """UserError that names the first thing that one of the two has and the other has not."""
    for what, one, two in (
        ("set", _described(first), _described(other)),
        ("model", _written(first), _written(other)),
        ("comparison", {str(t.key) for t in first.tables}, {str(t.key) for t in other.tables}),
    ):
        if one != two:
            odd = min(one ^ two)
            has, lacks = (name, other_name) if odd in one else (other_name, name)
            raise UserError(
                f"{has} has the {what} {odd} and {lacks} has not: only reports with the same sets, "
                "models and comparisons can be pooled"
            )
    mine, theirs = decoding(first), decoding(other)
    if mine and theirs and mine != theirs:
        raise UserError(
            f"{name} was decoded with {mine} and {other_name} with {theirs}: one rate of both would be "
            "neither's"
        )


def _described(evidence: Evidence) -> set[str]:
    return {f"{each.name!r} ({each.role})" for each in evidence.sets}


def _written(evidence: Evidence) -> set[str]:
    return {
        f"{each.model!r} on {each.documents!r}, {each.count - 1} times revised"
        for each in evidence.texts
    }


def _set(parts: Sequence[Evidence], names: Sequence[str], name: str) -> Documents:
    owner: dict[str, str] = {}
    for part, whose in zip(parts, names, strict=True):
        for one in part.set(name).ids:
            if one in owner:
                raise UserError(
                    f"{owner[one]} and {whose} both have the document {one!r} of {name!r}: pool reports "
                    "on different documents (config.evaluate.skip), or --compare these"
                )
        owner |= dict.fromkeys(part.set(name).ids, whose)
    sets = [part.set(name) for part in parts]
    return replace(
        sets[0],
        ids=tuple(owner),
        prompts=tuple(prompt for each in sets for prompt in each.prompts),
        golds=tuple(gold for each in sets for gold in each.golds),
        about=tuple(key for each in sets for key in each.subjects),
        template=common_template(
            {whose: each.template for whose, each in zip(names, sets, strict=True)}
        ),
    )


def _texts(parts: Sequence[Evidence], first: Texts) -> Texts:
    every = [part.written(first.model, first.documents) for part in parts]
    return replace(
        first,
        revisions=tuple(entries for each in every for entries in each.revisions),
        cut=tuple(entries for each in every for entries in each.cut)
        if all(each.cut for each in every)
        else (),
    )


def _table(parts: Sequence[Evidence], first: VerdictTable) -> VerdictTable:
    every = [table for part in parts if (table := part.table(first.key))]
    orders = [table.orders for table in every if table.orders is not None]
    offsets = np.cumsum([0, *(len(table.probabilities) for table in every)])
    return VerdictTable(
        first.key,
        np.concatenate([table.probabilities for table in every]),
        np.concatenate(orders, axis=1) if len(orders) == len(every) else None,
        tuple(
            replace(entry, document=entry.document + int(offset))
            for table, offset in zip(every, offsets, strict=False)
            for entry in table.missing
        ),
    )
