"""What all benchmarks share: interleaved timing, the machine's description, tables and files."""

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from srpo_jax.runtime.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "trl", "peft", "libtpu")
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# glibc then gives freed arrays back to the system at once: what is resident is what is in use.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def interleaved(
    steps: Mapping[str, Callable[[], Any]], repeats: int, settle: bool = False
) -> dict[str, list[float]]:
    """Seconds of each call, {name: [repeats]}; every call is warmed up, then all take turns.

    A call must not return before its work is done. Taking turns spreads a slow spell of the machine over
    all of them, so that ratios of medians hold even where the times themselves do not. settle: a turn
    begins with a call that does not count, because a step of a training follows a step like itself, not
    one that left other memory and caches behind.
    """
    for name, step in steps.items():
        began = time.perf_counter()
        step()
        print(
            f"  {name}: first call {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True
        )
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            if settle:
                step()
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak(run: Callable[[], Any]) -> tuple[int, int]:
    """Bytes resident before a call of `run`, and the most that were resident during it.

    Linux keeps the high-water mark itself, and sets it back on request: nothing is sampled.
    """
    if not CLEAR.exists():
        raise UserError(f"{CLEAR} is missing: peak memory can be measured on Linux only")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = _status("VmRSS")
    run()
    return before, _status("VmHWM")


def _status(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return int(found[1]) * 1024


def machine() -> dict[str, str]:
    """The machine and the versions of what was measured on it."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "python": platform.python_version(),
        **versions,
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of one set of keys as a Markdown table; floats with three significant digits."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([_cell(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(
    name: str, output: str | None, sections: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Prints tables with the machine they come from; with `output`, also NAME.json and NAME.md there."""
    here = machine()
    lines = [f"{key} {value}" for key, value in here.items()]
    text = ", ".join(lines) + "\n"
    for title, rows in sections.items():
        text += f"\n### {title}\n\n{table(rows)}\n"
    print(text)
    if output:
        folder = Path(output)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text)
        content = {"machine": here, "sections": {k: list(v) for k, v in sections.items()}}
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _processor() -> str:
    """The processor's name as Linux tells it, or what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
