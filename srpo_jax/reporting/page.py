"""The report as one HTML file: nothing loaded from elsewhere, all text escaped, texts drawn on demand."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2

from srpo_jax.reporting import summary
from srpo_jax.reporting.data import Curve, Difference, Report, judged, opponent_phrase
from srpo_jax.reporting.evidence import Documents, JudgeCheck, Texts
from srpo_jax.reporting.figure import Look, draw_apart, looks
from srpo_jax.reporting.table import gold_words, judge_facts, judge_lines
from srpo_jax.reporting.texts import unchanged
from srpo_jax.reporting.verdicts import VerdictTable, nulls
from srpo_jax.reporting.wording import fixed, p_value, percent, points, span

_DIGITS = 4  # of a probability in the page; results.json has all


def render(report: Report) -> str:
    """The HTML page. It has every text once, as JSON that a small script shows row by row."""
    evidence, styles = report.evidence, looks(report.evidence.models)
    data, script = _data(report, styles), _asset("page.js")
    views = [_view(report, view, styles) for view in report.views]
    facts = [*evidence.facts, *_templates(evidence.sets)]
    return (
        _environment()
        .from_string(_asset("page.html"))
        .render(
            report=report,
            evidence=evidence,
            style=_asset("page.css"),
            script=script,
            script_hash=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
            data=data,
            looks=styles,
            findings=summary.findings(report),
            warnings=summary.warnings(report),
            views=views,
            styles=[_styles(report, each) for each in report.sets if report.styled(each.name)],
            judges=[
                {
                    "record": each,
                    "lines": [*judge_facts(each), *judge_lines(report, each)],
                    "checks": _pivot(each.checks),
                }
                for each in evidence.judges
            ],
            facts=facts,
            size=_size(report, data, views),
        )
    )


def _asset(name: str) -> str:
    return (resources.files("srpo_jax.reporting") / "assets" / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "percent": percent,
        "points": points,
        "fixed": fixed,
        "p_value": p_value,
        "ends": lambda record: span(record.low, record.high),
        "sentence": lambda text: text[:1].upper() + text[1:] + ".",
    }
    return environment


def _view(report: Report, view: tuple[str, str], styles: dict[str, Look]) -> dict[str, Any]:
    """One (judge, opponent): its pictures and the curves of each set."""
    shown = [each for each in report.sets if report.on(each.name, view)]
    pictures = draw_apart(report, view)
    return {
        "judge": next(each for each in report.evidence.judges if each.name == view[0]),
        "against": opponent_phrase(view[1]),
        "pictures": [
            {
                "data": base64.b64encode(pictures[documents.name]).decode("ascii"),
                "text": _describe(documents, report.on(documents.name, view), styles),
            }
            for documents in shown
        ],
        "parts": [_part(report, view, documents) for documents in shown],
    }


def _describe(documents: Documents, curves: Sequence[Curve], styles: dict[str, Look]) -> str:
    """What a picture shows, for those who cannot see it."""
    lines = (
        f"{styles[curve.key.model].label}: "
        + ", ".join(percent(cell.rate.mean, 0) if cell.rate else "none" for cell in curve.cells)
        for curve in curves
    )
    return f"Win rate in % on {documents.name} after 0, 1, … revisions. " + "; ".join(lines)


def _part(report: Report, view: tuple[str, str], documents: Documents) -> dict[str, Any]:
    """The tables of one (judge, opponent) on one set; differences at the last revision first."""
    curves = report.on(documents.name, view)
    last = {curve.key.model: len(curve.cells) - 1 for curve in curves}

    def at_the_end(each: Difference) -> bool:
        return each.revision == min(last[each.model], last[each.baseline])

    differences = report.compared(documents.name, view)
    return {
        "documents": documents,
        "judged": judged(curves),
        "curves": curves,
        "by_model": {curve.key.model: curve for curve in curves},
        "ks": range(max(last.values()) + 1),
        "last": [each for each in differences if at_the_end(each)],
        "other": [each for each in differences if not at_the_end(each)],
    }


def _styles(report: Report, documents: Documents) -> dict[str, Any]:
    styles = report.styled(documents.name)
    return {
        "documents": documents,
        "gold": gold_words(documents),
        "styles": styles,
        "ks": range(max(len(style.mean_words) for style in styles)),
    }


def _pivot(
    checks: Sequence[JudgeCheck],
) -> tuple[list[str], list[tuple[str, list[JudgeCheck | None]]]]:
    """Document sets as columns, damages as rows."""
    columns = list(dict.fromkeys(check.documents for check in checks))
    damages = dict.fromkeys(check.damage for check in checks)
    found = {(check.damage, check.documents): check for check in checks}
    return columns, [
        (damage, [found.get((damage, column)) for column in columns]) for damage in damages
    ]


def _templates(sets: Sequence[Documents]) -> list[tuple[str, str]]:
    return [(f"template of {each.name}", each.template) for each in sets if each.template]


def _size(report: Report, data: str, views: Sequence[dict[str, Any]]) -> str:
    documents = sum(len(each.ids) for each in report.evidence.sets)
    completions = sum(len(each.revisions) * each.count for each in report.evidence.texts)
    pictures = sum(len(picture["data"]) for view in views for picture in view["pictures"])
    megabytes = (len(data.encode()) + pictures) / 1e6
    return (
        f"{documents:,} documents with {completions:,} completions; this file has about "
        f"{fixed(megabytes)} MB."
    )


def _data(report: Report, styles: dict[str, Look]) -> str:
    """What page.js reads, as JSON in which no "<" can end the script element."""
    evidence, judges = report.evidence, [each.name for each in report.evidence.judges]
    names = [each.name for each in report.sets]
    value = {
        "models": [
            {"label": styles[model].label, "colour": styles[model].colour}
            for model in evidence.models
        ],
        "judges": judges,
        "views": [
            {"judge": judges.index(judge), "opponent": other, "against": opponent_phrase(other)}
            for judge, other in report.views
        ],
        "sets": [_set(report, each) for each in report.sets],
        "tables": [
            {
                "set": names.index(table.key.documents),
                "model": evidence.models.index(table.key.model),
                "judge": judges.index(table.key.judge),
                "opponent": table.key.opponent,
                **_verdicts(table),
            }
            for table in evidence.tables
        ],
    }
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text


def _set(report: Report, documents: Documents) -> dict[str, Any]:
    evidence = report.evidence
    written = {
        str(evidence.models.index(each.model)): _texts(each)
        for each in evidence.texts
        if each.documents == documents.name
    }
    return {
        "name": documents.name,
        "role": documents.role,
        "ids": documents.ids,
        "prompts": documents.prompts,
        "golds": documents.golds,
        "written": written,
    }


def _texts(texts: Texts) -> dict[str, Any]:
    """Texts with None for a revision that equals the one before it, and marks of those cut off."""
    return {
        "texts": [
            [None if unchanged(ys, k) else y for k, y in enumerate(ys)] for ys in texts.revisions
        ],
        "cut": [[int(mark) for mark in marks] for marks in texts.cut] or None,
    }


def _verdicts(table: VerdictTable) -> dict[str, Any]:
    return {
        "p": nulls(table.probabilities, _DIGITS),
        "orders": None if table.orders is None else nulls(table.orders, _DIGITS),
        "missing": {f"{each.document},{each.revision}": each.reason for each in table.missing},
    }
