"""The programs of a configuration on a mesh, lowered from shapes alone: nothing is allocated."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models import DecoderConfig
from srpo_jax.models.creation import abstract
from srpo_jax.models.loading import for_inference
from srpo_jax.planning.compiling import Trees
from srpo_jax.prompts import Prompt
from srpo_jax.revision import programs
from srpo_jax.revision.plan import Plan, start
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training.step import FINITE, TrainState, TrainStep

PLATFORM = "tpu"


@dataclasses.dataclass(frozen=True)
class Program:
    """lowered: for the compiler. trees: of its batch. executions: how often it runs for one unit of work.

    loops: of a loop whose end depends on data, the most it runs.
    """

    name: str
    lowered: jax.stages.Lowered
    trees: Trees
    executions: int = 1
    loops: int | None = None


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes of HBM that each chip holds from step to step, by kind."""

    trained: int
    frozen: int
    optimizer: int
    batch: int


def train_step(
    step: TrainStep, architecture: DecoderConfig, batch: Mapping[str, Any]
) -> tuple[Program, Held]:
    """The train step on a batch (numpy), and what lies in memory for it."""
    _, trained, frozen = abstract(architecture, step.mesh)
    programs: Any = step.compile(trained)
    where = step.shardings(trained)
    optimizer = jax.tree.map(_shape, jax.eval_shape(step.init, trained), where.optimizer)
    given = _split(step.mesh, dict(batch))
    finite = _shape(FINITE, mesh_module.replicated(step.mesh))
    state = TrainState(trained, optimizer)
    lowered = programs.train.trace(state, frozen, given, finite).lower(
        lowering_platforms=(PLATFORM,)
    )
    held = Held(*map(_bytes, (trained, frozen, optimizer, given)))
    rows = batch["rows"]
    return Program("train step", lowered, Trees(rows.end, rows.positions)), held


def revision(
    architecture: DecoderConfig,
    mesh: Mesh,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    stops: tuple[int, ...],
    revisions: int,
    dtype: str,
) -> Iterator[Program]:
    """The programs that answer a batch of prompts and revise the answers: prefill, decode, extend."""
    config = for_inference(architecture, dtype)
    config = dataclasses.replace(config, lora_rank=0, lora_targets=(), lora_dropout=0.0)
    graphdef, state = nnx.split(nnx.merge(*abstract(config, mesh)))
    model = programs.Model(graphdef, state, None, mesh)
    new = sampling.max_new_tokens
    plan = Plan.of(prompts, revisions, new)
    rows = plan.direct()
    trees = _as_trees(rows)

    def lower(program: Any, *arguments: Any, **settings: Any) -> jax.stages.Lowered:
        lowered: jax.stages.Lowered = program.trace(model, *arguments, **settings).lower(
            lowering_platforms=(PLATFORM,)
        )
        return lowered

    yield Program("prefill", lower(programs.prefill, _split(mesh, rows)), trees)

    logits, cache = jax.eval_shape(programs.prefill, model, rows)
    logits = _shape(logits, mesh_module.sharding(mesh, ("batch", None)))
    cache = jax.tree.map(lambda x: _cached(mesh, x), cache)
    keys = jax.eval_shape(programs.keys, 0, np.zeros(len(prompts), np.uint32))
    begun = _split(mesh, start(rows, keys, 0))
    settings = {"sampling": dataclasses.replace(sampling, batch_size=1), "stops": stops}
    decode = lower(programs.decode, cache, logits, begun, **settings)
    yield Program("decode", decode, trees, executions=revisions + 1, loops=new - 1)
    if revisions:
        shown = [[0] * (new - 1)] * len(prompts)
        more = _split(mesh, plan.improve(min(revisions, 2), shown))
        yield Program("extend", lower(programs.extend, cache, more), trees, executions=revisions)


def _as_trees(rows: programs.Rows[np.ndarray]) -> Trees:
    """Prompts as attention sees them: trees without branches."""
    positions = np.broadcast_to(np.arange(rows.tokens.shape[1], dtype=np.int32), rows.tokens.shape)
    counts = rows.counts[:, None]
    return Trees(np.where(positions < counts, counts, 0).astype(np.int32), positions)


def _shape(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _split(mesh: Mesh, tree: Any) -> Any:
    """Shapes of arrays whose leading dimension is split over the batch axes; scalars are everywhere."""
    split, whole = mesh_module.batch_sharding(mesh), mesh_module.replicated(mesh)
    return jax.tree.map(lambda x: _shape(x, split if x.ndim else whole), tree)


def _cached(mesh: Mesh, x: Any) -> jax.ShapeDtypeStruct:
    """An array of a cache: keys or values with all layers in front, or positions."""
    axes = ("layers", "batch", "kv_heads", None, None) if x.ndim == 5 else ("batch", None)
    return _shape(x, mesh_module.sharding(mesh, axes, x.shape))


def _bytes(tree: Any) -> int:
    """Of one chip's part."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
