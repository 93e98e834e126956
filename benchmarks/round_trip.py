"""SmolLM2-135M through the programs as users call them: SFT, then SRPO, then out to `transformers`.

    python -m benchmarks.round_trip [--steps=4] [--output=DIR]

Once with all weights in SFT and an adapter in SRPO, once the other way round, on Wikipedia leads and their
descriptions. What each SRPO run learned is exported, and greedy text of `transformers` (extra `dev`) from
the exported directory is compared, token by token, with greedy text of the run's own checkpoint.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from benchmarks import common
from srpo_jax import models, revision
from srpo_jax.data import documents, records
from srpo_jax.data.records import Pair
from srpo_jax.prompts import Prompt, Renderer
from srpo_jax.revision.sampling import Sampling

STEPS = flags.DEFINE_integer("steps", 4, "of each training")
PROMPTS = flags.DEFINE_integer("prompts", 8, "held-out documents whose text is compared")
TOKENS = flags.DEFINE_integer("tokens", 40, "new tokens of a text")
OUTPUT = flags.DEFINE_string("output", None, "folder for round_trip.md and .json")

SOURCE, BATCH, LONGEST = "smollm2-135m-instruct", 4, 600  # characters of a document
# name -> (started from, objective, rank of the adapter; 0: all weights)
RUNS = {
    "SFT, all weights": (SOURCE, "sft", 0),
    "SRPO, adapter": ("SFT, all weights", "srpo", 8),
    "SFT, adapter": (SOURCE, "sft", 8),
    "SRPO, all weights": ("SFT, adapter", "srpo", 0),
}


def write_pairs(path: Path) -> None:
    """The description that a person wrote is preferred to that of the next document."""
    found = [d for d in documents.load("wikipedia", "train") if len(d.prompt) < LONGEST]
    found = found[: STEPS.value * BATCH]
    others = [*found[1:], found[0]]
    pairs = [Pair(d.prompt, d.gold, o.gold) for d, o in zip(found, others, strict=True)]
    records.write_pairs(path, pairs)


def run(module: str, *arguments: str) -> float:
    """Seconds that `python -m module …` took; what it said ends the program where it failed."""
    command = [sys.executable, "-m", module, *arguments]
    print("+ " + " ".join(["python", *command[1:]]), file=sys.stderr, flush=True)
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(done.stdout)
    return time.perf_counter() - began


def train(name: str, folder: Path) -> dict[str, Any]:
    """A row of the table."""
    source, objective, rank = RUNS[name]
    started = str(folder / source) if source in RUNS else source
    changes = {
        "model.source": started,
        "data.pairs": folder / "pairs.jsonl",
        "objective.name": objective,
        "lora.rank": rank,
        "train.steps": STEPS.value,
        "train.batch_size": BATCH,
        "train.checkpoint_every": STEPS.value,
        "optimizer.warmup_steps": 0,
        "optimizer.schedule": "constant",
        "optimizer.learning_rate": 1e-3 if rank else 3e-5,
    }
    given = [f"--config.{key}={value}" for key, value in changes.items()]
    config, workdir = "--config=configs/quickstart.py", f"--workdir={folder / name}"
    seconds = run("srpo_jax.train", config, workdir, *given)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return {"run": name, "seconds": seconds, "first loss": losses[0], "last loss": losses[-1]}


def greedy_here(source: str, prompts: list[Prompt], stop: tuple[int, ...]) -> list[list[int]]:
    model = models.load(source, dtype="float32")
    sampling = Sampling(max_new_tokens=TOKENS.value, batch_size=len(prompts))
    written = revision.revise_ids(model, prompts, 0, sampling, eos=stop)
    return [row[0] for row in written]


def greedy_there(directory: Path, prompts: list[Prompt], stop: tuple[int, ...]) -> list[list[int]]:
    """Of `transformers`, one prompt at a time, without the token that ended a text."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    settings = transformers.GenerationConfig(
        max_new_tokens=TOKENS.value, do_sample=False, eos_token_id=list(stop), pad_token_id=stop[0]
    )
    texts = []
    for prompt in prompts:
        with torch.no_grad():
            ids = model.generate(torch.tensor([prompt.direct]), generation_config=settings)[0]
        new = ids[len(prompt.direct) :].tolist()
        texts.append(new[:-1] if new[-1] in stop else new)
    return texts


def main(_: list[str]) -> None:
    trained, compared = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "pairs.jsonl")
        renderer = Renderer("chat", models.load_tokenizer(SOURCE))
        held_out = [d for d in documents.load("wikipedia", "test") if len(d.prompt) < LONGEST]
        prompts = [renderer.prompt(d.prompt) for d in held_out[: PROMPTS.value]]
        before = greedy_here(SOURCE, prompts, renderer.stop_ids)
        for run_name in RUNS:
            trained.append(train(run_name, folder))
            if not run_name.startswith("SRPO"):
                continue
            exported = folder / re.sub(r"\W+", "-", run_name)
            source = f"--source={folder / run_name}"
            run("srpo_jax.convert", "export", source, f"--output={exported}", "--dtype=float32")
            here = greedy_here(str(folder / run_name), prompts, renderer.stop_ids)
            there = greedy_there(exported, prompts, renderer.stop_ids)
            compared.append(
                {
                    "run": run_name,
                    "texts": len(prompts),
                    "the same in transformers": sum(
                        a == b for a, b in zip(here, there, strict=True)
                    ),
                    "other than before training": sum(
                        a != b for a, b in zip(here, before, strict=True)
                    ),
                    "one of them": renderer.tokenizer.decode(there[0]),
                }
            )
    sections = {"Training": trained, "Greedy text of the exported model": compared}
    common.report("round_trip", OUTPUT.value, sections)


if __name__ == "__main__":
    app.run(main)
