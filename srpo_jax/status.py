"""Where a run stands: its step and speed, its checkpoints, where its time went, what went wrong.

    python -m srpo_jax.status WORKDIR

WORKDIR is that of `train`, `train_online`, `pairs`, `evaluate`, or of a recipe (`quickstart` is one), whose
stages are told one by one; here or in a store of objects. Nothing is written, and the run is left alone.
"""

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from srpo_jax import config as config_module
from srpo_jax.config.recipe import FINISHED, KEPT
from srpo_jax.config.workdir import is_online
from srpo_jax.runtime import files, metrics, storage
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.program import refuse_arguments, run_program

SILENT = 10  # times the time of a step, and at least a minute: then a run seems to have stopped
LOST = ("starts and restarts", "compiling", "saving", "evaluating", "waiting for data")
Line = dict[str, Any]


def standing(workdir: Path, now: float) -> Iterator[str]:
    """A line for each thing to say. now: seconds since 1970. UserError where there is none."""
    said = False
    parts = (_run(workdir, now), _stages(workdir, now), _pairs(workdir), _evaluation(workdir))
    for line in itertools.chain(*parts):
        said = True
        yield line
    if said:
        return
    if not workdir.is_dir():
        raise UserError(f"there is no folder {workdir}")
    if (workdir / "trees").is_dir() or (workdir / "compiled").is_dir():
        yield f"{workdir}: something was started here, and has kept nothing yet that says how far it is"
        return
    raise UserError(f"{workdir} holds no run, no recipe, no pairs and no evaluation")


def _run(workdir: Path, now: float) -> Iterator[str]:
    """Of a training run; nothing where there is none."""
    path = workdir / "config.json"
    if not path.is_file():
        return
    if "model_type" in files.read_json(path, "bring it back"):
        raise UserError(f"{workdir} holds a model, and no run of its own")
    settings = config_module.read(path)
    name, what, on = "step", settings.objective.name, settings.data.pairs
    if is_online(workdir):
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


def _stages(workdir: Path, now: float) -> Iterator[str]:
    """Of a recipe: each stage, and more of one that is neither finished nor yet to begin."""
    path = workdir / KEPT
    if path.is_file():
        found = files.read_json(path, "the next start of the recipe writes it anew")["stages"]
        stages = [(workdir / one["name"], one["program"]) for one in found]
    else:  # of an earlier version: what it has finished
        kept = sorted(workdir.glob(f"*/{FINISHED}"), key=storage.changed)
        stages = [(one.parent, files.read_json(one, "delete it")["program"]) for one in kept]
    finished = [folder for folder, _ in stages if (folder / FINISHED).is_file()]
    if stages:
        yield f"{workdir}: a recipe, {len(finished)} of {len(stages)} stages finished"
    for number, (folder, program) in enumerate(stages, 1):
        begun = folder.is_dir()
        state = "finished" if folder in finished else "begun" if begun else "not begun"
        yield f"{number}. {folder.name} ({program}): {state}"
        if begun and folder not in finished:
            try:
                yield from (f"   {line}" for line in standing(folder, now))
            except UserError:  # nothing is in it yet
                continue


def _pairs(workdir: Path) -> Iterator[str]:
    """Of files of pairs, and of samples that are yet to become some."""
    for end in (".settings", ".samples"):
        for beside in sorted(workdir.glob(f"*{end}")):
            output = beside.with_name(beside.name.removesuffix(end))
            if output.is_file() == (end == ".settings"):
                what = "pairs" if output.is_file() else "documents sampled, no pairs yet"
                yield f"{output}: {_lines(output) if output.is_file() else _lines(beside) - 1} {what}"


def _evaluation(workdir: Path) -> Iterator[str]:
    """What is written of each set of documents, who has judged, and whether there is a report."""
    for documents in sorted((workdir / "documents").glob("*.jsonl")):
        asked = _lines(documents) - 1  # the first one describes them
        yield f"documents: {asked} of {documents.stem}"
        for written in sorted((workdir / "samples").glob(f"*-{documents.name}")):
            name = written.stem.removesuffix(f"-{documents.stem}")
            yield f"written: {_lines(written) - 1} of {asked} by {name}"
    for judge in sorted((workdir / "verdicts").glob("*/judge.json")):
        yield f"judged by {files.read_json(judge, 'judge again')['name']}"
    if (report := workdir / "report" / "report.html").is_file():
        yield f"report: {report}"


def _lines(path: Path) -> int:
    """Whole lines of a file."""
    with path.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)


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
        # step_seconds is a median: it knows nothing of one long wait, and all of many equal ones.
        together = b.get("interval_seconds", taken)
        waited = together * b["data_wait"]
        rest = together - waited - b["compile_seconds"]
        spent += max(taken * (1 - b["data_wait"]), min(taken, rest))
        lost["waiting for data"] += waited
        lost["compiling"] += b["compile_seconds"]
        lost["saving"] += b.get("save_seconds", 0.0)
        if "start_seconds" in b:
            known = max(taken + b["compile_seconds"], together)
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
            yield f"no step for {_duration(silent)}: it has stopped, or waits; the same command goes on"


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
