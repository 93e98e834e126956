"""What a run's data cost: trees built by the first start, read by the next ones, and a step's batch.

    python -m benchmarks.data [--pairs=1000000] [--batch_size=512] [--folder=DIR]

Synthetic pairs that are tokenised already: prompts of lognormal length (median 300 tokens), completions of
about 40. Each start is a process of its own, so that its resident memory is its own; the second one makes
50 batches as the train loop asks for them. Trees of a million pairs take 4 GB of disk in --folder.
"""

import functools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import app, flags

from srpo_jax.objectives.losses import DIRECT_SCORES, IMPROVE_SCORES
from srpo_jax.prompts import Prompt, sequences
from srpo_jax.training import pipeline, tree_files
from srpo_jax.trees import prefix_tree

PAIRS = flags.DEFINE_integer("pairs", 1_000_000, "pairs of the data set")
BATCH_SIZE = flags.DEFINE_integer("batch_size", 512, "pairs a step")
FOLDER = flags.DEFINE_string("folder", None, "where the trees are kept; removed by default")
START = flags.DEFINE_string("start", None, "first or second: does this start in this process")

NAMES = DIRECT_SCORES + IMPROVE_SCORES
BATCHES = 50
EOS = 0


@functools.cache
def text() -> list[int]:
    """A million tokens, of which prompts and completions are pieces: to cut them costs next to nothing."""
    tokens: list[int] = np.random.default_rng(0).integers(1, 30_000, 1_000_000).tolist()
    return tokens


def parts(number: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The six sequences of a pair; the same ones for a number every time."""
    rng, tokens = random.Random(number), text()

    def draw(median: float, spread: float, least: int, most: int) -> tuple[int, ...]:
        count = min(max(int(rng.lognormvariate(math.log(median), spread)), least), most)
        begin = rng.randrange(len(tokens) - most)
        return tuple(tokens[begin : begin + count])

    x, w, l = draw(300, 0.6, 20, 2000), draw(40, 0.4, 5, 200), draw(40, 0.4, 5, 200)
    return sequences(Prompt((*x, 1, 2), (*x, 3, 4), (5, 6)), w, l, NAMES, EOS)


def first(folder: Path) -> dict[str, float]:
    spent = 0.0

    def build(process: int, processes: int) -> Iterator[tuple[int, float, prefix_tree.Tree]]:
        nonlocal spent
        for number in range(process, PAIRS.value, processes):
            began = time.process_time()
            made = parts(number)
            spent += time.process_time() - began
            yield number, 1.0, prefix_tree.build(made)

    began, cpu = time.perf_counter(), time.process_time()
    tree_files.open_or_build(folder, build, lambda: PAIRS.value)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "seconds": seconds,
        "pairs a second": PAIRS.value / seconds,
        "ms a pair, of the processor, to make it up": 1e3 * spent / PAIRS.value,
        "ms a pair, of the processor, to build and write its tree": 1e3
        * (cpu - spent)
        / PAIRS.value,
        "GB on disk": sum(file.stat().st_size for file in folder.iterdir()) / 1e9,
    }


def second(folder: Path) -> dict[str, float]:
    began = time.perf_counter()
    found = tree_files.open_or_build(folder, _never, lambda: PAIRS.value)
    data = pipeline.PairTrees(NAMES, found.trees, found.labels)
    opened = time.perf_counter() - began
    packing = data.packing(BATCH_SIZE.value, 0, parts=8)
    packed = time.perf_counter() - began
    data.reference = {name: np.zeros(len(data), np.float32) for name in NAMES}
    batches = pipeline.batches(data, packing, 0)
    next(batches)
    ready = time.perf_counter()
    for _ in range(BATCHES):
        next(batches)
    step = (time.perf_counter() - ready) / BATCHES
    return {
        "seconds to open": opened,
        "seconds to the first batch": ready - began,
        "of them for row shapes": packed - opened,
        "ms a batch": 1e3 * step,
    }


def _never(process: int, processes: int) -> Iterator[tuple[int, float, prefix_tree.Tree]]:
    raise RuntimeError("the trees are built again")


def main(_: list[str]) -> None:
    if START.value:
        found = (first if START.value == "first" else second)(Path(FOLDER.value))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps(found | {"GB resident": memory}))
        return
    with tempfile.TemporaryDirectory() as own:
        folder = FOLDER.value or own
        for start in ("first", "second"):
            given = [f"--pairs={PAIRS.value}", f"--batch_size={BATCH_SIZE.value}"]
            command = [sys.executable, "-m", "benchmarks.data", f"--start={start}", *given]
            done = subprocess.run(
                [*command, f"--folder={folder}"], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{start} start of {PAIRS.value:,} pairs, {BATCH_SIZE.value} a step:")
            for what, value in found.items():
                print(f"  {what}: {value:.3g}")


if __name__ == "__main__":
    app.run(main)
