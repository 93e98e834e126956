"""Kills a run again and again, and compares its end with that of a run which was left alone.

    python -m tools.soak [--kills=20] [--processes=2] [--seed=0] [--folder=DIR] [--json=FILE]

Processes train the tiny model together. One of them, or all, are killed with SIGKILL: every other time
while a checkpoint is being written, else at a random moment, the start of a run included. The same command
then goes on. Exits 0 when every start went on from the newest whole checkpoint, and every array of the last
one (parameters and the optimiser's state) and every loss is, to the bit, that of the undisturbed run.
A kill fell inside a save if Orbax's folder of an unfinished checkpoint was there when it came, and still is
when all processes have ended. Which moments are aimed at follows from --seed; what happens then, from the
machine.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from orbax.checkpoint import utils as orbax

from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.runtime import metrics
from srpo_jax.runtime.checkpoints import DIGESTS, Checkpoints

ROOT = Path(__file__).resolve().parent.parent
EVERY = 3  # steps between two checkpoints
STEPS_A_KILL = 3 * EVERY  # at most so many are taken between two kills, so that none comes too late
HEARTBEAT = 10  # seconds after which a process that is dead ends the others
# Little is computed and much compiled: the cheapest code is good enough.
FLAGS = (
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
PATIENCE = 600.0  # seconds for a start to come to where it is killed, and to end


@dataclasses.dataclass(frozen=True)
class Kill:
    """processes: those killed. step: the last one known to be done. in_a_save: whether one was cut off.

    began: the step that the start went on from, None if it was killed before it said so. ended: seconds
    until the last process was gone.
    """

    processes: tuple[int, ...]
    step: int
    in_a_save: bool
    began: int | None
    ended: float


class Start:
    """The processes of one start of a run. newest: the step of the newest whole checkpoint before it.

    left: what earlier starts had begun to save, as long as it is there.
    """

    def __init__(self, folder: Path, name: str, processes: int, steps: int) -> None:
        self.workdir, self.output = folder / name, folder / f"{name}.log"
        self.newest, self.since = max(whole(self.workdir), default=0), time.time()
        self.left = cut_off(self.workdir)
        with self.output.open("wb"):
            pass
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        settings = {
            "data.pairs": folder / "pairs.jsonl",
            "train.steps": steps,
            "train.batch_size": 4,
            "train.checkpoint_every": EVERY,
            "train.writers": (),
        }
        command = [sys.executable, "-m", "srpo_jax.train", f"--workdir={self.workdir}"]
        command += [f"--config={ROOT / 'configs' / 'tiny.py'}"]
        command += [f"--config.{key}={value}" for key, value in settings.items()]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": FLAGS,
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),  # once, for all starts
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "SRPO_COORDINATOR": f"127.0.0.1:{port}",
            "SRPO_PROCESSES": str(processes),
            "SRPO_HEARTBEAT": str(HEARTBEAT),
            "PYTHONUNBUFFERED": "1",
        }
        self.running = []
        for number in range(processes):
            with self.output.open("ab") as said:
                one = subprocess.Popen(
                    command,
                    stdout=said,
                    stderr=said,
                    cwd=ROOT,
                    env=environment | {"SRPO_PROCESS_ID": str(number)},
                )
            self.running.append(one)

    def step(self) -> int:
        """The last one that this start is known to have taken, else what there was before."""
        path = self.workdir / "metrics.jsonl"
        lines = metrics.read(path) if path.is_file() else []
        return next(
            (int(x["step"]) for x in reversed(lines) if x["time"] > self.since), self.newest
        )

    def saving(self) -> set[tuple[str, int]]:
        """Folders of checkpoints that this start has begun to save, and not ended."""
        found = cut_off(self.workdir)
        self.left &= found  # Orbax removes them, and another one may be called alike
        return found - self.left

    def until(self, happened: Callable[[], bool]) -> None:
        """Waits; SystemExit if a process ends first, or it takes too long."""
        deadline = time.monotonic() + PATIENCE
        while not happened():
            self.saving()
            if time.monotonic() > deadline or any(one.poll() is not None for one in self.running):
                raise SystemExit(f"{self.workdir.name} has ended, or hangs:\n{self.said()[-3000:]}")
            time.sleep(0.002)

    def kill(self, numbers: tuple[int, ...]) -> Kill:
        """SIGKILL to some of the processes; the others must end by themselves."""
        saving, step = self.saving(), self.step()
        for number in numbers:
            self.running[number].send_signal(signal.SIGKILL)
        began = time.monotonic()
        for one in self.running:
            one.wait(PATIENCE)
        ended = time.monotonic() - began
        return Kill(numbers, step, bool(saving & cut_off(self.workdir)), self.began(), ended)

    def began(self) -> int | None:
        """The step it went on from, as it says; SystemExit if that is not the newest whole checkpoint."""
        found = re.search(r"resuming at step (\d+) of", self.said())
        wrong = re.search(r"^(error: .*|.*it is damaged.*)$", self.said(), re.M)
        if wrong or (found and int(found[1]) != self.newest):
            raise SystemExit(f"it did not go on from step {self.newest}:\n{self.said()[-3000:]}")
        return int(found[1]) if found else None

    def said(self) -> str:
        """All that its processes have said."""
        return self.output.read_text(errors="replace")

    def end(self) -> None:
        """Nothing of it is left when this returns."""
        for one in self.running:
            one.kill()
            one.wait()


def whole(workdir: Path) -> list[int]:
    """Steps of the checkpoints that are complete."""
    return [int(one.name) for one in (workdir / "checkpoints").glob("*") if one.name.isdecimal()]


def cut_off(workdir: Path) -> set[tuple[str, int]]:
    """Folders of checkpoints that are being written, or never were to the end."""
    found = set()
    for path in (workdir / "checkpoints").glob(f"*{orbax.TMP_DIR_SUFFIX}*"):
        try:
            found.add((path.name, path.stat().st_ino))
        except FileNotFoundError:  # it has just become whole
            continue
    return found


def finish(folder: Path, name: str, processes: int, steps: int) -> None:
    """One start that comes to the end of the run."""
    start = Start(folder, name, processes, steps)
    try:
        if any(one.wait(2 * PATIENCE) for one in start.running):
            raise SystemExit(f"{name} failed:\n{start.said()[-3000:]}")
        start.began()
    finally:
        start.end()


class Killer:
    """Kills at moments that follow from a seed. first: seconds that the last start took to a step."""

    def __init__(self, seed: int) -> None:
        self.chance, self.first = random.Random(seed), 0.0

    def kill(self, start: Start, aimed: bool) -> Kill:
        """aimed: in a save; else before the first step, or some steps later."""
        numbers = tuple(range(len(start.running)))
        if self.chance.random() < 0.5:
            numbers = (self.chance.choice(numbers),)
        behind, moment = self.chance.randrange(2 * EVERY), self.chance.random()
        began = time.monotonic()
        if not aimed and behind == 0:
            time.sleep(moment * self.first)
            return start.kill(numbers)
        start.until(lambda: start.step() > start.newest)
        self.first = time.monotonic() - began
        start.until(lambda: start.step() >= start.newest + behind)
        if aimed:
            start.until(lambda: bool(start.saving()))
        else:
            time.sleep(moment / 10)
        return start.kill(numbers)


def last(workdir: Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, which is also compared with its digests."""
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        held = checkpoints.held(step, {})
        like = {n: np.zeros(x.shape, x.dtype) for n, x in held.items() if n != DIGESTS}
        return {name: np.asarray(x) for name, x in checkpoints.restore(step, like).items()}


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(one["step"], one["loss"]) for one in metrics.read(workdir / "metrics.jsonl")]


def soak(folder: Path, kills: int, processes: int, seed: int) -> dict[str, object]:
    """One run that is left alone and one that is killed; SystemExit where they differ."""
    killer, steps = Killer(seed), (kills + 1) * STEPS_A_KILL
    # All of one length: rows of one shape, for which one program is compiled.
    pairs = [Pair(f"{i:2}?", ["sure", "fine"][i % 2], "no way") for i in range(24)]
    records.write_pairs(folder / "pairs.jsonl", pairs)
    finish(folder, "whole", processes, steps)
    done: list[Kill] = []
    for number in range(kills):
        start = Start(folder, "killed", processes, steps)
        try:
            done.append(killer.kill(start, aimed=number % 2 == 0))
        finally:
            start.end()
        print(f"{number + 1}: {done[-1]}", flush=True)
    finish(folder, "killed", processes, steps)
    one, other = (last(folder / name, steps) for name in ("whole", "killed"))
    unlike = [n for n in one.keys() | other.keys() if one[n].tobytes() != other[n].tobytes()]
    if unlike:
        raise SystemExit(f"{len(unlike)} arrays of {len(one)} differ, the first is {min(unlike)}")
    if losses(folder / "whole") != losses(folder / "killed"):
        raise SystemExit("losses differ")
    return {
        "kills": len(done),
        "inside a save": sum(kill.in_a_save for kill in done),
        "of all processes": sum(len(kill.processes) == processes for kill in done),
        "in the start, or with nothing saved yet": sum(kill.began is None for kill in done),
        "of starts that went on from the newest checkpoint": sum(bool(x.began) for x in done),
        "longest until all had ended, seconds": round(max(kill.ended for kill in done), 1),
        "steps": steps,
        "arrays equal to the bit": len(one),
        "processes": processes,
        "seed": seed,
        "each": [dataclasses.asdict(kill) for kill in done],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="to keep the runs (default: they are removed)")
    parser.add_argument("--json", type=Path, help="file for the counts")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing that it started stays
    with tempfile.TemporaryDirectory(prefix="soak_") as temporary:
        folder = (given.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=given.folder is None)
        counts = soak(folder, given.kills, given.processes, given.seed)
    if given.json:
        given.json.write_text(json.dumps(counts, indent=1) + "\n")
    print(", ".join(f"{name}: {count}" for name, count in counts.items() if name != "each"))


if __name__ == "__main__":
    main()
