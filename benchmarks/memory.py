"""What memory a train step takes: measured beside PyTorch's, and how it grows with the rows.

    python -m benchmarks.memory [--dtype=float32] [--pairs=2] [--peers] [--curves] [--output=DIR]

Takes the flags of benchmarks/step.py. Each step runs in a process of its own: once to compile and to
allocate the optimiser's state, then once more, measured. --curves runs nothing: it compiles our step for
rows packed with ever more pairs, under dense and under blockwise attention, and reads what XLA allocates.
"""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks import common, steps, workload
from benchmarks import step as step_benchmark
from benchmarks.workload import Model, Workload
from srpo_jax import objectives
from srpo_jax.models import creation
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training import step
from srpo_jax.training.optimizer import OptimizerSettings, make_optimizer

ONLY = flags.DEFINE_string("only", None, "measure this step in this process, print it as JSON")

GIB, MIB = 2**30, 2**20
PAIRS = (1, 2, 4, 8, 12, 16, 20)  # of a row, in --curves
ATTENTION = ("blockwise", "dense")
STEP_FLAGS = (
    step_benchmark.MODEL,
    step_benchmark.DTYPE,
    step_benchmark.PAIRS,
    step_benchmark.PROMPT,
    step_benchmark.COMPLETION,
    step_benchmark.REMAT,
    step_benchmark.RANK,
    step_benchmark.LAYERS,
)


def measure(name: str, model: Model, work: Workload) -> dict[str, float]:
    """The second step's memory in GiB, of one of step_benchmark.names()."""
    run = step_benchmark.make(name, model, work)
    model.weights.clear()  # each step has its own copy by now
    run()
    before, most = common.peak(run)
    return {"before": before / GIB, "peak": most / GIB, "step adds": (most - before) / GIB}


def measure_apart(name: str) -> dict[str, float]:
    """`measure` in a new process, with this one's flags."""
    settings = [f"--{flag.name}={flag.value}" for flag in STEP_FLAGS]
    command = [sys.executable, "-m", "benchmarks.memory", f"--only={name}", *settings]
    done = subprocess.run(
        command, env=os.environ | common.ALLOCATOR, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def compiled_memory(model: Model, batch: dict[str, Any]) -> Any:
    """XLA's account of our SRPO step's memory on one device; compiled, not run."""
    mesh = mesh_module.make(devices=jax.devices()[:1])
    graphdef, trained, frozen = creation.create(model.config, model.weights, mesh, 0)
    optimizer, _ = make_optimizer(OptimizerSettings(), steps=100)
    objective = objectives.get("srpo")
    programs = step.TrainStep(graphdef, optimizer, objective, steps.HYPER, mesh).compile(trained)
    state = step.TrainState(trained, jax.eval_shape(programs.init, trained))
    return programs.train.lower(state, frozen, batch).compile().memory_analysis()


def growth(model: Model, work: Workload, pairs: Sequence[int]) -> list[dict[str, float]]:
    """A row of the table for each number of pairs that share a row: slots, and MiB under each attention."""
    needs = objectives.get("srpo").needs
    table = []
    for count in pairs:
        batch = workload.trees_batch(dataclasses.replace(work, pairs=count), needs)
        rows: dict[str, float] = {"pairs": count, "slots": batch["rows"].tokens.shape[1]}
        for kind in ATTENTION:
            config = dataclasses.replace(model.config, attention=kind)
            memory = compiled_memory(dataclasses.replace(model, config=config), batch)
            rows[f"{kind} (MiB)"] = memory.temp_size_in_bytes / MIB
        print(f"  {rows}", file=sys.stderr, flush=True)
        table.append(rows)
    return table


def line(rows: Sequence[dict[str, float]], name: str) -> dict[str, float]:
    """The least-squares line through a column over the slots, and how far the column is from it.

    residual: the largest distance from the line, as a fraction of the column's largest value.
    """
    slots, values = (np.array([row[key] for row in rows]) for key in ("slots", name))
    slope, constant = np.polyfit(slots, values, 1)
    residual = np.abs(values - (slope * slots + constant)).max() / values.max()
    return {
        "MiB / 1000 slots": float(1000 * slope),
        "constant (MiB)": float(constant),
        "residual": float(residual),
    }


def draw(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Each attention's memory over the slots, and the line through blockwise attention's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plot = pyplot.subplots(figsize=(5, 3.6))
    slots = np.array([row["slots"] for row in rows])
    for kind in ATTENTION:
        plot.plot(slots, [row[f"{kind} (MiB)"] / 1024 for row in rows], "o", label=kind)
    fit = line(rows, "blockwise (MiB)")
    fitted = fit["constant (MiB)"] + fit["MiB / 1000 slots"] * slots / 1000
    plot.plot(slots, fitted / 1024, color="C0", linewidth=1, label="line through blockwise")
    plot.set(xlabel="slots of the packed row", ylabel="temporary memory of a step (GiB)")
    plot.set(xlim=(0, None), ylim=(0, None))
    plot.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main(_: list[str]) -> None:
    source, dtype, pairs, prompt, completion, *computed = (flag.value for flag in STEP_FLAGS)
    output = step_benchmark.OUTPUT.value
    if not (ONLY.value or step_benchmark.CURVES.value):
        rows = [{"step": name, **measure_apart(name)} for name in step_benchmark.names()]
        common.report(f"memory_{dtype}", output, {"Memory of a step (GiB)": rows})
        return
    model = workload.open_model(source, dtype, *computed)
    work = Workload(pairs, prompt, completion, vocabulary=model.config.vocab_size)
    if ONLY.value:
        print(json.dumps(measure(ONLY.value, model, work)))
        return
    rows = growth(model, work, PAIRS)
    fits = [{"attention": kind, **line(rows, f"{kind} (MiB)")} for kind in ATTENTION]
    common.report(
        "memory_curves", output, {"Temporary memory of a step": rows, "Lines through it": fits}
    )
    if output:
        draw(rows, Path(output) / "memory.png")


if __name__ == "__main__":
    app.run(main)
