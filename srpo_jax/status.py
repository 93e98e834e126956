"""Where a run stands: its step and speed, its checkpoints, where its time went, what went wrong.

    python -m srpo_jax.status WORKDIR

WORKDIR is that of `train` or `train_online`, here or in a store of objects. Nothing is written, and the
run is left alone.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from srpo_jax import config as config_module
from srpo_jax.runtime import files, metrics, storage
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import refuse_arguments, run_program

SILENT = 10  # times the time of a step, and at least a minute: then a run seems to have stopped
LOST = ("starts and restarts", "compiling", "saving", "evaluating", "waiting for data")
Line = dict[str, Any]


def standing(workdir: Path, now: float) -> Iterator[str]:
    """A line for each thing to say. now: seconds since 1970. UserError where there is no run."""
    settings = config_module.read(workdir / "config.json")
    name, what, on = "step", settings.objective.name, settings.data.pairs
    if _is_online(workdir):
        name, what, on = "round", settings.online.objective, settings.online.documents
    yield f"{workdir}: {what} of {settings.model.source} on {on}"
    path = workdir / "metrics.jsonl"
    lines = metrics.read(path) if path.is_file() else []
    steps = [one for line in lines if "step_seconds" in (one := _timed(line))]
    total = settings.train.steps
    if steps:
        yield from _progress(name, steps, total, now)
    else:
        yield f"{name}: none yet of {total}"
    yield from _checkpoints(workdir / "checkpoints")
    if len(steps) > 1 and name == "step":
        yield from _time(lines, steps)
    yield from (f"problem: {problem}" for problem in _problems(workdir, lines, steps, total, now))


def _is_online(workdir: Path) -> bool:
    """Whether it is a run of `train_online`, which has documents in place of pairs."""
    path = workdir / "run.json"
    return path.is_file() and "documents" in files.read_json(path, "bring it back")


def _timed(line: Line) -> Line:
    """A line of metrics; of a round with the seconds of its parts together."""
    parts = [
        line[key] for key in ("seconds_write", "seconds_reward", "seconds_learn") if key in line
    ]
    return line | {"step_seconds": sum(parts)} if parts else line


def _progress(name: str, steps: Sequence[Line], total: int, now: float) -> Iterator[str]:
    last = steps[-1]
    figure = "loss" if name == "step" else "reward"
    done, value = last["step"], float(last.get(figure, math.nan))
    yield (
        f"{name}: {done} of {total} ({done / total:.0%}), {figure} {value:.4f}, "
        f"{_duration(now - last['time'])} ago"
    )
    parts = [f"{last['step_seconds']:.3g} s a {name}"]
    if "tokens_per_second" in last:
        parts.append(f"{last['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in last:
        parts.append(f"MFU {last['mfu']:.0%}")
    if "memory_gb" in last:
        parts.append(f"{last['memory_gb']:.1f} GB of the first device")
    if done < total:
        parts.append(f"{_duration((total - done) * last['step_seconds'])} left at this speed")
    yield f"speed: {', '.join(parts)}"


def _checkpoints(directory: Path) -> Iterator[str]:
    held: list[int] = []
    if directory.is_dir():
        with Checkpoints(directory, read_only=True) as checkpoints:
            held = checkpoints.steps()
    yield f"checkpoints: {', '.join(map(str, held)) or 'none yet'}"


def _time(lines: Sequence[Line], steps: Sequence[Line]) -> Iterator[str]:
    """Goodput: the share of the time since the run began in which steps were taken that count.

    lines: all; steps: those of steps. Those that a kill has undone are no longer among them: their time is
    a restart's, as is that of the machine's absence.
    """
    before = steps[0]["time"] - steps[0].get("start_seconds", 0.0)
    whole = steps[-1]["time"] - before
    spent, lost = 0.0, dict.fromkeys(LOST, 0.0)
    for line in lines:
        for name in ("held_out/seconds", "revision/seconds"):
            lost["evaluating"] += line.get(name, 0.0)
    first = {"step": 0, "time": before}
    for a, b in itertools.pairwise([first, *steps] if before < steps[0]["time"] else steps):
        taken = (b["step"] - a["step"]) * b["step_seconds"]
        spent += taken * (1 - b["data_wait"])
        lost["waiting for data"] += taken * b["data_wait"]
        lost["compiling"] += b["compile_seconds"]
        lost["saving"] += b.get("save_seconds", 0.0)
        if "start_seconds" in b:
            known = taken + b["compile_seconds"]
            lost["starts and restarts"] += max(0.0, b["time"] - a["time"] - known)
    if whole > 0:
        parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in lost.items())
        yield f"goodput: {min(spent, whole) / whole:.0%} of {_duration(whole)} (lost: {parts})"


def _problems(
    workdir: Path, lines: Sequence[Line], steps: Sequence[Line], total: int, now: float
) -> Iterator[str]:
    wrong = [line["step"] for line in lines if not math.isfinite(float(line.get("loss", 0.0)))]
    if wrong:
        yield f"the loss of step {wrong[0]} is no number"
    directory = workdir / "checkpoints"
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.name.endswith(".damaged"):
            yield f"the checkpoint of step {path.name.removesuffix('.damaged')} was damaged"
    if steps and steps[-1]["step"] < total:
        last = steps[-1]
        silent, gap = now - last["time"], 1
        if len(steps) > 1:
            gap = last["step"] - steps[-2]["step"]
        if silent > max(60.0, SILENT * gap * last["step_seconds"]):
            yield f"no step for {_duration(silent)}: it has stopped, or waits; `train` goes on from it"


def _duration(seconds: float) -> str:
    minutes, second = divmod(round(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def _main(arguments: list[str]) -> None:
    if len(arguments) < 2:
        raise UserError("say which run: python -m srpo_jax.status WORKDIR")
    refuse_arguments(arguments[2:])
    jax.config.update("jax_platforms", "cpu")  # the run has the devices
    workdir = storage.folder(arguments[1], "WORKDIR")
    for line in standing(workdir, time.time()):
        print(line)


if __name__ == "__main__":
    run_program(_main)
