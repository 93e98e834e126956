"""Revises N times and judges every revision: win rates, in and out of distribution.

    python -m srpo_jax.evaluate --config=configs/NAME.py --workdir=DIR [--stage=write|judge|report]
    python -m srpo_jax.evaluate --config=configs/NAME.py --workdir=DIR --dry_run
    python -m srpo_jax.evaluate --compare A/report B/report [--workdir=comparison]
    python -m srpo_jax.evaluate --join A/report B/report [--workdir=joined]
    python -m srpo_jax.evaluate --pool A/report B/report [--workdir=pooled]

DIR is the workdir of a training run, whose model and the one it started from are evaluated, or any folder
where config.evaluate names models and outputs. DIR/documents/ and DIR/samples/ receive what was asked and
written, DIR/verdicts/ what the judges said, DIR/report/ report.html, win_rate.png, table.md, results.json
and results.parquet. A stage runs alone with --stage, and needs only what the one before it left. The same
command goes on where an interrupted one stopped, on any number of hosts. --dry_run says what the judges
would cost, at most where nothing is written yet; --compare puts several reports on the same documents into
one, --join those of the same models on sets of their own, --pool those of the same models on other
documents of the same sets: parts, or seeds.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from srpo_jax import config as config_module
from srpo_jax import judges
from srpo_jax.config import Settings, command
from srpo_jax.config.workdir import is_online
from srpo_jax.data import document_sets
from srpo_jax.data.documents import subject
from srpo_jax.evaluation import foreseen, judging, store, writing
from srpo_jax.evaluation.contestants import (
    Contestants,
    check_opponents,
    check_templates,
    contestants,
)
from srpo_jax.evaluation.store import Chosen
from srpo_jax.judges.ensemble import Ensemble
from srpo_jax.models import loading
from srpo_jax.reporting import compare as reports
from srpo_jax.reporting import pool as pooling
from srpo_jax.reporting import provenance, report
from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.data import Report, Rules
from srpo_jax.reporting.evidence import Documents, Evidence, Texts
from srpo_jax.reporting.table import print_table
from srpo_jax.revision.samples import Written
from srpo_jax.runtime import distributed, locks
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import keep_compiled

STAGES = ("write", "judge", "report")


def evaluate(
    settings: Settings,
    workdir: Path,
    models: Mapping[str, str],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
    stages: Sequence[str] = STAGES,
) -> Report | None:
    """Evaluates on config.evaluate.documents; writes the report to workdir/report and returns it.

    models: name in the report -> source of the weights (see models.loading), where config.evaluate names
    none. stages: of STAGES. Called by all processes; process 0 alone judges, and returns the report where
    it was asked for one. Raises UserError for settings at fault; what is written already is kept.
    """
    who = contestants(settings.evaluate, models)
    check_opponents(settings, who)  # before anything is written
    own = settings.evaluate
    store.require_apart(who.names, document_sets.resolve(own.documents, own.split))
    judges.require_apart(settings.judge, who.models)
    if {"write", "judge"} <= set(stages):
        distributed.from_main(lambda: judges.check(settings.judge))
    if "write" in stages:
        check_templates(settings, who.models)
        taken = f"{workdir}: another process writes samples there"
        with locks.alone(workdir / "samples.lock", taken, "another --workdir"):
            writing.write(settings, workdir, who)
    made: list[Report] = []

    def judge_and_report() -> None:
        chosen, written, found = _read(settings, workdir, who)
        weights = writing.written_by(settings, workdir, chosen, who)
        asked = _judges(settings, workdir, chosen) if "judge" in stages else ()
        judging.judge(workdir, asked, found, settings.evaluate)
        if "report" in stages:
            records, tables = judging.verdicts(workdir, found, judges.names(settings.judge))
            evidence = Evidence(
                title=title,
                sets=tuple(_documents(one, settings.data.template) for one in chosen),
                texts=tuple(Texts(w.model, w.documents, w.revisions, w.cut) for w in written),
                tables=tuple(tables),
                judges=tuple(records),
                facts=(*facts, *_facts(settings, who, weights, chosen)),
                command=" ".join(["python -m", _module(), *sys.argv[1:]]),
            )
            result = assemble(evidence, Rules(missing_as_ties=settings.judge.missing == "tie"))
            _show(result, workdir)
            made.append(result)

    if {"judge", "report"} & set(stages):
        distributed.from_main(judge_and_report)
    return made[0] if made else None


def estimated(
    settings: Settings, workdir: Path, models: Mapping[str, str]
) -> list[judges.Estimate]:
    """Says what judging would cost, of each judge: of what is not written yet, at most. Nothing is asked.

    Raises UserError where documents, or files of outputs, cannot be read.
    """
    who = contestants(settings.evaluate, models)
    chosen, written = foreseen.texts(settings, workdir, who)
    found = judging.matches(chosen, written, who.opponents(settings.evaluate))
    every = _judges(settings, workdir, chosen, ask=False)
    asked = [
        judge for judge in every if not isinstance(judge, Ensemble)
    ]  # its members are there too
    costs = judging.estimates(asked, found, settings.evaluate)
    for judge, cost in zip(asked, costs, strict=True):
        status(f"{judge.name}: {cost}")
    return costs


def _judges(
    settings: Settings, workdir: Path, chosen: Sequence[Chosen], ask: bool = True
) -> tuple[judges.Judge, ...]:
    documents = [document for one in chosen for document in one.documents]
    return judges.load_all(settings.judge, workdir, documents=documents, ask=ask, keep=ask)


def compare(folders: list[str], workdir: Path | None) -> None:
    """One report of those in `folders`, in workdir/report (default: comparison/report)."""
    workdir = workdir or Path("comparison")
    _show(reports.compare(folders, title=f"Win rates: {workdir.name}"), workdir)


def join(folders: list[str], workdir: Path | None) -> None:
    """One report of the sets in `folders`, in workdir/report (default: joined/report)."""
    workdir = workdir or Path("joined")
    _show(reports.compare(folders, title=f"Win rates: {workdir.name}", joined=True), workdir)


def pool(folders: list[str], workdir: Path | None) -> None:
    """One report of the parts in `folders`, in workdir/report (default: pooled/report)."""
    workdir = workdir or Path("pooled")
    _show(pooling.pool(folders, title=f"Win rates: {workdir.name}"), workdir)


def _show(result: Report, workdir: Path) -> None:
    report.write(result, workdir / "report")
    print_table(result)
    status(f"report: {workdir / 'report' / 'report.html'}")


def _read(
    settings: Settings, workdir: Path, who: Contestants
) -> tuple[list[Chosen], list[Written], list[judging.Match]]:
    """The documents, what is written about them, and what is to be compared."""
    own = settings.evaluate
    chosen = store.read_documents(workdir, document_sets.resolve(own.documents, own.split))
    written = store.read_written(workdir, chosen, who.names)
    found = judging.matches(chosen, written, who.opponents(settings.evaluate))
    return chosen, written, found


def _documents(chosen: Chosen, template: str) -> Documents:
    return Documents(
        name=chosen.name,
        role="out of distribution" if chosen.set.role == "out" else "in distribution",
        ids=chosen.ids,
        prompts=tuple(document.text for document in chosen.documents),
        golds=tuple(document.gold for document in chosen.documents),
        template=chosen.set.template or template,
        about=tuple(subject(one.id, one.text, one.about) for one in chosen.documents),
    )


def _facts(
    settings: Settings, who: Contestants, weights: Mapping[str, str], chosen: Sequence[Chosen]
) -> list[tuple[str, str]]:
    """Machine, versions, documents, who wrote and under which settings, as the report shows them."""
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    facts = [
        *provenance.facts(devices),
        *((f"documents of {one.name}", one.how) for one in chosen if one.how),
        *(
            (f"model {name}", f"{source}, weights {weights[name][:12]}, {settings.model.dtype}")
            for name, source in who.models.items()
        ),
        *((f"outputs {name}", ", ".join(map(str, files))) for name, files in who.outputs.items()),
    ]
    if who.models:
        decoding, own = dataclasses.asdict(settings.sampling), settings.evaluate
        facts.append(("decoding", ", ".join(f"{key} {value}" for key, value in decoding.items())))
        if who.best_of:
            best = f"temperature {own.best_temperature}, top_p {own.best_top_p}"
            facts.append(("decoding for the best of k+1", best))
        facts.append(("seed", str(settings.seed)))
    return facts


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def main(settings: Settings, workdir: Path, stage: str | None, dry_run: bool) -> None:
    if stage is not None and stage not in STAGES:
        raise UserError(f"--stage={stage} is none of {', '.join(STAGES)}")
    distributed.initialize()
    if not dry_run:
        keep_compiled(workdir)
    stages = STAGES if stage is None else (stage,)
    models, title = _compared(settings, workdir)
    if dry_run:

        def say() -> None:  # estimates are nothing that the other processes could be told
            estimated(settings, workdir, models)

        distributed.from_main(say)
    else:
        evaluate(settings, workdir, models, title=settings.evaluate.title or title, stages=stages)


def _compared(settings: Settings, workdir: Path) -> tuple[dict[str, str], str]:
    """Models by name, where the settings name none, and the report's title."""
    if settings.evaluate.models or settings.evaluate.outputs:
        return {}, f"Win rates: {workdir.name}"
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"{workdir} holds no training run, and config.evaluate.models names no model: give one of them"
        )
    run = config_module.read(workdir / "config.json")
    if run.data.template != settings.data.template or run.model.source != settings.model.source:
        raise UserError(
            f"{workdir} was trained with data.template={run.data.template!r} and model.source="
            f"{run.model.source!r}: evaluate it with the same"
        )
    name = run.online.objective if is_online(workdir) else run.objective.name
    start = loading.begun_with(workdir) or run.model.source
    try:
        loading.open_source(start)
    except UserError as error:
        alone = f"--config.evaluate.models=\"('{name}={workdir}',)\""
        raise UserError(f"{error}: {alone} evaluates {workdir} without its start") from error
    itself = f"./{workdir}" if str(workdir) in loading.BUILT_IN else str(workdir)
    return {"start": start, name: itself}, f"{name.upper()}: {workdir.name}"


if __name__ == "__main__":
    command.run(
        main,
        ("model", "mesh", "data", "sampling", "evaluate", "judge"),
        options={"stage": "write, judge or report alone (default: all three)"},
        switches={"dry_run": "only say what the judges would cost"},
        instead={
            "compare": ("folders of reports to put into one, in WORKDIR/report", compare),
            "join": ("folders of reports on other sets each, of the same models", join),
            "pool": ("folders of reports on other documents each, to put into one", pool),
        },
    )
