"""Revises N times and judges every revision against the human gold: win rates, in and out of
distribution.

    python -m srpo_jax.evaluate --config=configs/NAME.py --workdir=DIR

DIR is the workdir of a training run; its model and the one it started from are evaluated. DIR/report/
receives report.html, win_rate.png, table.md and results.json, DIR/samples/ what was written. The same
command goes on where an interrupted one stopped.
"""

import dataclasses
import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import psutil

from srpo_jax import config as config_module
from srpo_jax import judges, revision
from srpo_jax.config import Settings, command
from srpo_jax.config.programs import EvaluateSettings
from srpo_jax.data import documents as documents_module
from srpo_jax.data.documents import Document
from srpo_jax.judges import Judge, validation
from srpo_jax.models import Decoder, loading
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.reporting import report
from srpo_jax.reporting.winrate import win_rate
from srpo_jax.runtime import distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress, status

CHUNK = 4  # batches between two writes of what has been generated


def evaluate(
    settings: Settings,
    workdir: Path,
    methods: Mapping[str, str],
    *,
    title: str,
    facts: Sequence[tuple[str, str]] = (),
) -> report.Report:
    """Evaluates models on config.evaluate.documents and writes the report to workdir/report.

    methods: name in the report -> source of the weights (see models.loading), "start" for the policy
    that training began from. All are revised with the same prompts. Raises UserError for settings at
    fault; samples already written are kept.
    """
    own = settings.evaluate
    renderer = Renderer(settings.data.template, loading.load_tokenizer(settings.model.source))
    chosen = {
        name: select(name, own.split, own.count, own.max_prompt_tokens, renderer)
        for name in own.documents
    }
    written = {
        method: _revisions(settings, workdir, method, source, renderer, chosen)
        for method, source in methods.items()
    }
    judge = judges.load(settings.judge, workdir)
    judged = {method: _judge(judge, method, chosen, texts) for method, texts in written.items()}
    checks = _check(judge, own)
    result = report.Report(
        title=title,
        judge_name=judge.name,
        judge_description=judge.description,
        judge_is_proxy=settings.judge.name == "embedding",
        gold_words={n: _words(d.gold for d in docs) for n, (docs, _) in chosen.items()},
        document_counts={name: len(docs) for name, (docs, _) in chosen.items()},
        checks=checks,
        curves=tuple(
            _curve(method, name, name == own.documents[0], written[method][name], p)
            for name in own.documents
            for method, p in ((m, judged[m][name]) for m in methods)
        ),
        samples=tuple(
            _sample(name, document, i, written, judged)
            for name, (docs, _) in chosen.items()
            for i, document in enumerate(docs[: own.samples])
            if not any(np.isnan(judged[method][name][i]).any() for method in methods)
        ),
        facts=(*facts, *_facts(settings, written)),
        command=" ".join(["python -m", _module(), *sys.argv[1:]]),
    )
    report.write(result, workdir / "report")
    report.print_table(result)
    status(f"report: {workdir / 'report' / 'report.html'}")
    return result


Texts = list[list[str]]  # [document][revision]
Chosen = Mapping[str, tuple[list[Document], list[Prompt]]]


def _revisions(
    settings: Settings,
    workdir: Path,
    method: str,
    source: str,
    renderer: Renderer,
    chosen: Chosen,
) -> dict[str, Texts]:
    """y_0 … y_N of every document under one model; the model is loaded only if some are missing."""
    sampling, n_revisions = settings.sampling, settings.evaluate.revisions
    model: Decoder | None = None
    spent = revision.Spent()
    results: dict[str, Texts] = {}
    for name, (docs, prompts) in chosen.items():
        path = workdir / "samples" / f"{method}-{name}.jsonl"
        decisive = {
            "source": loading.identity(source),
            "template": settings.data.template,
            "dtype": settings.model.dtype,
            "sampling": dataclasses.asdict(sampling),
            "revisions": n_revisions,
            "seed": settings.seed,
        }
        done = _read(path, decisive, docs)
        size = CHUNK * sampling.batch_size
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            path.open("a", encoding="utf-8") as out,
            Progress(f"revise {method} on {name}", len(docs), "documents", len(done)) as progress,
        ):
            if out.tell() == 0:
                out.write(json.dumps(decisive) + "\n")
            for first in range(len(done), len(docs), size):
                if model is None:
                    mesh = mesh_module.make(**dataclasses.asdict(settings.mesh))
                    model = loading.load(source, settings.model.dtype, mesh, settings.seed)
                part = slice(first, first + size)
                ids = revision.revise_ids(
                    model,
                    prompts[part],
                    n_revisions,
                    sampling,
                    eos=renderer.stop_ids,
                    seed=settings.seed,
                    rows=range(len(docs))[part],
                    progress=progress,
                    spent=spent,
                )
                done += _write(out, docs[part], ids, renderer, sampling.max_new_tokens)
        share = np.mean([record["cut"] for record in done])
        status(f"{method} on {name}: {share:.0%} cut off at {sampling.max_new_tokens} tokens")
        results[name] = [record["revisions"] for record in done]
    if model is not None:
        status(f"{method}: {spent}")
    return results


def _write(
    out: TextIO, docs: list[Document], ids: list[list[list[int]]], renderer: Renderer, new: int
) -> list[dict[str, Any]]:
    """The records of some documents, which are on disk when this returns."""
    records = [
        {
            "id": document.id,
            "revisions": [renderer.tokenizer.decode(y).strip() for y in ys],
            "cut": [len(y) == new for y in ys],
        }
        for document, ys in zip(docs, ids, strict=True)
    ]
    out.writelines(json.dumps(record) + "\n" for record in records)
    out.flush()
    return records


def _read(path: Path, decisive: Mapping[str, Any], docs: list[Document]) -> list[dict[str, Any]]:
    """The records an earlier attempt has written under the same settings; else the file is begun anew."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(True) if line[-1] == "\n"]
    if lines and json.loads(lines[0]) == json.loads(json.dumps(decisive)):
        records = [json.loads(line) for line in lines[1:]]
        if [r["id"] for r in records] == [d.id for d in docs][: len(records)]:
            path.write_text("".join(lines), encoding="utf-8")
            return records
    status(f"{path} was written under other settings: begun anew, the old one is {path.name}.old")
    path.rename(path.with_name(path.name + ".old"))
    return []


def _judge(
    judge: Judge, method: str, chosen: Chosen, texts: dict[str, Texts]
) -> dict[str, np.ndarray]:
    """P(revision k of document i better than its gold), {document set: float64 [N, K + 1]}."""
    judged = {}
    for name, (docs, _) in chosen.items():
        columns = range(len(texts[name][0]))
        prompts, golds = [d.prompt for d in docs], [d.gold for d in docs]
        with Progress(f"judge {method} on {name}", len(columns), unit="revisions") as progress:
            parts = []
            for k in columns:
                parts.append(judge.probabilities(prompts, [ys[k] for ys in texts[name]], golds))
                progress.advance()
        judged[name] = np.stack(parts, axis=1)
        if missing := int(np.isnan(judged[name]).sum()):
            status(f"{method} on {name}: {missing} of {judged[name].size} verdicts are missing")
    return judged


def _check(judge: Judge, settings: EvaluateSettings) -> tuple[report.JudgeCheck, ...]:
    """How the judge itself does on validation documents, which nothing here was fitted to."""
    if not settings.judge_check:
        return ()
    held_out = [
        document
        for name in settings.documents
        for document in documents_module.load(name, "validation")[: settings.judge_check]
    ]
    cost = validation.cost(judge, held_out)
    price = f": {cost}" if cost.requests else ""
    status(f"checking the judge on {len(held_out)} validation documents{price}")
    return tuple(
        report.JudgeCheck(c.damage, c.documents, c.rate, c.low, c.high, c.count)
        for c in validation.validate(judge, held_out)
    )


def _curve(
    method: str, name: str, inside: bool, texts: Texts, probabilities: np.ndarray
) -> report.Curve:
    revisions = range(probabilities.shape[1])
    return report.Curve(
        method=method,
        documents=name,
        role="in distribution" if inside else "out of distribution",
        win_rates=tuple(
            report.Interval(*win_rate(said[~np.isnan(said)])) for said in probabilities.T
        ),
        mean_words=tuple(_words(ys[k] for ys in texts) for k in revisions),
        unchanged=tuple(
            float(np.mean([k > 0 and ys[k] == ys[k - 1] for ys in texts])) for k in revisions
        ),
    )


def _sample(
    name: str,
    document: Document,
    i: int,
    written: Mapping[str, dict[str, Texts]],
    judged: Mapping[str, dict[str, np.ndarray]],
) -> report.Sample:
    return report.Sample(
        documents=name,
        prompt=document.prompt,
        gold=document.gold,
        revisions={method: tuple(texts[name][i]) for method, texts in written.items()},
        probabilities={m: tuple(map(float, p[name][i])) for m, p in judged.items()},
    )


def _facts(settings: Settings, written: Mapping[str, dict[str, Texts]]) -> list[tuple[str, str]]:
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


def main(settings: Settings, workdir: Path) -> None:
    distributed.initialize()
    distributed.require_one_process("srpo_jax.evaluate")
    run = config_module.read(workdir / "config.json")
    if run.data.template != settings.data.template or run.model.source != settings.model.source:
        raise UserError(
            f"{workdir} was trained with data.template={run.data.template!r} and model.source="
            f"{run.model.source!r}: evaluate it with the same"
        )
    methods = {"start": run.model.source, run.objective.name: str(workdir)}
    evaluate(settings, workdir, methods, title=f"{run.objective.name.upper()}: {workdir.name}")


if __name__ == "__main__":
    command.run(main, ("model", "mesh", "data", "sampling", "evaluate", "judge"))
