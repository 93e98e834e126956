"""How far an evaluation's models have gone from their start: KL(pi || start) of first answers, in nats.

    python tools/kl_from_start.py WORKDIR --start=SOURCE MODEL=SOURCE …

The mean of log pi(y_0 | x) - log start(y_0 | x) over what each model wrote, whole completions, with its
95 % interval over documents (normal). WORKDIR's report/results.json has the documents and the answers, and
says how prompts were put; MODEL is a name there, sources are those of config.model.source. An answer is
tokenised anew, and ends with the end of sequence unless it was cut off. Sampling with a top_p below 1
leaves out unlikely tokens: then it is the KL of what is written, a little above or below the policy's own.
A report has a conversation of several turns as one text, and so it is put: that is not the KL.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from srpo_jax.models import loading
from srpo_jax.models.likelihood import log_likelihood
from srpo_jax.prompts import Renderer
from srpo_jax.reporting.compare import read
from srpo_jax.reporting.evidence import Documents, Evidence
from srpo_jax.reporting.interval import Z
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError

Tokens = tuple[int, ...]


def template(documents: Documents, given: str | None) -> str:
    """How the report's prompts were put; UserError where it does not say, or says another than `given`."""
    if not all(documents.prompts):
        raise UserError(
            f"the report has no texts of {documents.name!r}: name the evaluation's own workdir"
        )
    if not (documents.template or given):
        raise UserError("the report does not say how prompts were put: give --template")
    if given and documents.template not in ("", given):
        raise UserError(
            f"--template={given}, and the answers were written under {documents.template!r}: leave it out"
        )
    return documents.template or str(given)


def asked(evidence: Evidence, model: str, renderer: Renderer) -> tuple[list[Tokens], list[Tokens]]:
    """Direct prompts and first answers of the evaluation's first set, in ids; without empty answers."""
    documents = evidence.sets[0]
    written = evidence.written(model, documents.name)
    cut = written.cut or tuple((False,) * written.count for _ in written.revisions)
    prompts, answers = [], []
    for x, entries, ends in zip(documents.prompts, written.revisions, cut, strict=True):
        answer = renderer.completion(entries[0], ended=not ends[0])
        answer = answer if ends[0] else (*answer, renderer.eos)
        if answer:
            prompts.append(renderer.prompt(x).direct)
            answers.append(answer)
    return prompts, answers


def scores(
    source: str, prompts: Sequence[Tokens], answers: Sequence[Tokens], batch_size: int
) -> np.ndarray:
    """log p of each answer under a model in float32, [N]."""
    width = loading.open_source(source).config.width
    model = loading.load(source, "float32", mesh_module.local(width))
    return log_likelihood(model, prompts, answers, batch_size)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workdir", type=Path)
    parser.add_argument("models", nargs="+", metavar="MODEL=SOURCE")
    parser.add_argument("--start", required=True, help="what training began from")
    parser.add_argument("--template", help="config.data.template (as the report says)")
    parser.add_argument("--batch_size", type=int, default=16, help="(%(default)s)")
    chosen = parser.parse_args(arguments)
    evidence = read(chosen.workdir / "report").evidence
    put = template(evidence.sets[0], chosen.template)
    print("| | KL, nats | of answers |\n|---|--:|--:|")
    for given in chosen.models:
        name, _, source = given.partition("=")
        if name not in evidence.models or not source:
            raise UserError(
                f"{given!r} is no MODEL=SOURCE with one of {', '.join(evidence.models)}"
            )
        renderer = Renderer(put, loading.load_tokenizer(source))
        prompts, answers = asked(evidence, name, renderer)
        first, other = (
            scores(one, prompts, answers, chosen.batch_size) for one in (source, chosen.start)
        )
        gone = first - other
        spread = Z * gone.std(ddof=1) / np.sqrt(len(gone))
        print(f"| {name} | {gone.mean():.2f} ± {spread:.2f} | {len(gone)} |", flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
