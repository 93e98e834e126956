"""The report as one HTML file: no script, nothing loaded from elsewhere, all text escaped."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import jinja2

from srpo_jax.reporting.data import Curve, JudgeCheck, Report, Sample
from srpo_jax.reporting.figure import Look, looks


@dataclass(frozen=True)
class _Row:
    """Revision k of one sample: a cell per method, None where a method has no revision k."""

    k: int
    cells: tuple["_Cell | None", ...]


@dataclass(frozen=True)
class _Cell:
    method: Look
    text: str
    probability: float
    unchanged: bool


def render(report: Report, picture: bytes) -> str:
    """The HTML page; `picture` is the PNG that `report_figure.draw` returns."""
    styles = looks(report)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f}"
    return environment.from_string(_PAGE).render(
        report=report,
        style=_STYLE,
        picture=base64.b64encode(picture).decode("ascii"),
        picture_text=_describe(report.curves, styles),
        sets=[(name, report.on(name), report.revisions(name)) for name in report.documents],
        looks=styles,
        checks=_pivot(report.checks),
        samples=_group(report.samples, styles),
    )


def _describe(curves: Sequence[Curve], styles: dict[str, Look]) -> str:
    """What the picture shows, for those who cannot see it."""
    parts = (
        f"{styles[curve.method].label} on {curve.documents}: "
        + ", ".join(f"{100 * rate.mean:.0f}" for rate in curve.win_rates)
        for curve in curves
    )
    return "Win rate in % against the human gold after 0, 1, … revisions. " + "; ".join(parts)


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


def _group(
    samples: Sequence[Sample], styles: dict[str, Look]
) -> list[tuple[str, list[tuple[Sample, list[_Row]]]]]:
    names = dict.fromkeys(sample.documents for sample in samples)
    return [
        (name, [(each, _rows(each, styles)) for each in samples if each.documents == name])
        for name in names
    ]


def _rows(sample: Sample, styles: dict[str, Look]) -> list[_Row]:
    count = max((len(texts) for texts in sample.revisions.values()), default=0)
    return [
        _Row(k, tuple(_cell(sample, name, k, styles[name]) for name in sample.revisions))
        for k in range(count)
    ]


def _cell(sample: Sample, method: str, k: int, look: Look) -> _Cell | None:
    texts = sample.revisions[method]
    if k >= len(texts):
        return None
    unchanged = k > 0 and texts[k] == texts[k - 1]
    return _Cell(look, texts[k], sample.probabilities[method][k], unchanged)


_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c1f23; --soft: #5b636c; --line: #dfe3e8;
  --panel: #f6f7f9; --gold: #fff7dd; --gold-line: #d9b53f; --bar: #8a94a0; --warn: #fdf0e6;
  --warn-line: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --ink: #e6e8ea; --soft: #a0a8b0;
  --line: #30363c; --panel: #1c2024; --gold: #2b2614; --gold-line: #a98a2a; --bar: #77818c;
  --warn: #2d2117; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--page);
  color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial,
  sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
h3 small, .soft { color: var(--soft); font-weight: normal; }
p { margin: .4rem 0; max-width: 46rem; }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line);
  padding: .55rem .9rem; margin: .9rem 0; border-radius: 0 6px 6px 0; }
figure { margin: 1.5rem 0 0; }
figure img { display: block; width: 100%; max-width: 900px; margin: 0 auto; height: auto;
  border: 1px solid var(--line); border-radius: 8px; background: #fff; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.figures { min-width: 32rem; width: 100%; }
.figures th, .figures td { padding: .4rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: top; }
.figures thead th { color: var(--soft); font-weight: 500; font-size: .875rem;
  border-bottom-color: var(--soft); }
.figures tr > :first-child { text-align: left; padding-left: 0; }
.figures tbody th { font-weight: 500; }
.figures small { display: block; color: var(--soft); font-size: .8rem; }
.checks { width: auto; min-width: 0; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%;
  background: var(--colour); margin-right: .5em; }
.sample { border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; padding: 1rem; }
.gold { background: var(--gold); border-left: 4px solid var(--gold-line); padding: .55rem .9rem;
  border-radius: 0 6px 6px 0; margin: 0 0 .75rem; white-space: pre-wrap; }
.gold b { display: block; font-size: .8rem; color: var(--soft); font-weight: 500; }
details { margin: 0 0 .75rem; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; }
.document { white-space: pre-wrap; background: var(--panel); padding: .7rem .9rem;
  border-radius: 6px; margin-top: .4rem; font-size: .92rem; }
.revisions { width: 100%; table-layout: fixed; }
.revisions th, .revisions td { text-align: left; vertical-align: top; padding: .55rem .7rem;
  border-top: 1px solid var(--line); font-size: .92rem; }
.revisions thead th { border-top: 0; padding-top: 0; font-weight: 600; }
.revisions th:first-child { width: 6.2rem; padding-left: 0; font-weight: 500;
  color: var(--soft); }
.text { white-space: pre-wrap; }
.same .text { color: var(--soft); }
.judged { display: flex; align-items: center; gap: .5rem; margin-top: .3rem; font-size: .8rem;
  color: var(--soft); white-space: nowrap; }
.bar { position: relative; flex: 0 0 3.5rem; height: .4rem; border-radius: .2rem;
  background: linear-gradient(to right, var(--bar) var(--share), var(--line) 0); }
.bar::after { content: ""; position: absolute; left: 50%; top: -2px; bottom: -2px; width: 1px;
  background: var(--ink); }
.name { display: none; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.25rem; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; min-width: 0; }
pre { background: var(--panel); padding: .7rem .9rem; border-radius: 6px; white-space: pre-wrap;
  font-size: .875rem; }
@media screen and (max-width: 44rem) {
  body { padding: 1.25rem .9rem 3rem; }
  .sample { padding: .8rem; }
  figure { overflow-x: auto; }
  figure img { min-width: 36rem; }
  .figures { min-width: 0; }
  .figures th, .figures td { padding: .35rem .3rem; }
  .figures small { font-size: .72rem; }
  .figures tbody th { white-space: normal; }
  .revisions, .revisions tbody, .revisions tr, .revisions th, .revisions td { display: block; }
  .revisions thead { display: none; }
  .revisions tr { border-top: 1px solid var(--line); padding: .4rem 0; }
  .revisions th, .revisions td { border: 0; padding: .25rem 0; }
  .revisions td.absent { display: none; }
  .revisions th:first-child { width: auto; }
  .name { display: block; font-weight: 600; font-size: .85rem; }
  dl { grid-template-columns: 1fr; }
  dd { margin-bottom: .5rem; }
}
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --soft: #444; --line: #bbb;
    --panel: #f4f4f4; --gold: #fff7dd; --warn: #fdf0e6; --bar: #777; }
  body { font-size: 10.5pt; max-width: none; padding: 0; }
  .scroll { overflow: visible; }
  .figures { min-width: 0; }
  .figures th, .figures td { padding: .25rem .4rem; }
  figure, tr, .gold, .warning { break-inside: avoid; }
  h2, h3, summary { break-after: avoid; }
  .bar, .swatch, .gold, .warning { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

_PAGE = """\
{% macro swatch(look) %}
<span class="swatch" style="--colour: {{ look.colour }}"></span>{{ look.label }}
{%- endmacro %}
{% macro heading(ks) %}
<thead><tr><th scope="col">revisions</th>
{% for k in ks %}<th scope="col">{{ k }}</th>{% endfor %}
{{ caller() }}</tr></thead>
{% endmacro %}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ report.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ report.title }}</h1>
<p class="soft">Win rate against the human-written gold, judged by {{ report.judge_name }}{{
  " (a proxy)" if report.judge_is_proxy }}, on
{% for name, curves, ks in sets %}
{{ "{:,}".format(report.document_counts[name]) }} {{ name }} documents ({{ curves[0].role }}){{
  "." if loop.last else ";" }}
{% endfor %}
</p>
</header>
<main>
<figure><img src="data:image/png;base64,{{ picture }}" alt="{{ picture_text }}"></figure>

<h2>Win rates</h2>
<p class="soft">In %, with the {{ report.interval }} below; 50 is a draw with the human gold.
The change is from 0 revisions to the last, in points.</p>
{% for name, curves, ks in sets %}
<h3>{{ name }} <small>{{ curves[0].role }}, {{ "{:,}".format(report.document_counts[name]) }}
documents</small></h3>
<div class="scroll"><table class="figures">
{% call heading(ks) %}<th scope="col">change</th>{% endcall %}
<tbody>
{% for curve in curves %}
<tr><th scope="row">{{ swatch(looks[curve.method]) }}</th>
{% for k in ks %}
{% if k < curve.win_rates | length %}
{% set rate = curve.win_rates[k] %}
<td>{{ rate.mean | percent }}<small>{{ rate.low | percent }}–{{ rate.high | percent }}</small></td>
{% else %}<td></td>{% endif %}
{% endfor %}
<td>{{ "%+.1f" | format(100 * curve.change) | replace("-", "−") }}</td></tr>
{% endfor %}
</tbody></table></div>
{% endfor %}

<h2>Length, and what revision changes</h2>
<p class="soft">Mean words of a completion; below, the share that equals the revision before it.</p>
{% for name, curves, ks in sets %}
<h3>{{ name }} <small>the gold has {{ "%.1f" | format(report.gold_words[name]) }} words</small></h3>
<div class="scroll"><table class="figures">
{% call heading(ks) %}{% endcall %}
<tbody>
{% for curve in curves %}
<tr><th scope="row">{{ swatch(looks[curve.method]) }}</th>
{% for k in ks %}
{% if k < curve.win_rates | length %}
<td>{{ "%.1f" | format(curve.mean_words[k]) }}<small>{% if k %}
{{ curve.unchanged[k] | percent(0) }} % same{% endif %}</small></td>
{% else %}<td></td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}

<h2>The judge: {{ report.judge_name }}</h2>
<p>{{ report.judge_description }}</p>
{% if report.proxy_warning %}<p class="warning">{{ report.proxy_warning }}</p>{% endif %}
{% if checks[1] %}
<p>How often it prefers the human gold to a damaged text, on held-out documents, in %:</p>
<div class="scroll"><table class="figures checks">
<thead><tr><th scope="col">gold against</th>
{% for column in checks[0] %}<th scope="col">{{ column }}</th>{% endfor %}</tr></thead>
<tbody>
{% for damage, found in checks[1] %}
<tr><th scope="row">{{ damage }}</th>
{% for check in found %}
<td>{% if check %}{{ check.rate | percent }}<small>{{ check.low | percent }}–{{
  check.high | percent }}</small><small>n = {{ "{:,}".format(check.count) }}</small>{% endif %}</td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}

{% for name, samples in samples %}
<h2>Sample revisions: {{ name }}</h2>
{% if loop.first %}
<p class="soft">The bar is the judged probability that a completion is better than the gold;
its tick is one half.</p>
{% endif %}
{% for sample, rows in samples %}
<article class="sample">
<div class="gold"><b>Human gold</b>{{ sample.gold }}</div>
<details><summary>Document, {{ sample.prompt | wordcount }} words</summary>
<div class="document">{{ sample.prompt }}</div></details>
{% if rows %}
<table class="revisions">
<thead><tr><th></th>
{% for method in sample.revisions %}<th scope="col">{{ swatch(looks[method]) }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for row in rows %}
<tr><th scope="row">revision {{ row.k }}</th>
{% for cell in row.cells %}
{% if cell %}
<td{{ ' class=same' if cell.unchanged }}><span class="name">{{ swatch(cell.method) }}</span>
<div class="text">{{ cell.text or "(empty)" }}</div>
<div class="judged"><span class="bar" style="--share: {{ cell.probability | percent }}%"></span>
{{ "%.2f" | format(cell.probability) }}{{ ", unchanged" if cell.unchanged }}</div></td>
{% else %}<td class="absent"></td>{% endif %}
{% endfor %}</tr>
{% endfor %}
</tbody></table>
{% endif %}
</article>
{% endfor %}
{% endfor %}

<h2>How this was made</h2>
<pre>{{ report.command }}</pre>
<dl>
{% for label, value in report.facts %}<dt>{{ label }}</dt><dd>{{ value }}</dd>{% endfor %}
</dl>
</main>
</body>
</html>
"""
