"""What host memory it takes to read, import and export a checkpoint, beyond what lies on the devices.

    python -m benchmarks.reading [--layers=16] [--width=2048] [--shard_mb=600] [--devices=1]

A Llama-like model in bfloat16 is written as safetensors of several shards into a temporary folder. One
process places every parameter on (virtual) CPU devices, one imports the model, which writes a checkpoint
as well, one exports the safetensors (as of a run with LoRA, whose base they are), and one the checkpoint
(as of a run that trained all weights). On CPUs the devices' memory is host memory: the bytes of what lies
there are taken off.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from absl import app, flags
from safetensors.numpy import save_file

from benchmarks import common
from srpo_jax import convert
from srpo_jax.data.tokenizer import byte_level_bpe
from srpo_jax.models import families, huggingface, loading
from srpo_jax.runtime import mesh as mesh_module

LAYERS = flags.DEFINE_integer("layers", 16, "of the model")
WIDTH = flags.DEFINE_integer("width", 2048, "of the model; its MLP is four times as wide")
VOCABULARY = flags.DEFINE_integer("vocabulary", 32000, "tokens")
SHARD = flags.DEFINE_integer(
    "shard_mb", 600, "a shard is closed before it gets larger, in 10^6 bytes"
)
DEVICES = flags.DEFINE_integer("devices", 1, "virtual CPU devices; fsdp over all")
TASKS = ("place", "import", "export", "export imported")
TASK = flags.DEFINE_enum("task", None, TASKS, "do this to --source in this process")
SOURCE = flags.DEFINE_string("source", None, "the temporary folder, for --task")

MB = 10**6


def describe() -> dict[str, Any]:
    """config.json of the model."""
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCABULARY.value,
        "hidden_size": WIDTH.value,
        "intermediate_size": 4 * WIDTH.value,
        "num_hidden_layers": LAYERS.value,
        "num_attention_heads": WIDTH.value // 64,
        "num_key_value_heads": WIDTH.value // 256,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def shards(tensors: list[huggingface.Tensor]) -> Iterator[list[huggingface.Tensor]]:
    """The tensors in turn, as many together as a shard may hold."""
    held: list[huggingface.Tensor] = []
    size = 0
    for tensor in tensors:
        more = 2 * int(np.prod(tensor.shape))
        if held and size + more > SHARD.value * MB:
            yield held
            held, size = [], 0
        held.append(tensor)
        size += more
    yield held


def write(directory: Path) -> tuple[int, int]:
    """Makes the model's directory; bytes of its largest shard, and of one of its layers."""
    config = directory / "config.json"
    config.write_text(json.dumps(describe()))
    special = ("<pad>", "<s>", "</s>")
    definition = byte_level_bpe([*special, *"abc"], [], special, "gpt-2")
    (directory / "tokenizer.json").write_text(definition)
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    architecture = huggingface.read_config(directory)
    shapes = loading.parameter_shapes(architecture)
    tensors = huggingface.tensors(families.family("llama", config), architecture, shapes)
    random = np.random.default_rng(0)
    where = {}
    largest = 0
    for i, held in enumerate(shards(tensors)):
        path = directory / f"model-{i:05d}.safetensors"
        # Bits at random, so that no compression makes the checkpoint smaller than a real one's.
        bits = {t.name: random.integers(0, 2**14, t.shape, np.uint16) for t in held}
        save_file({name: array.view(ml_dtypes.bfloat16) for name, array in bits.items()}, path)
        where |= {t.name: path.name for t in held}
        largest = max(largest, path.stat().st_size)
    (directory / huggingface.INDEX).write_text(json.dumps({"weight_map": where}))
    return largest, sum(2 * int(np.prod(t.shape)) for t in tensors if t.layer == 0)


def measure(task: str, folder: Path) -> dict[str, float]:
    """Bytes: what lies on the devices, and the most that was resident beside it and what was before."""
    mesh = mesh_module.make(fsdp=-1)
    jax.block_until_ready(jax.numpy.zeros(8) + 1)  # what JAX itself takes at the beginning
    source, imported, exported = folder / "model", folder / "imported", folder / "exported"
    opened = loading.open_source(str(source))
    placed: dict[str, jax.Array] = {}
    work = {
        "place": lambda: placed.update(convert.place(opened, mesh)),
        "import": lambda: convert.import_model(str(source), imported),
        "export": lambda: convert.export_model(str(source), exported, file_bytes=SHARD.value * MB),
        "export imported": lambda: convert.export_model(
            str(imported), exported, file_bytes=SHARD.value * MB
        ),
    }
    before, most = common.peak(work[task])
    shutil.rmtree(exported, ignore_errors=True)
    shapes = loading.parameter_shapes(opened.config).values()
    there = 0 if task == "export" else sum(2 * math.prod(shape) for shape in shapes)
    return {"devices": there, "beside": most - before - there}


def measure_apart(task: str, folder: Path) -> dict[str, float]:
    """`measure` in a new process."""
    command = [sys.executable, "-m", "benchmarks.reading", f"--task={task}", f"--source={folder}"]
    virtual = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES.value}"}
    environment = os.environ | common.ALLOCATOR | virtual
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(_: list[str]) -> None:
    if TASK.value:
        print(json.dumps(measure(TASK.value, Path(SOURCE.value))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        shard, layer = write(folder / "model")
        for task in TASKS:
            seen = measure_apart(task, folder)
            allowed = 1.3 * shard + layer
            rows.append(
                {
                    "what": task,
                    "on the devices (MB)": seen["devices"] // MB,
                    "largest shard (MB)": shard // MB,
                    "one layer (MB)": layer // MB,
                    "peak beside the devices (MB)": seen["beside"] // MB,
                    "/ (1.3 shards + a layer)": seen["beside"] / allowed,
                }
            )
    title = f"Reading and writing a model on {DEVICES.value} devices"
    common.report("reading", None, {title: rows})


if __name__ == "__main__":
    app.run(main)
