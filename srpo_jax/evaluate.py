"""Revises N times and judges every revision against the human gold: win rates, in and out of
distribution.

    python -m srpo_jax.evaluate --config=configs/NAME.py --workdir=DIR

DIR is the workdir of a training run; its model and the one it started from are evaluated. DIR/report/
receives report.html, win_rate.png, table.md, results.json and results.parquet, DIR/samples/ what was
written. The same command goes on where an interrupted one stopped.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from srpo_jax import config as config_module
from srpo_jax import judges, revision
from srpo_jax.config import command
from srpo_jax.data import documents as documents_module
from srpo_jax.data.documents import Document
from srpo_jax.judges import Judge, validation
from srpo_jax.models import Decoder, loading
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.reporting import provenance, report
from srpo_jax.reporting.assemble import assemble
from srpo_jax.reporting.data import Report
from srpo_jax.reporting.evidence import Documents, Evidence, JudgeCheck, JudgeRecord, Texts
from srpo_jax.reporting.table import print_table
from srpo_jax.reporting.verdicts import GOLD, Key, VerdictTable
from srpo_jax.runtime import distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress, status

CHUNK = 4  # batches between two writes of what has been generated


def evaluate(
    config: ConfigDict,
    workdir: Path,
    methods: Mapping[str, str],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
) -> Report:
    """Evaluates models on config.evaluate.documents and writes the report to workdir/report.

    methods: name in the report -> source of the weights (see models.loading), "start" for the policy
    that training began from. All are revised with the same prompts. Raises UserError for settings at
    fault; samples already written are kept.
    """
    settings = config.evaluate
    renderer = Renderer(config.data.template, loading.load_tokenizer(config.model.source))
    chosen = {
        name: select(name, settings.split, settings.count, settings.max_prompt_tokens, renderer)
        for name in settings.documents
    }
    written = {
        method: _revisions(config, workdir, method, source, renderer, chosen)
        for method, source in methods.items()
    }
    judge = judges.load(config.judge, workdir)
    verdicts = [
        table for method, texts in written.items() for table in _judge(judge, method, chosen, texts)
    ]
    evidence = Evidence(
        title=title,
        sets=tuple(
            _documents(config, name, name == settings.documents[0], docs)
            for name, (docs, _) in chosen.items()
        ),
        texts=tuple(texts for of in written.values() for texts in of.values()),
        tables=tuple(verdicts),
        judges=(
            JudgeRecord(
                name=judge.name,
                description=judge.description,
                is_proxy=config.judge.name == "embedding",
                checks=_check(judge, settings),
            ),
        ),
        facts=(*facts, *_facts(config)),
        command=" ".join(["python -m", _module(), *sys.argv[1:]]),
    )
    result = assemble(evidence)
    report.write(result, workdir / "report")
    print_table(result)
    status(f"report: {workdir / 'report' / 'report.html'}")
    return result


Chosen = Mapping[str, tuple[list[Document], list[Prompt]]]


def _revisions(
    config: ConfigDict,
    workdir: Path,
    method: str,
    source: str,
    renderer: Renderer,
    chosen: Chosen,
) -> dict[str, Texts]:
    """y_0 … y_N of every document under one model; the model is loaded only if some are missing."""
    sampling = revision.Sampling(**config.sampling)
    n_revisions = config.evaluate.revisions
    model: Decoder | None = None
    spent = revision.Spent()
    results: dict[str, Texts] = {}
    for name, (docs, prompts) in chosen.items():
        path = workdir / "samples" / f"{method}-{name}.jsonl"
        settings = {
            "source": loading.identity(source),
            "template": config.data.template,
            "dtype": config.model.dtype,
            "sampling": config.sampling.to_dict(),
            "revisions": n_revisions,
            "seed": config.seed,
        }
        done = _read(path, settings, docs)
        size = CHUNK * sampling.batch_size
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("a", encoding="utf-8") as out,
            Progress(f"revise {method} on {name}", len(docs), "documents", len(done)) as progress,
        ):
            if out.tell() == 0:
                out.write(json.dumps(settings) + "\n")
            for first in range(len(done), len(docs), size):
                if model is None:
                    mesh = mesh_module.make(**config.mesh)
                    model = loading.load(source, config.model.dtype, mesh, config.seed)
                part = slice(first, first + size)
                ids = revision.revise_ids(
                    model,
                    prompts[part],
                    n_revisions,
                    sampling,
                    eos=renderer.stop_ids,
                    seed=config.seed,
                    rows=range(len(docs))[part],
                    progress=progress,
                    spent=spent,
                )
                for document, ys in zip(docs[part], ids, strict=True):
                    record = {
                        "id": document.id,
                        "revisions": [renderer.tokenizer.decode(y).strip() for y in ys],
                        "cut": [len(y) == sampling.max_new_tokens for y in ys],
                    }
                    out.write(json.dumps(record) + "\n")
                    done.append(record)
                out.flush()
        share = np.mean([record["cut"] for record in done])
        status(f"{method} on {name}: {share:.0%} cut off at {sampling.max_new_tokens} tokens")
        results[name] = Texts(
            model=method,
            documents=name,
            revisions=tuple(tuple(record["revisions"]) for record in done),
            cut=tuple(tuple(record["cut"]) for record in done),
        )
    if model is not None:
        status(f"{method}: {spent}")
    return results


def _read(path: Path, settings: dict, docs: list[Document]) -> list[dict]:
    """The records an earlier attempt has written under the same settings; else the file is begun anew."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line[-1] == "\n"]
    if lines and json.loads(lines[0]) == json.loads(json.dumps(settings)):
        records = [json.loads(line) for line in lines[1:]]
        if [r["id"] for r in records] == [d.id for d in docs][: len(records)]:
            path.write_text("".join(lines), encoding="utf-8")
            return records
    status(f"{path} was written under other settings: begun anew, the old one is {path.name}.old")
    path.rename(path.with_name(path.name + ".old"))
    return []


def _judge(
    judge: Judge, method: str, chosen: Chosen, texts: dict[str, Texts]
) -> list[VerdictTable]:
    """Every revision of every document against its gold, a table for each set."""
    tables = []
    for name, (docs, _) in chosen.items():
        columns, written = range(texts[name].count), texts[name].revisions
        prompts, golds = [d.prompt for d in docs], [d.gold for d in docs]
        with Progress(f"judge {method} on {name}", len(columns), unit="revisions") as progress:
            parts = []
            for k in columns:
                parts.append(judge.probabilities(prompts, [ys[k] for ys in written], golds))
                progress.advance()
        tables.append(VerdictTable(Key(name, method, judge.name, GOLD), np.stack(parts, axis=1)))
    return tables


def _check(judge: Judge, settings: ConfigDict) -> tuple[JudgeCheck, ...]:
    """How the judge itself does on validation documents, which nothing here was fitted to."""
    if not settings.judge_check:
        return ()
    held_out = [
        document
        for name in settings.documents
        for document in documents_module.load(name, "validation")[: settings.judge_check]
    ]
    status(f"checking the judge on {len(held_out)} validation documents")
    return tuple(
        JudgeCheck(c.damage, c.documents, c.rate, c.low, c.high, c.count)
        for c in validation.validate(judge, held_out)
    )


def _documents(config: ConfigDict, name: str, inside: bool, docs: Sequence[Document]) -> Documents:
    return Documents(
        name=name,
        role="in distribution" if inside else "out of distribution",
        ids=tuple(document.id for document in docs),
        prompts=tuple(document.prompt for document in docs),
        golds=tuple(document.gold for document in docs),
        template=config.data.template,
    )


def _facts(config: ConfigDict) -> list[tuple[str, str]]:
    """Machine, versions and settings, as the report shows them."""
    devices = f"{jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    return [
        *provenance.facts(devices),
        ("model", f"{config.model.source}, {config.model.dtype}"),
        ("decoding", ", ".join(f"{k} {v}" for k, v in config.sampling.items())),
        ("seed", str(config.seed)),
    ]


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else Path(sys.argv[0]).name


def main(config: ConfigDict, workdir: Path) -> None:
    distributed.initialize()
    distributed.require_one_process("srpo_jax.evaluate")
    run = config_module.read(workdir / "config.json")
    if run.data.template != config.data.template or run.model.source != config.model.source:
        raise UserError(
            f"{workdir} was trained with data.template={run.data.template!r} and model.source="
            f"{run.model.source!r}: evaluate it with the same"
        )
    methods = {"start": run.model.source, run.objective.name: str(workdir)}
    evaluate(config, workdir, methods, title=f"{run.objective.name.upper()}: {workdir.name}")


if __name__ == "__main__":
    command.run(main, ("model", "mesh", "data", "sampling", "evaluate", "judge"))
