"""The command line: runs the plan, with as many processes as asked for, prints the tables, draws."""

import argparse
import dataclasses
import math
import multiprocessing
import os
import platform
import time
from pathlib import Path

import flax
import jax

from srpo_jax.runtime.errors import UserError
from srpo_jax.theory.bandit_picture import make_folder, one_sentence
from srpo_jax.theory.revision_task import picture
from srpo_jax.theory.revision_task.cells import METHODS, Store
from srpo_jax.theory.revision_task.network import HEADS, Recipe
from srpo_jax.theory.revision_task.plan import USUAL, Plan, carry_out
from srpo_jax.theory.revision_task.summary import summary

SEEDS, ALL_SEEDS = (1, 2, 3), tuple(range(1, 11))
VALIDATION_SEEDS = (101, 102)


def main(arguments: list[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    with one_sentence():
        plan = planned(options)
        make_folder(options.output)
        began = time.perf_counter()
        perform(Store(options.output), plan, options.workers)
        told = summary(Store(options.output), plan) + _provenance(time.perf_counter() - began)
        (options.output / "summary.md").write_text(told, "utf-8")
        picture.draw(options.output / "revision_task.png", Store(options.output), plan)
        print(told)
        print(f"wrote {options.output / 'summary.md'} and {options.output / 'revision_task.png'}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m srpo_jax.theory.revision_task",
        description="A task whose answer by revision is known exactly: the closed forms of SRPO, DPO and "
        "IPO beside a small transformer trained with each. An interrupted command goes on.",
    )
    add = parser.add_argument
    add("--output", type=Path, default=Path("runs/revision_task"), help="folder (%(default)s)")
    add("--seeds", type=int, nargs="+", help="of the test (1 2 3; with --full 1 to 10)")
    add("--validation-seeds", type=int, nargs="+", default=VALIDATION_SEEDS, help="(101 102)")
    add(
        "--methods",
        nargs="+",
        help=f"of {', '.join(METHODS)} (with --full all, else {', '.join(USUAL)})",
    )
    add("--grid", type=int, default=4, help="values of beta for each method (%(default)s)")
    add("--nll-weight", type=float, default=0.1, help="of the anchor (%(default)s)")
    add("--prompts", type=int, default=256, help="in, and as many out of distribution")
    add("--full", action="store_true", help="greedy, fixed length, both preferences, whole grids")
    add("--study", action="store_true", help="ablations of the anchored SRPO too")
    add("--workers", type=int, default=min(2, os.cpu_count() or 1), help="processes (%(default)s)")
    add(
        "--set",
        nargs="+",
        default=(),
        metavar="KEY=NUMBER",
        help="sizes: " + ", ".join(_sizes()),
    )
    return parser


def planned(options: argparse.Namespace) -> Plan:
    """Raises UserError for an option that is out of range."""
    if options.workers < 1 or options.prompts < 1:
        raise UserError("--workers and --prompts must be 1 or more")
    methods = tuple(options.methods or (METHODS if options.full else USUAL))
    if options.study and "srpo_anchored" not in methods:
        raise UserError("--study is of srpo_anchored: --methods must have it")
    return Plan(
        seeds=tuple(options.seeds or (ALL_SEEDS if options.full else SEEDS)),
        validation_seeds=tuple(options.validation_seeds),
        methods=methods,
        grid=options.grid,
        nll_weight=options.nll_weight,
        recipe=_recipe(options.set),
        prompts=options.prompts,
        everything=options.full,
        study=options.study,
    )


def _sizes() -> dict[str, type]:
    defaults = dataclasses.asdict(Recipe())
    return {key: type(v) for key, v in defaults.items() if not isinstance(v, str)}


def _recipe(given: list[str]) -> Recipe:
    changes = {}
    for text in given:
        key, _, value = text.partition("=")
        if key not in _sizes():
            raise UserError(f"--set {text}: {key!r} is none of {', '.join(_sizes())}")
        try:
            changes[key] = _sizes()[key](value)
        except ValueError:
            raise UserError(f"--set {text}: {value!r} is not a number of its kind") from None
        if key == "sft_slips":
            if not 0 <= changes[key] <= 1:
                raise UserError(f"--set {text}: {key} is a share, from 0 to 1")
        elif not 0 < changes[key] < math.inf:
            raise UserError(f"--set {text}: {key} must be above 0, and finite")
    recipe = dataclasses.replace(Recipe(), **changes)
    if (part := recipe.width // HEADS) == 0 or part % 2:
        raise UserError(
            f"--set width={recipe.width}: each of {HEADS} heads must have an even number of entries: make "
            f"it a multiple of {2 * HEADS}"
        )
    return recipe


def perform(store: Store, plan: Plan, workers: int) -> None:
    """Carries the plan out with this process and workers - 1 others; they share what is left to do."""
    context = multiprocessing.get_context("spawn")
    places = range(1, workers)
    others = [context.Process(target=_worker, args=(store, plan, i, workers)) for i in places]
    for process in others:
        process.start()
    try:
        _worker(store, plan, 0, workers)
    finally:
        for process in others:
            process.join()


def _worker(store: Store, plan: Plan, place: int, workers: int) -> None:
    # Processes that share cores wait for each other; where the system lets it be said, each has its own.
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if 1 < workers <= len(cores):
            os.sched_setaffinity(0, cores[place::workers])
    # What one process has compiled, the others and the next command read.
    jax.config.update("jax_compilation_cache_dir", str(store.folder.resolve() / "compiled"))
    carry_out(store, plan)


def _provenance(seconds: float) -> str:
    return (
        f"\n{seconds / 60:.1f} minutes for what was not there before, on {os.cpu_count()} cores of a "
        f"{platform.machine()} machine; Python {platform.python_version()}, jax {jax.__version__}, flax "
        f"{flax.__version__}.\n"
    )
