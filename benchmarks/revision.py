"""N revisions of the same prompts: each prefilled once, against prefilled again, and `transformers`.

    python -m benchmarks.revision [--dtype=float32] [--rows=16] [--peers] [--curves] [--output=DIR]

By default 5 revisions, prompts of 400 tokens and completions of 40, greedy; no completion ends before its
40 tokens are written, so that everyone does the same work. "Prefill again" is the same decoder, cache and
decoding loop, made to prefill all of every prompt. --peers adds transformers.generate (extra `bench`).
--uneven shows continuous batching instead: --prompts of uneven lengths, whose answers end at random, rows
refilled as they are done against a batch after the other.
--curves shows the time over the number of revisions, the lengths of prompt and completion, and the rows
(25 minutes on 2 cores with --layers=6 --rows=4 --repeats=1, most of it to prefill 4,000 tokens again).
--quick is a small try.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from flax import nnx

from benchmarks import common
from benchmarks.workload import Model, Workload, open_model
from srpo_jax import revision
from srpo_jax.models import creation
from srpo_jax.models.decoder import Decoder
from srpo_jax.prompts import Prompt
from srpo_jax.revision import Sampling, Spent, pool
from srpo_jax.runtime import mesh as mesh_module

MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "config.model.source")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of products and caches")
ROWS = flags.DEFINE_integer("rows", 16, "prompts, all in one batch")
PROMPT = flags.DEFINE_integer("prompt", 400, "tokens of a prompt")
NEW = flags.DEFINE_integer("new", 40, "tokens of a completion")
LAYERS = flags.DEFINE_integer("layers", 0, "only so many of the model's layers; 0 for all")
REVISIONS = flags.DEFINE_integer("revisions", 5, "N")
REPEATS = flags.DEFINE_integer("repeats", 3, "measured calls of each")
PEERS = flags.DEFINE_bool("peers", False, "also transformers.generate")
CURVES = flags.DEFINE_bool("curves", False, "growth with revisions, lengths and rows instead")
UNEVEN = flags.DEFINE_bool("uneven", False, "rows refilled against a batch after the other instead")
PROMPTS = flags.DEFINE_integer("prompts", 512, "for --uneven")
QUICK = flags.DEFINE_bool("quick", False, "two layers, short prompts: is everything in order?")
OUTPUT = flags.DEFINE_string("output", None, "folder for revision.md, revision.json and plots")

ANY_TOKEN = 1e6  # a temperature at which the model has no say
NO_END = -1  # an end of sequence that no model writes
OURS, CHAINED, AGAIN = "prefill once", "prefill once, chained", "prefill again"
GENERATE = "transformers.generate"


@dataclasses.dataclass
class Writer:
    """write(revisions, spent) -> [row][revision][token]; what the last call wrote, and its times.

    The first call is to warm up, and one revision does: what it compiles serves any number.
    """

    write: Callable[[int, Spent], list[list[list[int]]]]
    revisions: int
    written: Any = None
    spent: Spent = dataclasses.field(default_factory=Spent)

    def __call__(self) -> None:
        revisions = min(1, self.revisions) if self.written is None else self.revisions
        self.spent = Spent()
        self.written = self.write(revisions, self.spent)


def open_decoder(model: Model) -> Decoder:
    mesh = mesh_module.make(devices=jax.devices()[:1])
    return nnx.merge(*creation.create(model.config, model.weights, mesh, 0))


class Forgetful(Prompt):
    """A prompt of which nothing is remembered: each improve prompt is prefilled from its first token."""

    @property
    def shared(self) -> int:
        return 0


def ours(decoder: Decoder, prompts: Sequence[Prompt], revisions: int, new: int) -> Writer:
    sampling = Sampling(max_new_tokens=new, batch_size=len(prompts))

    def write(revisions: int, spent: Spent) -> list[list[list[int]]]:
        return revision.revise_ids(decoder, prompts, revisions, sampling, eos=NO_END, spent=spent)

    return Writer(write, revisions)


def generate(model: Model, prompts: Sequence[Prompt], revisions: int, new: int) -> Writer:
    """`transformers.generate` on each prompt in turn, its own cache within each generation."""
    import torch
    import transformers

    from benchmarks import peers_torch

    dtype = getattr(torch, model.config.dtype)
    network = peers_torch.torch_model(model.weights, model.config).to(dtype).eval()
    settings = transformers.GenerationConfig(
        max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None
    )

    def complete(rows: Sequence[Sequence[int]]) -> list[list[int]]:
        longest = max(map(len, rows))
        ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
        valid = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        with torch.inference_mode():
            out = network.generate(ids, attention_mask=valid, generation_config=settings)
        return out[:, longest:].tolist()

    def write(revisions: int, spent: Spent) -> list[list[list[int]]]:
        written = [complete([prompt.direct for prompt in prompts])]
        for _ in range(revisions):
            shown = [p.improve(y) for p, y in zip(prompts, written[-1], strict=True)]
            written.append(complete(shown))
        return [list(row) for row in zip(*written, strict=True)]

    return Writer(write, revisions)


def writers(decoder: Decoder, work: Workload, revisions: int) -> dict[str, Writer]:
    """This framework's ways of writing revisions of the same prompts."""
    # A completion's end counts with it in training; here all of its tokens are written.
    prompts = [prompt for prompt, _, _ in work.prompts()]
    chained = [p for p, _, _ in dataclasses.replace(work, template="chained").prompts()]
    again = [Forgetful(p.direct, p.before, p.after) for p in prompts]
    return {
        OURS: ours(decoder, prompts, revisions, work.completion),
        CHAINED: ours(decoder, chained, revisions, work.completion),
        AGAIN: ours(decoder, again, revisions, work.completion),
    }


def agreement(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The share of tokens two writers have in common: below 1 where rounding decided between two tokens."""
    return float(np.mean(np.array(a) == np.array(b)))


def compare(steps: Mapping[str, Writer], repeats: int) -> list[dict[str, Any]]:
    """A row for each: seconds, share of time in prefill, how many times longer than the first."""
    seconds = common.interleaved(steps, repeats)
    middle = common.medians(seconds)
    rows = []
    for name, writer in steps.items():
        known = writer.spent.prefill + writer.spent.decode
        rows.append(
            {
                "revision": name,
                "seconds": middle[name],
                "fastest": min(seconds[name]),
                "slowest": max(seconds[name]),
                "prefill, %": 100 * writer.spent.prefill / known if known else "",
                "time / first": middle[name] / middle[OURS],
                "same tokens as the first": agreement(writer.written, steps[OURS].written),
            }
        )
    return rows


def uneven(model: Model, decoder: Decoder, rows: int, revisions: int, repeats: int) -> list[Any]:
    """Prompts of lognormal length; each token is drawn from all alike, and of 24 one ends the answer."""
    rng = np.random.default_rng(0)
    vocabulary, stops = model.config.vocab_size, range(0, model.config.vocab_size, 24)
    prompts = []
    for length in np.clip(rng.lognormal(np.log(PROMPT.value), 0.6, PROMPTS.value), 4, 1000):
        x = tuple(map(int, rng.integers(0, vocabulary, int(length))))
        prompts.append(Prompt((*x, 3), (*x, 4), (5,)))
    three = (pool.answer, pool.improve, pool.decode)
    programs = {}

    def writer(refill: float) -> Writer:
        sampling = Sampling(2 * NEW.value, ANY_TOKEN, batch_size=rows, refill=refill)

        def write(revisions: int, spent: Spent) -> list[list[list[int]]]:
            before = sum(program._cache_size() for program in three)
            written = revision.revise_ids(
                decoder, prompts, revisions, sampling, eos=tuple(stops), spent=spent
            )
            compiled = sum(program._cache_size() for program in three) - before
            programs[refill] = programs.get(refill, 0) + compiled
            return written

        return Writer(write, revisions)

    steps = {"refilled": writer(Sampling().refill), "a batch after the other": writer(1.0)}
    middle = common.medians(common.interleaved(steps, repeats))
    lengths = [len(y) for row in steps["refilled"].written for y in row]
    return [
        {
            "rows": name,
            "seconds": middle[name],
            "time / first": middle[name] / middle["refilled"],
            "prefill, s": steps[name].spent.prefill,
            "decode, s": steps[name].spent.decode,
            "programs": count,
            "tokens of an answer, median and most": f"{np.median(lengths):.0f}, {max(lengths)}",
            "same texts as the first": steps[name].written == steps["refilled"].written,
        }
        for name, count in zip(steps, programs.values(), strict=True)
    ]


def curves(
    decoder: Decoder, work: Workload, revisions: int, repeats: int
) -> dict[str, list[dict[str, Any]]]:
    """Time of a batch by number of revisions, lengths of prompt and completion, and rows."""
    axes: dict[str, Sequence[int]] = {
        "revisions": range(0, 11, 2),
        "prompt": (100, 400, 1000, 2000, 4000),
        "completion": (20, 40, 100, 200, 400),
        "rows": (1, 4, 16, 32),
    }
    sections: dict[str, list[dict[str, Any]]] = {}
    for axis, values in axes.items():
        sections[axis] = []
        for value in values:
            n = value if axis == "revisions" else revisions
            field = "pairs" if axis == "rows" else axis
            sized = work if axis == "revisions" else dataclasses.replace(work, **{field: value})
            steps = writers(decoder, sized, n)
            middle = common.medians(common.interleaved(steps, repeats))
            sections[axis].append({axis: value, **middle})
    return sections


def draw(sections: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(sections), figsize=(4.5 * len(sections), 3.6))
    for plot, (axis, rows) in zip(axes, sections.items(), strict=True):
        for name in (n for n in rows[0] if n != axis):
            plot.plot([r[axis] for r in rows], [r[name] for r in rows], "o-", label=name)
        plot.set(
            xlabel=f"{axis} (tokens)" if axis in ("prompt", "completion") else axis, ylim=(0, None)
        )
    axes[0].set_ylabel("seconds of a batch")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
    quick = QUICK.value
    model = open_model(
        MODEL.value, DTYPE.value, "none", rank=0, layers=2 if quick else LAYERS.value
    )
    work = Workload(
        2 if quick else ROWS.value,
        20 if quick else PROMPT.value,
        4 if quick else NEW.value,
        vocabulary=model.config.vocab_size,
    )
    decoder = open_decoder(model)
    if CURVES.value:
        sections = curves(decoder, work, REVISIONS.value, REPEATS.value)
        common.report(f"revision_curves_{DTYPE.value}", OUTPUT.value, sections)
        if OUTPUT.value:
            draw(sections, Path(OUTPUT.value) / "revision.png")
        return
    if UNEVEN.value:
        rows = uneven(model, decoder, ROWS.value, REVISIONS.value, REPEATS.value)
        title = f"{MODEL.value}, {PROMPTS.value} prompts, {ROWS.value} rows, {REVISIONS.value} revisions"
        common.report(f"revision_uneven_{DTYPE.value}", OUTPUT.value, {title: rows})
        return
    steps = writers(decoder, work, REVISIONS.value)
    if PEERS.value:
        prompts = [prompt for prompt, _, _ in work.prompts()]
        steps[GENERATE] = generate(model, prompts, REVISIONS.value, work.completion)
    title = (
        f"{MODEL.value}, {DTYPE.value}, {work.pairs} rows, prompts of {work.prompt}, {work.completion} "
        f"new tokens, {REVISIONS.value} revisions"
    )
    common.report(f"revision_{DTYPE.value}", OUTPUT.value, {title: compare(steps, REPEATS.value)})


if __name__ == "__main__":
    app.run(main)
