"""Makes a preference data set from a policy: two completions a document, compared by a judge.

    python -m srpo_jax.pairs --config=configs/NAME.py --workdir=DIR [--output=pairs.jsonl]

Both completions are sampled from config.model.source under the direct prompt; the judge's probability
becomes label_prob; a pair that it has no verdict on is left out. The same command goes on where an
interrupted one stopped, on any number of hosts.
"""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

from srpo_jax import judges, revision
from srpo_jax.config import Settings, command
from srpo_jax.data import document_sets
from srpo_jax.data.documents import Document
from srpo_jax.data.records import Pair, write_pairs
from srpo_jax.models import loading
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.revision import samples
from srpo_jax.runtime import distributed
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Progress, status


def make_pairs(settings: Settings, workdir: Path, output: Path) -> None:
    """Samples, judges and writes `output`, JSON lines of {prompt, chosen, rejected, label_prob}.

    Does nothing if output is there. Raises UserError for settings at fault and when no pair is left.
    """
    own = settings.pairs
    if distributed.from_main(output.exists):
        status(f"pairs: {output} is there already")
        return
    judges.require_apart(settings.judge, {"config.model.source": settings.model.source})
    renderer = Renderer(settings.data.template, loading.load_tokenizer(settings.model.source))
    documents = document_sets.read(own.document_set, "config.pairs")
    name = f"{own.document_set.name} ({own.document_set.split})"
    renderers = {"": renderer}
    chosen, prompts = select(documents, own.count, own.max_prompt_tokens, renderers, name)
    part = output.with_name(output.name + ".samples")
    _sample(settings, renderer, chosen, prompts[""], part)
    distributed.from_main(lambda: _label(settings, workdir, chosen, part, output))


def _label(
    settings: Settings, workdir: Path, chosen: list[Document], part: Path, output: Path
) -> None:
    """Process 0: the judge's labels on what was sampled, written to `output`."""
    _, records = samples.read(part)
    judge = judges.load(settings.judge, workdir)
    compared = [(d, r["a"], r["b"]) for d, r in zip(chosen, records, strict=True)]
    usable = [(d, a, b) for d, a, b in compared if a and b and a != b]
    if not usable:
        raise UserError(f"pairs: all {len(chosen)} documents got two equal or empty completions")
    xs, a, b = (list(column) for column in zip(*usable, strict=True))
    probabilities = judge.probabilities([x.prompt for x in xs], a, b)
    pairs = [
        Pair(x.prompt, *((a, b) if p >= 0.5 else (b, a)), float(max(p, 1 - p)))
        for (x, a, b), p in zip(usable, probabilities, strict=True)
        if not math.isnan(p)
    ]
    if not pairs:
        raise UserError(f"pairs: {judge.name} has a verdict on none of {len(usable)} documents")
    write_pairs(output, pairs)
    part.unlink()
    missing = len(usable) - len(pairs)
    unjudged = f", {missing} without a verdict" if missing else ""
    status(
        f"pairs: {len(pairs)} written to {output}, labelled by {judge.name}; "
        f"{len(chosen) - len(usable)} documents left out (completions equal or empty){unjudged}; "
        f"{sum(record['cut'] for record in records)} of {2 * len(records)} completions were cut off at "
        f"{settings.sampling.max_new_tokens} tokens"
    )


def _sample(
    settings: Settings,
    renderer: Renderer,
    chosen: list[Document],
    prompts: list[Prompt],
    part: Path,
) -> None:
    """Two completions of each document, kept in `part` as they come: a line a document.

    A record has the document's id, the completions a and b, and how many of them were cut off at
    config.sampling.max_new_tokens. All processes decode; process 0 reads and writes.
    """
    decisive = {
        "model": dataclasses.asdict(settings.model),
        "seed": settings.seed,
        "template": settings.data.template,
        "sampling": dataclasses.asdict(settings.sampling),
        "pairs": dataclasses.asdict(settings.pairs),
    }
    ids = [document.id for document in chosen]
    done = distributed.from_main(lambda: _begin(part, decisive, ids))
    if done == len(chosen):
        return
    mesh = mesh_module.make(**dataclasses.asdict(settings.mesh))
    model = loading.load(settings.model.source, settings.model.dtype, mesh, settings.seed)
    sampling = dataclasses.replace(
        settings.sampling, temperature=settings.pairs.temperature, top_p=settings.pairs.top_p
    )
    size = max(1, sampling.batch_size // 2)
    with Progress("sample pairs", len(chosen), unit="documents", done=done) as progress:
        for first in range(done, len(chosen), size):
            batch = range(first, min(first + size, len(chosen)))
            rows = [2 * i + side for i in batch for side in (0, 1)]
            twice = [prompts[row // 2] for row in rows]
            drawn = revision.revise_ids(
                model, twice, 0, sampling, eos=renderer.stop_ids, seed=settings.seed, rows=rows
            )
            texts = [renderer.tokenizer.decode(y).strip() for (y,) in drawn]
            cut = [len(y) == sampling.max_new_tokens for (y,) in drawn]
            records = [
                {
                    "id": ids[i],
                    "a": texts[2 * j],
                    "b": texts[2 * j + 1],
                    "cut": sum(cut[2 * j :][:2]),
                }
                for j, i in enumerate(batch)
            ]
            distributed.from_main(functools.partial(samples.append, part, records))
            progress.advance(len(batch))


def _begin(part: Path, decisive: dict[str, Any], ids: list[str]) -> int:
    """How many documents an interrupted attempt with the same settings has sampled."""
    header, records = samples.read(part) if part.is_file() else (None, [])
    if header is None:
        part.parent.mkdir(parents=True, exist_ok=True)
        samples.append(part, [decisive])
    elif header != json.loads(json.dumps(decisive)):
        raise UserError(
            f"{part} was sampled with other settings: delete it, or use another --output"
        )
    if [record["id"] for record in records] != ids[: len(records)]:
        raise UserError(
            f"{part} was sampled from other documents: delete it, or use another --output"
        )
    return len(records)


def main(settings: Settings, workdir: Path, output: str | None) -> None:
    distributed.initialize()
    make_pairs(settings, workdir, Path(output) if output else workdir / "pairs.jsonl")


if __name__ == "__main__":
    command.run(
        main,
        ("model", "mesh", "data", "sampling", "pairs", "judge"),
        options={"output": "JSON lines file to write (default: pairs.jsonl in the workdir)"},
    )
