"""Revises N times and judges every revision: win rates, in and out of distribution.

    python -m srpo_jax.evaluate --config=configs/NAME.py --workdir=DIR [--stage=write|judge|report]

DIR is the workdir of a training run, whose model and the one it started from are evaluated, or any folder
where config.evaluate names models and outputs. DIR/documents/ and DIR/samples/ receive what was asked and
written, DIR/verdicts/ what the judges said, DIR/report/ report.html, win_rate.png, table.md and
results.json. A stage runs alone with --stage, and needs only what the one before it left. The same command
goes on where an interrupted one stopped, on any number of hosts.
"""

import dataclasses
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import psutil

from srpo_jax import config as config_module
from srpo_jax import judges
from srpo_jax.config import Settings, command
from srpo_jax.data import document_sets
from srpo_jax.evaluation import judging, store, writing
from srpo_jax.evaluation.contestants import (
    GOLD,
    Contestants,
    check_templates,
    contestants,
)
from srpo_jax.evaluation.store import Chosen, JudgeEntry, Table
from srpo_jax.reporting import report
from srpo_jax.reporting.winrate import win_rate
from srpo_jax.revision.samples import Written
from srpo_jax.runtime import distributed
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status

STAGES = ("write", "judge", "report")


def evaluate(
    settings: Settings,
    workdir: Path,
    models: Mapping[str, str],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    stages: Sequence[str] = STAGES,
) -> report.Report | None:
    """Evaluates on config.evaluate.documents; writes the report to workdir/report and returns it.

    models: name in the report -> source of the weights (see models.loading), where config.evaluate names
    none. stages: of STAGES. Called by all processes; process 0 alone judges, and returns the report where
    it was asked for one. Raises UserError for settings at fault; what is written already is kept.
    """
    who = contestants(settings.evaluate, models)
    opponents = who.opponents(settings.evaluate)
    if "write" in stages:
        check_templates(settings, who.models)
        writing.write(settings, workdir, who)
    made: list[report.Report] = []

    def judge_and_report() -> None:
        names = [one.name for one in document_sets.resolve(settings.evaluate.documents, "")]
        chosen = store.read_documents(workdir, names)
        written = store.read_written(workdir, chosen, who.names)
        found = judging.matches(chosen, written, opponents)
        asked = judges_of(settings, workdir) if "judge" in stages else []
        judging.judge(workdir, asked, found, settings.evaluate)
        if "report" in stages:
            entries, tables = judging.verdicts(workdir, found, [one.name for one in asked])
            result = _report(settings, title, facts, who, chosen, written, entries, tables)
            report.write(result, workdir / "report")
            report.print_table(result)
            status(f"report: {workdir / 'report' / 'report.html'}")
            made.append(result)

    if {"judge", "report"} & set(stages):
        distributed.from_main(judge_and_report)
    return made[0] if made else None


def judges_of(settings: Settings, workdir: Path) -> Sequence[judges.Judge]:
    """The judges that the settings name."""
    return [judges.load(settings.judge, workdir)]


def _report(
    settings: Settings,
    title: str,
    facts: Sequence[tuple[str, str]],
    who: Contestants,
    chosen: Sequence[Chosen],
    written: Sequence[Written],
    entries: Sequence[JudgeEntry],
    tables: Sequence[Table],
) -> report.Report:
    """The report of the first judge's verdicts against the golds."""
    judge = entries[0]
    texts = {(one.model, one.documents): one.revisions for one in written}
    shown = [t for t in tables if t.judge == judge.name and t.opponent == GOLD]
    said = {(table.model, table.documents): table.probabilities for table in shown}
    roles = {one.name: one.set.role for one in chosen}
    return report.Report(
        title=title,
        judge_name=judge.name,
        judge_description=judge.description,
        judge_is_proxy=judge.is_proxy or judge.name == "embedding",
        gold_words={one.name: _words(d.gold or "" for d in one.documents) for one in chosen},
        document_counts={one.name: len(one.documents) for one in chosen},
        checks=tuple(report.JudgeCheck(**check) for check in judge.checks),
        curves=tuple(
            _curve(table.model, table.documents, roles[table.documents], texts, table.probabilities)
            for table in shown
        ),
        samples=tuple(
            report.Sample(
                documents=one.name,
                prompt=document.text,
                gold=document.gold or "",
                revisions={name: texts[name, one.name][i] for name in who.names},
                probabilities={
                    name: tuple(map(float, said[name, one.name][i]))
                    for name in who.names
                    if (name, one.name) in said
                },
            )
            for one in chosen
            for i, document in enumerate(one.documents[: settings.evaluate.samples])
        ),
        facts=(*facts, *_facts(settings)),
        command=" ".join(["python -m", _module(), *sys.argv[1:]]),
    )


def _curve(
    model: str,
    documents: str,
    role: str,
    texts: Mapping[tuple[str, str], Sequence[Sequence[str]]],
    probabilities: np.ndarray,
) -> report.Curve:
    revisions, written = range(probabilities.shape[1]), texts[model, documents]
    there = ~np.isnan(probabilities)
    return report.Curve(
        method=model,
        documents=documents,
        role="out of distribution" if role == "out" else "in distribution",
        win_rates=tuple(
            report.Interval(*win_rate(probabilities[there[:, k], k])) for k in revisions
        ),
        mean_words=tuple(_words(ys[k] for ys in written) for k in revisions),
        unchanged=tuple(
            float(np.mean([k > 0 and ys[k] == ys[k - 1] for ys in written])) for k in revisions
        ),
    )


def _facts(settings: Settings) -> list[tuple[str, str]]:
    """Machine, versions and settings, as the report shows them."""
    memory = psutil.virtual_memory().total / 2**30
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    return [
        (
            "machine",
            f"{jax.device_count()} {jax.devices()[0].device_kind} device(s), "
            f"{psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}",
        ),
        (
            "versions",
            ", ".join(f"{p} {version(p)}" for p in packages)
            + f", Python {platform.python_version()}",
        ),
        ("model", f"{settings.model.source}, {settings.model.dtype}"),
        (
            "decoding",
            ", ".join(f"{k} {v}" for k, v in dataclasses.asdict(settings.sampling).items()),
        ),
    ]


def _words(texts: Iterable[str]) -> float:
    return float(np.mean([len(text.split()) for text in texts]))


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def main(settings: Settings, workdir: Path, stage: str | None) -> None:
    if stage is not None and stage not in STAGES:
        raise UserError(f"--stage={stage} is none of {', '.join(STAGES)}")
    distributed.initialize()
    stages = STAGES if stage is None else (stage,)
    if settings.evaluate.models or settings.evaluate.outputs:
        evaluate(settings, workdir, {}, title=f"Win rates: {workdir.name}", stages=stages)
        return
    run = config_module.read(workdir / "config.json")
    if run.data.template != settings.data.template or run.model.source != settings.model.source:
        raise UserError(
            f"{workdir} was trained with data.template={run.data.template!r} and model.source="
            f"{run.model.source!r}: evaluate it with the same"
        )
    models = {"start": run.model.source, run.objective.name: str(workdir)}
    title = f"{run.objective.name.upper()}: {workdir.name}"
    evaluate(settings, workdir, models, title=title, stages=stages)


if __name__ == "__main__":
    command.run(
        main,
        ("model", "mesh", "data", "sampling", "evaluate", "judge"),
        options={"stage": "write, judge or report alone (default: all three)"},
    )
