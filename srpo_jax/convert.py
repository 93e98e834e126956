"""Models in and out: Hugging Face directories and GGUF files -> checkpoints -> Hugging Face directories.

    python -m srpo_jax.convert import --source=DIRECTORY --output=DIRECTORY [--fsdp=-1] [--tensor=1] \
        [--expert=1]
    python -m srpo_jax.convert export --source=WORKDIR --output=DIRECTORY [--dtype=bfloat16] [--adapter]
    python -m srpo_jax.convert export --check --config=configs/NAME.py [--output=DIRECTORY]

A directory of Hugging Face's kind or a GGUF file can be trained as it is (config.model.source): importing
is for models that many processes or many runs read, each only its part. export writes what `transformers`,
vLLM and others load; with --adapter, a LoRA adapter for `peft`. --check proves before the training that its
result can be exported; it allocates no model.
"""

import importlib.util
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx
from jax.sharding import Mesh

from srpo_jax import config as config_module
from srpo_jax.config import Settings, command
from srpo_jax.models import export, families, huggingface, loading, reward, weights
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.source import Source
from srpo_jax.models.weights import CHECKPOINTS
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime import storage
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import status
from srpo_jax.runtime.program import refuse_arguments, run_program


def import_model(
    source: str, output: Path, fsdp: int = -1, tensor: int = 1, expert: int = 1
) -> None:
    """Weights into a sharded checkpoint in their stored dtype, beside config.json and tokenizer files.

    Raises UserError for a source that cannot be read, and an output that is there already.
    """
    export.check_free(output)
    opened = loading.open_source(source)
    if opened.read_parameters is None:
        raise UserError(f"--source={source} has no weights to import")
    with export.all_or_nothing(output) as part:
        placed = place(opened, mesh_module.make(fsdp=fsdp, tensor=tensor, expert=expert))
        largest = max(array.nbytes for array in placed.values())
        with Checkpoints(part / CHECKPOINTS, in_flight=largest) as checkpoints:
            checkpoints.save(0, placed, force=True)
        described = opened.described()
        (part / "config.json").write_text(json.dumps(described, indent=2) + "\n")
        export.tokenizer_files(part, _tokenizer_files(opened))
    size = sum(x.nbytes for x in placed.values()) / 1e9
    status(f"{output}: {sum(x.size for x in placed.values()):,} parameters, {size:.2f} GB")


def place(opened: Source, mesh: Mesh) -> dict[str, jax.Array]:
    """{dotted name: parameter} of a source with weights, on the mesh, in the dtype they are stored in."""
    abstract = nnx.state(nnx.eval_shape(lambda: Decoder(opened.config, nnx.Rngs(0))))
    shardings = nnx.to_flat_state(mesh_module.parameter_shardings(mesh, abstract))
    assert opened.read_parameters is not None
    given = opened.read_parameters()
    placed = {}
    for path, variable in shardings:
        name, sharding = ".".join(map(str, path)), variable.get_value()
        placed[name] = weights.place(given[name], jnp.dtype(given[name].dtype), sharding)
    return placed


def export_model(
    source: str,
    output: Path,
    dtype: str | None = None,
    *,
    adapter: bool = False,
    file_bytes: int = export.FILE_BYTES,
) -> None:
    """The newest checkpoint of a workdir, or any source, as Hugging Face keeps models.

    A reward model becomes a sequence classifier with one output.
    dtype: by default that of the base model. file_bytes: the most that a file of tensors holds.
    Raises UserError for a source that cannot be read, a run without an adapter where one is wanted, and an
    output that is there already.
    """
    export.check_free(output)
    opened = loading.open_source(source, rewards=True)
    if opened.read_parameters is None:
        raise UserError(f"--source={source} has no weights to export")
    described = opened.described()
    if opened.config.rewards:
        described = _as_reward_model(described, storage.place(source))
    if said := _other_ids(opened):
        status(f"{output}: {said}")
    if adapter:
        if (workdir := loading.run_of(source)) is None:
            raise UserError(f"--source={source} is no workdir of a training run: it has no adapter")
        if opened.config.rewards:
            raise UserError(
                f"--source={source} is a reward model, whose head is no part of an adapter: export the "
                "whole model instead (without --adapter)"
            )
        run = config_module.read(workdir / "config.json")
        config = loading.decoder_config(run.model, run.lora, run.train.frozen)
        kind, base = described["model_type"], _base_of(workdir)
        export.write_adapter(output, config, kind, opened.read_parameters(), base)
    else:
        dtype = dtype or described.get("dtype") or described.get("torch_dtype") or "float32"
        dtype = dtype if dtype in ("float32", "bfloat16") else "float32"
        parameters = opened.read_parameters()
        export.write_model(
            output,
            opened.config,
            described,
            parameters,
            dtype,
            _tokenizer_files(opened),
            file_bytes,
        )
        if opened.config.rewards and (scale := reward.open_source(source).scale):
            scale.write(output)
    written = sum(path.stat().st_size for path in output.iterdir())
    status(f"{output}: {written / 1e9:.2f} GB")


def check(source: str, output: Path | None, adapter_of: Settings | None = None) -> list[str]:
    """What was found in order, a sentence each. UserError for the first thing that is not.

    adapter_of: settings that the run will have.
    """
    if output is not None:
        export.check_free(output)
    opened = loading.open_source(source)
    described = opened.described()
    shapes = loading.parameter_shapes(opened.config)
    family = families.family(described["model_type"], Path(source) / "config.json")
    tensors = huggingface.tensors(family, opened.config, shapes)
    covered = {name for tensor in tensors for name in tensor.parameters}
    if lacking := sorted(set(shapes) - covered):
        raise UserError(
            f"{source}: {lacking[0]} has no place in a checkpoint of {described['model_type']}"
        )
    found = [
        f"{len(tensors)} tensors of {described['model_type']} hold all {len(shapes)} parameters"
    ]
    if opened.read_parameters is not None:
        opened.read_parameters()  # headers of what is on disk: names, shapes, dtypes
        found.append("the source has them all, in these shapes")
    if said := _other_ids(opened):
        found.append(said)
    if adapter_of is not None:
        loading.decoder_config(adapter_of.model, adapter_of.lora, adapter_of.train.frozen)
        rank = adapter_of.lora.rank
        found.append(f"a LoRA adapter of rank {rank}" if rank else "no LoRA adapter: all weights")
    in_memory = huggingface.tensors(family, opened.config, shapes, stacked=bool(family.stacked))
    found.append(_check_transformers(described, {t.name: t.shape for t in in_memory}))
    if output is not None:
        size = 4 * sum(int(np.prod(t.shape)) for t in tensors)
        folder = next(p for p in output.resolve().parents if p.is_dir())
        free = shutil.disk_usage(folder).free
        if free < size:
            raise UserError(
                f"{output}: {size / 1e9:.1f} GB in float32 do not fit the {free / 1e9:.1f} GB free there"
            )
        found.append(f"{size / 1e9:.1f} GB in float32 fit {folder}")
    return found


def _check_transformers(described: Mapping[str, Any], ours: Mapping[str, tuple[int, ...]]) -> str:
    """That `transformers` builds a model with exactly these tensors from this config, without memory."""
    if any(importlib.util.find_spec(name) is None for name in ("torch", "transformers")):
        return "not compared with transformers: torch and transformers are not installed"
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**described)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    theirs = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    if config.tie_word_embeddings:
        theirs = {
            k: v
            for k, v in theirs.items()
            if k in ours or not k.endswith(("lm_head.weight", "embed_out.weight"))
        }
    for name in sorted(set(ours) ^ set(theirs)):
        raise UserError(
            f"transformers {transformers.__version__} and this package differ in {name}"
        )
    for name, shape in ours.items():
        if theirs[name] != shape:
            raise UserError(f"{name} has the shape {shape} here and {theirs[name]} in transformers")
    return f"transformers {transformers.__version__} builds a model of the same {len(ours)} tensors"


def _base_of(workdir: Path) -> str:
    """The directory of the model that a run's adapter belongs to; "" where there is none (GGUF)."""
    started = config_module.read(workdir / "config.json").model.source
    if loading.run_of(started) is not None:
        raise UserError(
            f"{workdir}: its adapter belongs to the run {started}, which is no model that peft can load: "
            "export the whole model instead (without --adapter)"
        )
    files = loading.open_source(started).files
    if files and "vision_config" in huggingface.read_json(files / "config.json"):
        raise UserError(
            f"{workdir}: its adapter belongs to the language model in {started}, which peft cannot load "
            "without the vision part: export the whole model instead (without --adapter)"
        )
    return str(files.resolve()) if files else ""


def _as_reward_model(described: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """config.json of the sequence classifier that a run has made of the model described."""
    workdir, _ = loading.split_step(str(source))
    kinds = [str(kind) for kind in described.get("architectures") or ()]
    if not kinds or not kinds[0].endswith("ForCausalLM"):
        raise UserError(
            f"{workdir}: its model is of the kind {', '.join(kinds) or 'unknown'}, not …ForCausalLM: what "
            "its sequence classifier is called is not known"
        )
    kind = kinds[0].removesuffix("ForCausalLM") + reward.KIND
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    described = {**described, "architectures": [kind]} | labels
    data = config_module.read(workdir / "config.json").data
    tokenizer = loading.open_source(str(source), rewards=True).tokenizer
    if described.get("pad_token_id") in Renderer(data.template, tokenizer, data.arguments).stop_ids:
        # `transformers` reads the last token that is no padding, and the number belongs to the end.
        status(
            f"{workdir}: the padding of its model ends texts, so transformers scores one at a time"
        )
        described["pad_token_id"] = None
    return described


def _other_ids(opened: Source) -> str | None:
    """A sentence where the ids that were trained on may not be those of the exported tokenizer."""
    pieces, definition = "tokenizer.model", "tokenizer.json"
    folder = opened.files
    if folder is None or (folder / definition).is_file() or not (folder / pieces).is_file():
        return None
    return (
        f"there is {pieces} and no {definition}: the ids here are SentencePiece's own, and transformers "
        "makes a tokenizer of it that may give others, as on several spaces in a row; compare them "
        "before you serve the model"
    )


def _tokenizer_files(opened: Source) -> Path | dict[str, str]:
    """Says so where there are none."""
    held = opened.tokenizer_files()
    if not held:
        status("this tokenizer has no files: only the model is exported")
    return held


def _define_flags() -> None:
    flags.DEFINE_string("source", None, "model: directory, GGUF file, workdir, or a built-in name")
    flags.DEFINE_string("output", None, "directory to write")
    dtypes = ["float32", "bfloat16"]
    flags.DEFINE_enum("dtype", None, dtypes, "of the exported weights; by default the base's own")
    flags.DEFINE_bool("adapter", False, "export the LoRA adapter alone, for peft")
    megabytes = export.FILE_BYTES // 10**6
    flags.DEFINE_integer("shard_mb", megabytes, "export: 10^6 bytes of a file at most", 1)
    flags.DEFINE_bool("check", False, "only prove that the export will work")
    flags.DEFINE_integer("fsdp", -1, "import: config.mesh.fsdp")
    flags.DEFINE_integer("tensor", 1, "import: config.mesh.tensor")
    flags.DEFINE_integer("expert", 1, "import: config.mesh.expert")
    command.define_config(("model", "lora"), "--check: the training to come")


def _main(arguments: list[str]) -> None:
    given = flags.FLAGS
    if arguments[1:2] not in (["import"], ["export"]):
        raise UserError(
            "say what to do: python -m srpo_jax.convert import … or export … (see --help)"
        )
    refuse_arguments(arguments[2:])
    if given.source in loading.BUILT_IN and loading.is_run(Path(given.source)):
        raise UserError(
            f"--source={given.source} is a built-in model, and the run in the folder of that name another: "
            f"give ./{given.source} for the run"
        )
    settings = command.given() if given.config is not None else None
    source = given.source or (settings and settings.model.source)
    if not source:
        raise UserError("--source is missing: give the model to convert")
    output = storage.here(given.output, "--output") if given.output else None
    if given.check:
        for sentence in check(source, output, settings):
            print(sentence)
    elif output is None:
        raise UserError("--output is missing: give the directory to write")
    elif arguments[1] == "import":
        import_model(source, output, given.fsdp, given.tensor, given.expert)
    else:
        file_bytes = given.shard_mb * 10**6
        export_model(source, output, given.dtype, adapter=given.adapter, file_bytes=file_bytes)


if __name__ == "__main__":
    _define_flags()
    run_program(_main)
