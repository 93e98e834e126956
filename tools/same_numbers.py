"""Shows that this checkout computes the numbers of another revision: losses, gradients and revisions.

    python tools/same_numbers.py REV [--tolerance=1e-6] [--only=REGEX]

Both check-outs train a tiny model for 20 steps (SRPO, DPO and SFT; all weights and adapters; packed and a
row a pair; one and eight virtual devices), then revise eight documents. Every metric of every step is
compared, to the bit unless --tolerance gives a relative difference; texts are compared as they are. Exits 0
when all are equal and 1 otherwise, with a line for each run. Takes about 10 minutes on 2 cores.

Only what users have is used, the programs and `models`, `prompts` and `revision`, so that the same file
serves any two revisions, however the code is arranged.
"""

import argparse
import concurrent.futures
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
STEPS = 20
# Metrics that are of the machine's time and memory, and not of what is computed.
TIMES = r"^time$|_per_second$|seconds|^data_wait$|^mfu$|memory"
REVISED = "srpo full, 1 device(s)"  # the run whose model revises
OBJECTIVES = ("srpo", "dpo", "sft")
WEIGHTS = {"full": [], "lora": ["--config.lora.rank=4"]}
# Beside all combinations with packed rows, what else there is to choose.
OTHERS = {
    "unpacked": ["--config.data.pack=False"],
    "dense": ["--config.model.attention=dense"],
    "accumulated": ["--config.train.accumulate=2", "--config.model.dtype=bfloat16"],
}

REVISE = """
import json, sys
from srpo_jax import models, prompts, revision
workdir, texts = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = models.load(workdir, "float32"), models.load_tokenizer(workdir)
written = {}
for template in ("plain", "chained"):
    renderer = prompts.Renderer(template, tokenizer)
    given = [renderer.prompt(text) for text in texts]
    for temperature in (0.0, 1.0):
        sampling = revision.Sampling(max_new_tokens=12, temperature=temperature, batch_size=8)
        written[f"{template} at temperature {temperature}"] = revision.revise(
            model, tokenizer, given, 3, sampling
        )
print(json.dumps(written))
"""


def words(rng: random.Random, low: int, high: int) -> str:
    syllables = ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti", "vo", "xu")
    count = rng.randint(low, high)
    return " ".join("".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count))


def write_pairs(path: Path) -> None:
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(48):
            pair = {"prompt": words(rng, 4, 24), "chosen": words(rng, 2, 8)}
            out.write(json.dumps(pair | {"rejected": words(rng, 2, 8)}) + "\n")


def python(checkout: Path, arguments: list[str], devices: int) -> str:
    """The standard output of a Python that imports the package from `checkout`."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {' '.join(arguments[:2])} failed\n{done.stderr[-3000:]}")
    return done.stdout


def runs() -> dict[str, tuple[int, list[str]]]:
    """{name: (devices, settings)}."""
    combined = itertools.product(OBJECTIVES, WEIGHTS, (1, 8))
    named = {
        f"{objective} {weights}, {devices} device(s)": (
            devices,
            [f"--config.objective.name={objective}", *WEIGHTS[weights]],
        )
        for objective, weights, devices in combined
    }
    for other, settings in OTHERS.items():
        devices = 4 if other == "accumulated" else 1
        named[f"srpo full, {other}, {devices} device(s)"] = devices, settings
    return named


def losses(checkout: Path, folder: Path, name: str, devices: int, settings: list[str]) -> list[Any]:
    workdir = folder / name.replace(" ", "_")
    given = [
        f"--config={checkout / 'configs' / 'tiny.py'}",
        f"--workdir={workdir}",
        f"--config.data.pairs={folder / 'pairs.jsonl'}",
        f"--config.train.steps={STEPS}",
        *settings,
    ]
    python(checkout, ["-m", "srpo_jax.train", *given], devices)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not re.search(TIMES, k)} for line in lines
    ]


def revisions(checkout: Path, folder: Path, devices: int) -> dict[str, list[list[str]]]:
    rng = random.Random(1)
    texts = [words(rng, 4, 30) for _ in range(8)]
    workdir = folder / REVISED.replace(" ", "_")
    return json.loads(
        python(checkout, ["-c", REVISE, str(workdir), json.dumps(texts)], devices).splitlines()[-1]
    )


def record(checkout: Path, only: str = "") -> dict[str, Any]:
    """The numbers and texts of a checkout, of the runs whose names match `only`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "pairs.jsonl")
        numbers: dict[str, Any] = {}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            started = {
                run: pool.submit(losses, checkout, folder, run, devices, settings)
                for run, (devices, settings) in runs().items()
                if re.search(only, run) or run == REVISED
            }
            numbers |= {run: future.result() for run, future in started.items()}
        for devices in (1, 8):
            if not re.search(only, f"revisions, {devices} device(s)"):
                continue
            for case, written in revisions(checkout, folder, devices).items():
                numbers[f"revisions, {devices} device(s), {case}"] = written
        return numbers


def record_revision(revision: str, only: str) -> dict[str, Any]:
    """`record` of a commit, checked out beside this one for as long as it takes."""
    with tempfile.TemporaryDirectory() as name:
        other = Path(name) / "checkout"
        git = ["git", "-C", str(HERE), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(other), revision], check=True)
        try:
            return record(other, only)
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)


def difference(ours: Any, theirs: Any) -> float:
    """The largest relative difference; infinite where texts or the structure differ."""
    if isinstance(ours, float | int) and isinstance(theirs, float | int):
        scale = max(abs(ours), abs(theirs), 1e-30)
        return abs(ours - theirs) / scale
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return max((difference(ours[k], theirs[k]) for k in ours), default=0.0)
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return max((difference(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    return 0.0 if ours == theirs else float("inf")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="the commit to compare with")
    parser.add_argument("--tolerance", type=float, default=0.0, help="relative difference allowed")
    parser.add_argument(
        "--keep", type=Path, help="JSON file for REV's numbers; read if it is there"
    )
    parser.add_argument("--only", default="", help="runs whose names match this pattern")
    options = parser.parse_args()
    if options.keep and options.keep.is_file():
        theirs = json.loads(options.keep.read_text())
    else:
        theirs = record_revision(options.revision, options.only)
        if options.keep:
            options.keep.write_text(json.dumps(theirs))
    ours = record(HERE, options.only)
    worst = 0.0
    for run, values in ours.items():
        found = difference(values, theirs[run])
        worst = max(worst, found)
        print(f"{run}: {'equal' if found == 0 else f'differs by {found:.1e}'}")
    print(f"{len(ours)} runs, largest difference {worst:.1e}, allowed {options.tolerance:.1e}")
    return int(worst > options.tolerance)


if __name__ == "__main__":
    sys.exit(main())
