"""Train steps on the same pairs with the same weights: SRPO trees, separate rows, DPO, and PyTorch peers.

    python -m benchmarks.step [--dtype=float32] [--pairs=2] [--peers] [--steps=REGEX] [--curves]

Prompts of 400 and completions of 40 tokens by default. All steps of a table are warmed up and then take
turns, each with a call that does not count and one that does; the table has medians and ratios. --peers
also runs TRL's DPOTrainer and a six-row SRPO step in PyTorch (extra `bench`). All models of a table are in
memory together, with their optimisers: --steps chooses some. --curves measures how the time grows with
pairs, prompt and completion.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import common
from benchmarks.steps import HYPER, VARIANTS, Step, variant
from benchmarks.workload import Model, Workload, open_model
from srpo_jax.runtime.errors import UserError

MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "config.model.source")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "of the products")
PAIRS = flags.DEFINE_integer("pairs", 2, "pairs a step")
PROMPT = flags.DEFINE_integer("prompt", 400, "tokens of a prompt")
COMPLETION = flags.DEFINE_integer("completion", 40, "tokens of a completion, its end included")
REMAT = flags.DEFINE_string("remat", "dots", "config.model.remat")
RANK = flags.DEFINE_integer("rank", 0, "config.lora.rank; 0 trains all weights")
LAYERS = flags.DEFINE_integer("layers", 0, "only so many of the model's layers; 0 for all")
REPEATS = flags.DEFINE_integer("repeats", 5, "measured calls of each step")
PEERS = flags.DEFINE_bool("peers", False, "also PyTorch's")
STEPS = flags.DEFINE_string("steps", "", "regular expression: only the steps whose names it finds")
CURVES = flags.DEFINE_bool("curves", False, "growth with pairs, prompt and completion instead")
OUTPUT = flags.DEFINE_string("output", None, "folder for step.md, step.json and plots")


def compare(steps: dict[str, Step], pairs: int, repeats: int) -> list[dict[str, Any]]:
    """A row for each step: seconds, pairs a second, and how many times faster the first step is."""
    seconds = common.interleaved(steps, repeats, settle=True)
    middle = common.medians(seconds)
    ours = next(iter(middle.values()))
    return [
        {
            "step": name,
            "seconds": middle[name],
            "fastest": min(seconds[name]),
            "slowest": max(seconds[name]),
            "pairs/s": pairs / middle[name],
            "time / first": middle[name] / ours,
        }
        for name in steps
    ]


def curves(model: Model, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """How the time of a step grows with the pairs of a row, with the prompt and with the completion."""
    base = Workload(2, 400, 40, vocabulary=model.config.vocab_size)
    axes: dict[str, tuple[Sequence[int], Sequence[str]]] = {
        "pairs": ((2, 4, 8, 16), VARIANTS[:1]),
        "prompt": ((100, 200, 400, 1000, 2000, 4000), VARIANTS),
        "completion": ((20, 40, 100, 200, 400), VARIANTS),
    }
    sections = {}
    for axis, (values, names) in axes.items():
        middle: dict[str, float] = {}
        # Sizes of one step take turns; of many steps they would not fit into memory together.
        for sizes in [values] if len(names) == 1 else [[value] for value in values]:
            steps = {
                f"{name} {value}": variant(name, model, dataclasses.replace(base, **{axis: value}))
                for value in sizes
                for name in names
            }
            middle |= common.medians(common.interleaved(steps, repeats))
        sections[axis] = [
            {axis: value, **{name: middle[f"{name} {value}"] for name in names}} for value in values
        ]
    return sections


def exponent(rows: Sequence[dict[str, Any]], axis: str, name: str) -> float:
    """The slope of log time over log size, by least squares."""
    size, seconds = (np.log([row[key] for row in rows]) for key in (axis, name))
    return float(np.polyfit(size, seconds, 1)[0])


def draw(sections: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Time against each axis, relative to the SRPO tree's time at its smallest size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, len(sections), figsize=(4.5 * len(sections), 3.6))
    for plot, (axis, rows) in zip(axes, sections.items(), strict=True):
        unit = rows[0][VARIANTS[0]]
        for name in (n for n in VARIANTS if n in rows[0]):
            sizes, times = [r[axis] for r in rows], [r[name] / unit for r in rows]
            plot.plot(sizes, times, marker="o", label=name)
        plot.set(xscale="log", yscale="log", xlabel=f"{axis} (tokens)" if axis != "pairs" else axis)
        plot.set_xticks(sizes, [str(size) for size in sizes])
        plot.minorticks_off()
        plot.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        plot.yaxis.set_major_formatter("{x:g}")
    axes[0].set_ylabel(f"time of a step / {VARIANTS[0]} at the left")
    axes[-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def names() -> list[str]:
    """The steps that the flags ask for. Raises UserError if --steps finds none."""
    known = list(VARIANTS)
    if PEERS.value:
        from benchmarks import peers

        known += peers.NAMES
    found = [name for name in known if re.search(STEPS.value, name)]
    if not found:
        raise UserError(f"--steps={STEPS.value!r} finds none of: {'; '.join(known)}")
    return found


def make(name: str, model: Model, work: Workload) -> Step:
    """One of names(), ready to run."""
    if name in VARIANTS:
        return variant(name, model, work)
    from benchmarks import peers

    return peers.make(name, model, work, HYPER)


def main(_: list[str]) -> None:
    model = open_model(MODEL.value, DTYPE.value, REMAT.value, RANK.value, LAYERS.value)
    if CURVES.value:
        sections = curves(model, REPEATS.value)
        slope = exponent(sections["pairs"], "pairs", VARIANTS[0])
        sections["time ~ pairs ^ exponent"] = [{"exponent": slope}]
        common.report("step_curves", OUTPUT.value, sections)
        if OUTPUT.value:
            draw({k: v for k, v in sections.items() if len(v) > 1}, Path(OUTPUT.value) / "step.png")
        return
    work = Workload(PAIRS.value, PROMPT.value, COMPLETION.value, vocabulary=model.config.vocab_size)
    steps = {name: make(name, model, work) for name in names()}
    title = f"{MODEL.value}, {DTYPE.value}, {json.dumps(dataclasses.asdict(work))}"
    common.report(
        f"step_{DTYPE.value}", OUTPUT.value, {title: compare(steps, work.pairs, REPEATS.value)}
    )


if __name__ == "__main__":
    app.run(main)
