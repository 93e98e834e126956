"""The first stage: every model writes and revises an answer to every document.

All processes run it: they choose the same documents, and decode their own rows of every batch. Process 0
alone reads and writes the workdir. What is on disk is never decoded again.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srpo_jax import revision
from srpo_jax.config import Settings
from srpo_jax.data import document_sets
from srpo_jax.data.documents import Document
from srpo_jax.evaluation import store
from srpo_jax.evaluation.contestants import Contestants
from srpo_jax.evaluation.store import Chosen
from srpo_jax.models import Decoder, decoding_mesh, loading
from srpo_jax.models.digest import Digests
from srpo_jax.models.likelihood import log_likelihood
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.revision import Shape, samples
from srpo_jax.revision.samples import Record
from srpo_jax.runtime import distributed
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress, status

# (number of a document, what was made of it), one after the other.
Made = Iterator[tuple[int, Record]]

CHUNK = 4  # batches of samples of which the best are chosen together
_BEST = tuple(f"config.evaluate.best_{name}" for name in ("by", "temperature", "top_p"))


def write(settings: Settings, workdir: Path, who: Contestants) -> None:
    """Writes workdir/documents and workdir/samples, or what an earlier attempt has left to be done.

    Raises UserError for settings, documents, models and outputs at fault, before a model is loaded.
    """
    sources = {name: loading.pinned(source) for name, source in who.models.items()}
    chosen, jobs = choose(settings, sources)
    prepared = distributed.from_main(lambda: _prepare(workdir, chosen, who, set(sources.values())))
    for name in who.models:
        best = next((b for b, model in who.best_of.items() if model == name), None)
        mine = [job for job in jobs if job.model == name]
        _write_model(settings, workdir, mine, prepared[sources[name]], best)


def choose(settings: Settings, sources: Mapping[str, str]) -> tuple[list[Chosen], list["Job"]]:
    """The documents of every set, which all models can read, and what each model has to do on them.

    sources: of the models, by name; only their tokenizers are read. Raises UserError for sets and sources
    that cannot be read, and a set with too few documents.
    """
    own = settings.evaluate
    sets = document_sets.resolve(own.documents, own.split)
    tokenizers = {source: loading.load_tokenizer(source) for source in set(sources.values())}
    chosen: list[Chosen] = []
    jobs: list[Job] = []
    for one in sets:
        template = one.template or settings.data.template
        renderers = {
            name: Renderer(template, tokenizers[source], settings.data.arguments)
            for name, source in sources.items()
        }
        every = document_sets.read(one)
        documents, prompts = select(
            every,
            own.count,
            own.max_prompt_tokens,
            renderers,
            f"{one.name} ({one.split})",
            own.skip,
        )
        how = _how_chosen(settings, one.split, bool(renderers))
        chosen.append(Chosen(one, tuple(documents), tuple(d.id for d in every), how))
        jobs += [
            Job(name, sources[name], one.name, documents, prompts[name], renderers[name])
            for name in sources
        ]
    return chosen, jobs


def _how_chosen(settings: Settings, split: str, limited: bool) -> str:
    """For a report. limited: some model's prompts must not be too long."""
    own = settings.evaluate
    behind = f", behind the first {own.skip}" if own.skip else ""
    limit = f", of at most {own.max_prompt_tokens} prompt tokens" if limited else ""
    return f"the first {own.count} of {split}{limit}{behind}"


@dataclasses.dataclass(frozen=True)
class Job:
    """A model and the documents of one set, with their prompts."""

    model: str
    source: str
    set: str
    documents: Sequence[Document]
    prompts: Sequence[Prompt]
    renderer: Renderer


def _prepare(
    workdir: Path, chosen: Sequence[Chosen], who: Contestants, sources: set[str]
) -> dict[str, str]:
    """Process 0: keeps the documents and the outputs; the digest of each source."""
    store.write_documents(workdir, chosen)
    digests = Digests(workdir / "samples" / "digests.json")
    for name, files in who.outputs.items():
        for one in chosen:
            records = samples.outputs(files, one.name, one.ids, one.all_ids)
            header = {"outputs": hashlib.sha256(json.dumps(records).encode()).hexdigest()}
            path = store.samples_path(workdir, name, one.name)
            begun = functools.partial(_begins, records)
            samples.append(path, records[len(samples.resume(path, header, begun)) :])
    return {source: digests.of(source) for source in sources}


def _begins(records: list[Record], found: list[Record]) -> bool:
    return found == records[: len(found)]


def _write_model(
    settings: Settings, workdir: Path, jobs: Sequence[Job], weights: str, best: str | None
) -> None:
    """One model on all sets; it is loaded only if something is missing. best: name of its best of k + 1."""
    loaded: list[Decoder] = []
    spent = revision.Spent()

    def model() -> Decoder:
        if not loaded:
            given = jobs[0].source, settings.model.dtype, settings.mesh, settings.seed
            loaded.append(decoding_mesh.load(*given))
        return loaded[0]

    asked, new = [job.prompts for job in jobs], settings.sampling.max_new_tokens
    need = revision.Need(new, settings.evaluate.revisions > 0)
    foreseen = revision.shapes(asked, need, settings.sampling.batch_size)
    once = revision.shapes(asked, revision.Need(new, False), settings.sampling.batch_size)
    for job in jobs:
        header = _header(settings, job.renderer.name, weights)

        def revise(part: Sequence[int], job: Job = job) -> Made:
            return _revised(settings, model(), job, part, foreseen, spent)

        path, size = store.samples_path(workdir, job.model, job.set), settings.sampling.batch_size
        write_records(path, header, job, size, revise, f"revise {job.model} on {job.set}")
        if best is None:
            continue

        def choose(part: Sequence[int], job: Job = job) -> Made:
            return _best(settings, model(), job, part, once, spent)

        header |= {"best": _best_header(settings)}
        path = store.samples_path(workdir, best, job.set)
        few = _at_once(settings)
        write_records(path, header, job, few, choose, f"sample {job.model} on {job.set}")
    if loaded:
        lengths = " or ".join(f"{shape.first} + {shape.second}" for shape in foreseen)
        status(
            f"{jobs[0].model}: {spent}; caches of {lengths} slots, {3 * len(foreseen)} programs at most"
        )


def write_records(
    path: Path,
    header: Record,
    job: Job,
    size: int,
    make: Callable[[Sequence[int]], Made],
    what: str,
) -> None:
    """Makes the records that the file lacks, and writes `size` at a time; all processes take part.

    make: from the numbers of documents to (number, record) of each, in any order.
    """
    begins = [
        {"id": document.id, "row": row, "prompt": _digest(prompt)}
        for row, (document, prompt) in enumerate(zip(job.documents, job.prompts, strict=True))
    ]
    # One that read others would write answers to them under the names of these.
    distributed.require_alike(begins, f"puts other prompts of {job.set}")

    def fits(found: list[Record]) -> bool:
        """Whether they are about these documents, asked in the same words, or about others behind them."""
        asked = [{key: record.get(key) for key in ("id", "row", "prompt")} for record in found]
        known = {one["id"] for one in begins}
        return all(
            one["row"] is not None
            and (one == begins[one["row"]] if one["row"] < len(begins) else one["id"] not in known)
            for one in asked
        )

    found = distributed.from_main(lambda: [r["row"] for r in samples.resume(path, header, fits)])
    todo = sorted(set(range(len(begins))) - set(found))
    made: list[Record] = []
    with Progress(what, len(begins), "documents", len(begins) - len(todo)) as progress:
        for row, record in make(todo) if todo else ():
            made.append(begins[row] | record)
            progress.advance()
            if len(made) == size:
                distributed.from_main(functools.partial(samples.append, path, made))
                made = []
    if made:
        distributed.from_main(functools.partial(samples.append, path, made))
    if share := distributed.from_main(lambda: _cut_share(path)):
        status(f"{what}: {share:.0%} of the completions were cut off")


def _cut_share(path: Path) -> float:
    cut = [flag for record in samples.read(path)[1] for flag in record["cut"]]
    return float(np.mean(cut)) if cut else 0.0


def written_by(
    settings: Settings, workdir: Path, chosen: Sequence[Chosen], who: Contestants
) -> dict[str, str]:
    """The digest of the weights that each model's samples are of, as their files say.

    Raises UserError for samples of other settings, which a report would tell of in the place of theirs, and
    for those of a model that had other weights on another set.
    """
    found: dict[str, str] = {}
    for one in chosen:
        asked = _header(settings, one.set.template or settings.data.template, "")
        for name in (*who.models, *who.best_of):
            more = {"best": _best_header(settings)} if name in who.best_of else {}
            path = store.samples_path(workdir, name, one.name)
            header = samples.read(path)[0] or {}
            written = _by_setting(header)
            for key, now in _by_setting(asked | more).items():
                if key in written and written[key] != now:
                    raise UserError(
                        f"{path} was written with {key}={written[key]!r}, and {now!r} is asked for: write "
                        f"it again, with --stage=write, or set {key} to what it was"
                    )
            model, weights = who.best_of.get(name, name), header.get("weights", "")
            if found.setdefault(model, weights) != weights:
                raise UserError(
                    f"{path} is by other weights than the other samples of {model}: write it again, with "
                    "--stage=write"
                )
    return found


def _by_setting(header: Record) -> Record:
    """What a header says of each setting, by the setting's name."""
    named = {
        "config.data.template": header.get("template"),
        "config.model.dtype": header.get("dtype"),
        "config.evaluate.revisions": header.get("revisions"),
        "config.seed": header.get("seed"),
        **{f"config.sampling.{key}": value for key, value in header.get("sampling", {}).items()},
        **dict(zip(_BEST, header.get("best", ()), strict=False)),
    }
    return {key: value for key, value in named.items() if value is not None}


def _best_header(settings: Settings) -> list[Any]:
    """What the choice of the likeliest sample depends on, in the order of _BEST."""
    own = settings.evaluate
    return [own.best_by, own.best_temperature, own.best_top_p]


def _header(settings: Settings, template: str, weights: str) -> Record:
    """Everything that the texts depend on, but for the prompts, which the records name."""
    sampling = settings.sampling
    return {
        "weights": weights,
        "template": template,
        "dtype": settings.model.dtype,
        "sampling": {
            "max_new_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        },
        "revisions": settings.evaluate.revisions,
        "seed": settings.seed,
    }


def _digest(prompt: Prompt) -> str:
    ids = json.dumps([prompt.direct, prompt.before, prompt.after])
    return hashlib.sha256(ids.encode()).hexdigest()[:12]


def _revised(
    settings: Settings,
    model: Decoder,
    job: Job,
    part: Sequence[int],
    foreseen: Sequence[Shape],
    spent: revision.Spent,
) -> Made:
    """y_0 … y_N of some documents. foreseen: the shapes that serve all of them."""
    revised = revision.revising(
        model,
        [job.prompts[i] for i in part],
        settings.evaluate.revisions,
        settings.sampling,
        eos=job.renderer.stop_ids,
        seed=settings.seed,
        rows=part,
        foreseen=foreseen,
        spent=spent,
    )
    for place, ys in revised:
        yield part[place], _record(job.renderer, ys, settings.sampling.max_new_tokens)


def _best(
    settings: Settings,
    model: Decoder,
    job: Job,
    part: Sequence[int],
    foreseen: Sequence[Shape],
    spent: revision.Spent,
) -> Made:
    """In place of y_k, the likeliest of the first k + 1 samples of each document, and all samples."""
    few = _at_once(settings)
    for first in range(0, len(part), few):
        chosen = part[first : first + few]
        made = _likeliest(settings, model, job, chosen, foreseen, spent)
        yield from zip(chosen, made, strict=True)


def _at_once(settings: Settings) -> int:
    """Documents of which samples are drawn together."""
    return max(1, CHUNK * settings.sampling.batch_size // (settings.evaluate.revisions + 1))


def _likeliest(
    settings: Settings,
    model: Decoder,
    job: Job,
    part: Sequence[int],
    foreseen: Sequence[Shape],
    spent: revision.Spent,
) -> list[Record]:
    own, count = settings.evaluate, settings.evaluate.revisions + 1
    sampling = dataclasses.replace(
        settings.sampling, temperature=own.best_temperature, top_p=own.best_top_p
    )
    rows = [count * i + j for i in part for j in range(count)]
    prompts = [job.prompts[row // count] for row in rows]
    stops, new = job.renderer.stop_ids, sampling.max_new_tokens
    drawn = revision.revise_ids(
        model,
        prompts,
        0,
        sampling,
        eos=stops,
        seed=settings.seed,
        rows=rows,
        foreseen=foreseen,
        spent=spent,
    )
    completions = [y for (y,) in drawn]
    # What ended a completion counts as one of its tokens.
    ended = [(*y, stops[0]) if len(y) < new else tuple(y) for y in completions]
    scores = log_likelihood(model, [p.direct for p in prompts], ended, sampling.batch_size)
    if own.best_by == "mean":
        scores = scores / [len(y) for y in ended]
    records = []
    for first in range(0, len(rows), count):
        likeliest = [first + int(np.argmax(scores[first : first + k + 1])) for k in range(count)]
        record = _record(job.renderer, [completions[i] for i in likeliest], new)
        mine = slice(first, first + count)
        record["scores"] = [float(score) for score in scores[mine]]
        record["samples"] = [_text(job.renderer, y) for y in completions[mine]]
        records.append(record)
    return records


def _record(renderer: Renderer, ys: Sequence[Sequence[int]], new: int) -> Record:
    return {
        "revisions": [_text(renderer, y) for y in ys],
        "cut": [len(y) == new for y in ys],
        "tokens": [len(y) for y in ys],
    }


def _text(renderer: Renderer, y: Sequence[int]) -> str:
    return renderer.tokenizer.decode(y).strip()
