"""One run, a cell of the grid, and the file that keeps what came of it.

A cell says all that decides its result, and its digest is the key of its line in OUTPUT/cells.jsonl: a
command that was interrupted goes on where it stopped, and several processes share the work. What they take
is a method on one seed, with all its betas. A lock on a file says that it is taken; the system lets go of
the lock when the process ends, however it ends.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srpo_jax import objectives
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.theory.revision_task import compute, measure, network, online
from srpo_jax.theory.revision_task.desk import Desk
from srpo_jax.theory.revision_task.exact import REVISIONS
from srpo_jax.theory.revision_task.measure import SAMPLED, Way
from srpo_jax.theory.revision_task.network import PROMPTS_SEED, Examples, Model, Recipe

VERSION = 3  # of what a cell means; another one makes old lines strangers
WHERE = ("in", "out")  # of distribution


@dataclasses.dataclass(frozen=True)
class Method:
    """How a policy is trained, and the values of beta that are tried, the largest first.

    objective: "" for the start as it is. closed_form: the method of `exact` that it is laid beside. online:
    it learns from what it writes, not from pairs.
    """

    label: str
    objective: str
    betas: tuple[float, ...]
    closed_form: str
    anchored: bool = False
    online: bool = False


METHODS: dict[str, Method] = {
    "srpo": Method("SRPO, the paper's loss", "srpo", (0.2, 0.1, 0.05, 0.025), "srpo"),
    "srpo_anchored": Method("SRPO, anchored", "srpo", (0.2, 0.1, 0.05, 0.025), "srpo", True),
    "dpo": Method("DPO", "dpo", (2.0, 1.0, 0.5, 0.25), "dpo"),
    "dpo_anchored": Method("DPO, anchored (RPO)", "rpo", (2.0, 1.0, 0.5, 0.25), "dpo", True),
    "ipo": Method("IPO", "ipo", (0.4, 0.2, 0.1, 0.05), "ipo"),
    # Rewarded by the score that P is made of, they share DPO's optimum, and so its betas.
    "rloo": Method("RLOO, online", "rloo", (2.0, 1.0, 0.5, 0.25), "dpo", online=True),
    "ppo": Method("PPO, online", "ppo", (2.0, 1.0, 0.5, 0.25), "dpo", online=True),
}
START = Method("the start (SFT)", "", (0.0,), "start")


@dataclasses.dataclass(frozen=True)
class Cell:
    """method: a key of METHODS, or "start". split: of the prompts. ways: how its answers are decoded."""

    method: str
    beta: float
    seed: int
    split: str
    desk: Desk = field(default_factory=Desk)
    recipe: Recipe = field(default_factory=Recipe)
    writer: str = "A"
    alpha: float = 0.5
    nll_weight: float = 0.0
    prompts: int = 256
    ways: tuple[Way, ...] = (SAMPLED,)

    @property
    def digest(self) -> str:
        text = json.dumps([VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def hyper(self) -> dict[str, float]:
        """What a loss of pairs takes. SRPO without its anchor runs the same program with weight 0."""
        given = {"beta": self.beta, "alpha": self.alpha, "nll_weight": self.nll_weight}
        reads = objectives.get(METHODS[self.method].objective).hyperparameters
        return {name: value for name, value in given.items() if name in reads}


Record = dict[str, Any]


# --- the file -----------------------------------------------------------------------------------------


class Store:
    """OUTPUT, its cells.jsonl, and the locks of those who work on it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "cells.jsonl"

    def records(self) -> dict[str, Record]:
        """digest -> what was found. A line that a killed process left half written counts as none."""
        if not self.path.is_file():
            return {}
        return _parsed(self.path, self.path.stat().st_size)

    def find(self, cells: Iterable[Cell]) -> list[Record]:
        """The records of these cells. Raises UserError where one has not been run."""
        records = self.records()
        chosen = []
        for cell in cells:
            if cell.digest not in records:
                raise UserError(
                    f"{self.path} lacks {cell.method} beta {cell.beta:g} seed {cell.seed}: run the "
                    "command again with the same --output"
                )
            chosen.append(records[cell.digest])
        return chosen

    def add(self, record: Record) -> None:
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # the half line of a killed process
                    file.write(b"\n")
            file.write(json.dumps(record).encode() + b"\n")

    @contextlib.contextmanager
    def taken(self, name: str, wait: bool) -> Iterator[bool]:
        """Whether the lock `name` is ours for the block; with wait, it will be."""
        path = self.folder / "locks" / f"{name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


@functools.lru_cache(maxsize=1)
def _parsed(path: Path, size: int) -> dict[str, Record]:
    """size: of the file, to which lines are only added."""
    found = {}
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            record = json.loads(line)
            found[record["digest"]] = record
    return found


def work(store: Store, cells: Sequence[Cell]) -> None:
    """Returns when all cells are in the store, whoever ran them."""
    groups: dict[Group, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_group(cell), []).append(cell)
    busy = [g for g in _dealt(list(groups)) if not _work_on(store, g, groups[g], wait=False)]
    for group in busy:  # what others have begun; if they ended before it was done, it is done here
        _work_on(store, group, groups[group], wait=True)


class Group(NamedTuple):
    """The cells that one process takes at a time: those of a start and of pairs that it has in hand."""

    seed: int
    method: str
    rest: tuple[Recipe, Desk, str]


def _group(cell: Cell) -> Group:
    return Group(cell.seed, cell.method, (cell.recipe, cell.desk, cell.writer))


def _dealt(groups: Sequence[Group]) -> list[Group]:
    """So that processes which take them in this order make different starts and compile different programs:
    from seed to seed in turn, and of every second seed the last ones first."""
    seeds: dict[int, list[Group]] = {}
    for group in groups:
        seeds.setdefault(group.seed, []).append(group)
    turns = [mine[:: -1 if i % 2 else 1] for i, mine in enumerate(seeds.values())]
    rounds = itertools.zip_longest(*turns)
    return [group for one in rounds for group in one if group is not None]


def _work_on(store: Store, group: Group, cells: Sequence[Cell], wait: bool) -> bool:
    """False where another process is at it."""
    with store.taken(f"cells-{_short(group)}", wait) as ours:
        if not ours:
            return False
        records = store.records()
        for cell in dict.fromkeys(cells):
            if (parent := multiprocessing.parent_process()) and not parent.is_alive():
                sys.exit("the command that began this process has ended")
            if cell.digest not in records:
                store.add(run(cell, store.folder))
    return True


def _short(key: object) -> str:
    return hashlib.sha256(repr((VERSION, key)).encode()).hexdigest()[:16]


# --- one cell -----------------------------------------------------------------------------------------


def run(cell: Cell, folder: Path) -> Record:
    """Trains, writes and measures: {"digest", "cell", "in", "out", "seconds", …}, JSON throughout.

    "in", "out": {"1 free": Written as a dict} by way, and "kl", of y_0 and of each revision, nats, and
    "best_of", the win rate of the likeliest of 1 + REVISIONS answers. "training": means of the last ten
    steps' metrics.
    """
    began = time.perf_counter()
    start = _start(cell.desk, cell.recipe.start(), cell.seed, folder)
    model, training = start, {}
    if cell.method != "start":
        model, metrics = _trained(cell, start, folder)
        training = {name: float(values[-10:].mean()) for name, values in metrics.items()}
    record: Record = {"digest": cell.digest, "cell": dataclasses.asdict(cell), "training": training}
    record |= _measured(cell, model, start)
    record["seconds"] = round(time.perf_counter() - began, 1)
    wins = " ".join(f"{w:.1f}" for w in record["in"][way_name(cell.ways[0])]["win_rate"])
    status(
        f"{cell.split} seed {cell.seed} {cell.method} beta {cell.beta:g} {cell.desk.preference} "
        f"{cell.writer}: {wins} ({record['seconds']:.0f} s)"
    )
    return record


def _trained(cell: Cell, start: Model, folder: Path) -> tuple[Model, dict[str, np.ndarray]]:
    method = METHODS[cell.method]
    if not method.online:
        examples = _examples(cell, folder)
        return network.train(start, method.objective, examples, cell.recipe, cell.hyper())
    rounds = compute.rounds(method.objective, cell.desk, cell.recipe)
    return online.train(
        start, method.objective, cell.desk, cell.recipe, cell.beta, cell.seed, rounds
    )


def _measured(cell: Cell, model: Model, start: Model) -> Record:
    rng = np.random.default_rng(PROMPTS_SEED[cell.split])
    symbols = {where: cell.desk.draw(cell.prompts, where, rng) for where in WHERE}
    both = np.concatenate(list(symbols.values()))
    parts = {"in": slice(0, cell.prompts), "out": slice(cell.prompts, None)}
    found: Record = {where: {} for where in WHERE}
    for way in cell.ways:
        written = measure.write(model, cell.desk, both, way, REVISIONS, cell.seed)
        for where, part in parts.items():
            answers = [ys[part] for ys in written]
            judged = measure.judged(cell.desk, symbols[where], answers)
            found[where][way_name(way)] = dataclasses.asdict(judged)
            if way == SAMPLED:
                kl = measure.distances(model, start, cell.desk, symbols[where], answers)
                best = measure.best_of(
                    model, cell.desk, symbols[where], 1 + REVISIONS, cell.seed + 1
                )
                found[where] |= {"kl": kl, "best_of": best}
    return found


def way_name(way: Way) -> str:
    return f"{way.temperature:g} {way.length}"


@functools.lru_cache(maxsize=4)
def _begun(desk: Desk, recipe: Recipe, seed: int, folder: Path) -> Model:
    name = f"{_short((desk, recipe))}-{seed}"
    with Store(folder).taken(f"start-{name}", wait=True):  # it is made once
        return network.begin(desk, recipe, seed, folder / "starts" / f"{name}.npz")


def _start(desk: Desk, recipe: Recipe, seed: int, folder: Path) -> Model:
    # The start knows no preference.
    return _begun(dataclasses.replace(desk, preference="score"), recipe, seed, folder)


def _examples(cell: Cell, folder: Path) -> Examples:
    needs = objectives.get(METHODS[cell.method].objective).needs
    return _scored(cell.desk, cell.recipe, cell.writer, cell.seed, needs, folder)


@functools.lru_cache(maxsize=6)
def _scored(
    desk: Desk, recipe: Recipe, writer: str, seed: int, needs: tuple[str, ...], folder: Path
) -> Examples:
    pairs = network.labelled_pairs(desk, recipe, writer, seed)
    examples = network.pair_examples(pairs, needs, recipe.steps, recipe.batch, seed)
    return network.scored(_start(desk, recipe.start(), seed, folder), examples)


def curve(record: Mapping[str, Any], where: str, way: Way = SAMPLED) -> np.ndarray:
    """Win rates in percent by number of revisions [R]."""
    return np.array(record[where][way_name(way)]["win_rate"])
