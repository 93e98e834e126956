"""Makes a data set of pairs from a policy and a judge: preferences, edits of drafts, or golds.

    python -m srpo_jax.pairs --config=configs/NAME.py --workdir=DIR [--output=pairs.jsonl] [--for=improve]

Completions of each document are sampled from config.model.source, meet each other as config.pairs says, and
the judge's probability becomes label_prob. With --for=improve the pairs are drafts (rejected) and edits of
them (chosen), which teach the improve prompt (objective sft_improve) before preferences do; with
--for=gold they are what people wrote, for objective sft. The samples are kept beside the output, so that
another choice among them needs no model. The same command goes on where an interrupted one stopped, on any
number of hosts.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

from srpo_jax import config as config_module
from srpo_jax import judges
from srpo_jax.config import Settings, command
from srpo_jax.config.settings import HOW, REPLACED
from srpo_jax.data import document_sets
from srpo_jax.data.documents import Document
from srpo_jax.data.records import Pair, write_pairs
from srpo_jax.models import loading
from srpo_jax.models.digest import Digests
from srpo_jax.pairing import comparing, drawing
from srpo_jax.pairing.drawing import Drawn
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.prompts.selection import select
from srpo_jax.runtime import distributed, files, locks, storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import keep_compiled

# Settings of config.judge by which its labels become others.
JUDGE = (
    *("name", "source", "reward_template", "scale", "members", "combine"),
    *("base_url", "model", "template", "temperature", "parameters"),
)


def make_pairs(settings: Settings, workdir: Path, output: Path) -> None:
    """Writes `output`, JSON lines of {prompt, chosen, rejected, label_prob}; does nothing if it is there.

    Raises UserError for settings at fault, for an `output` that other settings have made or another process
    makes, and when no pair is left.
    """
    weights = digest_of_weights(settings, workdir)
    if _made(settings, output, weights):
        return
    check(settings)
    taken = f"{output}: another process makes these pairs"
    with locks.alone(output.with_name(output.name + ".lock"), taken, "another --output"):
        if not _made(settings, output, weights):  # by the process that was waited for
            _make(settings, workdir, output, weights)


def _made(settings: Settings, output: Path, weights: str) -> bool:
    """`is_made`, and says so. Called by all processes."""
    made = distributed.from_main(lambda: is_made(settings, output, weights))
    if made:
        distributed.from_main(lambda: say_made(settings, output))
    return made


def _make(settings: Settings, workdir: Path, output: Path, weights: str) -> None:
    tokenizer = loading.load_tokenizer(settings.model.source)
    renderer = Renderer(settings.data.template, tokenizer, settings.data.arguments)
    chosen, prompts = select_documents(settings, renderer)
    if settings.pairs.goal == "gold":
        distributed.from_main(lambda: write(settings, output, *golds(chosen)))
        return
    path = output.with_name(output.name + ".samples")
    drawn = drawing.draw(settings, renderer, chosen, prompts, path, weights)
    distributed.from_main(lambda: choose(settings, workdir, chosen, drawn, output, weights))


def digest_of_weights(settings: Settings, workdir: Path) -> str:
    """What config.model.source holds today; "" where it is not there any more, or nothing is drawn from it.

    Called by all processes.
    """
    if settings.pairs.goal == "gold":
        return ""
    try:
        source = loading.pinned(settings.model.source)
    except UserError:
        return ""  # of samples that are complete: nothing else is made without it
    return distributed.from_main(lambda: Digests(workdir / "samples" / "digests.json").of(source))


def check(settings: Settings) -> None:
    """UserError for settings of config.pairs that contradict each other, and for a judge of itself."""
    own = settings.pairs
    if own.goal == "gold":
        return
    judges.require_apart(settings.judge, {"config.model.source": settings.model.source})
    least = 1 if own.choose == "gold" else 2
    if own.samples < least:
        raise UserError(
            f"config.pairs.samples={own.samples}: config.pairs.choose={own.choose!r} needs at least {least}"
        )
    if own.margin and not comparing.needs_judge(own):
        raise UserError(
            f"config.pairs.margin={own.margin} asks for a judge, and config.pairs.edits='any' for none: "
            "set config.pairs.edits=better, or the margin to 0"
        )
    if comparing.needs_judge(own):
        distributed.from_main(lambda: judges.check(settings.judge))


def select_documents(settings: Settings, renderer: Renderer) -> tuple[list[Document], list[Prompt]]:
    """config.pairs.count documents behind the first config.pairs.skip, and their prompts."""
    own = settings.pairs
    documents = document_sets.read(own.document_set, "config.pairs")
    name = f"{own.document_set.name} ({own.document_set.split})"
    chosen, prompts = select(
        documents, own.count, own.max_prompt_tokens, {"": renderer}, name, own.skip
    )
    return chosen, prompts[""]


def golds(chosen: list[Document]) -> tuple[list[Pair], str]:
    """What people wrote, and what there is to say of it."""
    pairs = [Pair(one.prompt, one.gold) for one in chosen if one.gold is not None]
    without = len(chosen) - len(pairs)
    return pairs, "golds" + (f"; {without} documents left out (no gold)" if without else "")


def choose(
    settings: Settings,
    workdir: Path,
    chosen: list[Document],
    drawn: list[Drawn],
    output: Path,
    weights: str,
) -> None:
    """Process 0: judges what was drawn, and writes the pairs to `output`."""
    own = settings.pairs
    asked = comparing.needs_judge(own)
    judge = judges.load(settings.judge, workdir, documents=chosen, keep=True) if asked else None
    found = [(document, one.texts) for document, one in zip(chosen, drawn, strict=True)]
    pairs, counts = comparing.make(own, found, judge)
    labelled = f", labelled by {judge.name}" if judge and own.goal == "preferences" else ""
    cut, total = sum(one.cut for one in drawn), own.samples * len(drawn)
    write(
        settings,
        output,
        pairs,
        f"pairs of goal {own.goal}{labelled}{counts}; {cut} of {total} completions were cut off at "
        f"{settings.sampling.max_new_tokens} tokens",
        weights,
    )


def write(
    settings: Settings, output: Path, pairs: list[Pair], what: str, weights: str = ""
) -> None:
    """Process 0: the pairs to a file, and what made them beside it; UserError where there are none."""
    if not pairs:
        raise UserError(f"pairs: none is left for {output}: 0 {what}")
    output.parent.mkdir(parents=True, exist_ok=True)
    said = made_of(settings, weights) | judged_by(settings)
    files.write_json(_beside(output), said)
    write_pairs(output, pairs)
    status(f"pairs: {output}: {len(pairs)} {what}")


def is_made(settings: Settings, output: Path, weights: str = "") -> bool:
    """Whether `output` is there; UserError naming the first setting that it was made with another value of,
    or that the model's weights were others.

    A file without its settings beside it, of another origin, counts as it is.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder: name the file that the pairs are to be written to")
    if not output.exists() or not _beside(output).is_file():
        return output.exists()
    before = files.read_json(_beside(output), f"delete it and {output.name} to make the pairs anew")
    for key, value in json.loads(json.dumps(made_of(settings, weights))).items():
        if before.get(key, value) != value:  # a key that was not there yet
            raise UserError(
                f"{output} was made with {key}={before[key]!r}, now {value!r}: delete it to make it "
                "anew, or use another --output"
            )
    return True


def say_made(settings: Settings, output: Path) -> None:
    """Process 0: that the pairs are there, and whether another judge than today's has labelled them."""
    there = _beside(output).is_file()
    kept = files.read_json(_beside(output), f"delete it and {output.name}") if there else {}
    now: dict[str, Any] = json.loads(json.dumps(judged_by(settings)))
    others = [
        f"{key}={kept[key]!r} and not {value!r}"
        for key, value in now.items()
        if comparing.needs_judge(settings.pairs) and kept.get(key, value) != value
    ]
    note = f", judged with {', '.join(others)}: delete it for that" if others else ""
    status(f"pairs: {output} is there already{note}")


def judged_by(settings: Settings) -> dict[str, Any]:
    """The settings that say who the judge is."""
    return {f"judge.{key}": getattr(settings.judge, key) for key in JUDGE}


def made_of(settings: Settings, weights: str) -> dict[str, Any]:
    """The settings that decide which pairs are made, the judge apart, who is often changed to judge models
    that are trained already; and the weights, where they are known."""
    flat = config_module.flatten(dataclasses.asdict(settings))
    drawn = settings.pairs.goal != "gold"
    decisive = ("model.", "pairs.", "sampling.") if drawn else ("model.", "pairs.")
    exact = ("seed", "data.template", "data.template_arguments", "data.template_date")
    said = {key: value for key, value in flat.items() if key.startswith(decisive) or key in exact}
    said = {key: value for key, value in said.items() if not key.startswith(HOW + REPLACED)}
    return said | ({drawing.WEIGHTS: weights} if weights else {})


def _beside(output: Path) -> Path:
    return output.with_name(output.name + ".settings")


def main(settings: Settings, workdir: Path, output: str | None, **goal: str | None) -> None:
    distributed.initialize()
    keep_compiled(workdir)
    if goal["for"] is not None:
        pairs = dataclasses.replace(settings.pairs, goal=goal["for"])
        settings = dataclasses.replace(settings, pairs=pairs)
    path = storage.place(output) if output else workdir / "pairs.jsonl"
    storage.check_writable(path, "--output")
    make_pairs(settings, workdir, path)


if __name__ == "__main__":
    command.run(
        main,
        ("model", "mesh", "data", "sampling", "pairs", "judge"),
        options={
            "output": "JSON lines file to write (default: pairs.jsonl in the workdir)",
            "for": "preferences, improve or gold: short for --config.pairs.goal",
        },
    )
