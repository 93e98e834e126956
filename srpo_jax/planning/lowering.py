"""The programs of a configuration on a mesh, lowered from shapes alone: nothing is allocated."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models import DecoderConfig
from srpo_jax.models.creation import abstract
from srpo_jax.planning.compiling import Trees
from srpo_jax.prompts import Prompt
from srpo_jax.revision import pool, programs
from srpo_jax.revision.plan import Need, Shape, group, start
from srpo_jax.revision.pool import Pool
from srpo_jax.revision.prompt_arrays import PromptArrays, Shown
from srpo_jax.revision.sampling import Sampling
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.training.online import OnlineStep
from srpo_jax.training.step import FINITE, TrainState, TrainStep


@dataclasses.dataclass(frozen=True)
class Program:
    """lowered: for the compiler. trees: of its batch. executions: how often it runs for one unit of work.

    loops: of a loop whose end depends on data, the most it runs. beside: bytes of HBM of a chip that lie
    there meanwhile and are no argument of it.
    """

    name: str
    lowered: jax.stages.Lowered
    trees: Trees
    executions: int = 1
    loops: int | None = None
    beside: int = 0


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
    return update(step, trained, frozen, batch)


def update(
    step: TrainStep | OnlineStep,
    trained: nnx.State[Any, Any],
    frozen: nnx.State[Any, Any],
    batch: Mapping[str, Any],
) -> tuple[Program, Held]:
    """As `train_step`, of parameters of these shapes."""
    programs: Any = step.compile(trained)
    where = step.shardings(trained)
    optimizer = jax.tree.map(placed, jax.eval_shape(step.init, trained), where.optimizer)
    given = over_batch(step.mesh, dict(batch))
    finite = placed(FINITE, mesh_module.replicated(step.mesh))
    state = TrainState(trained, optimizer)
    made = lowered(programs.train, step.mesh, state, frozen, given, finite)
    held = Held(*map(mesh_module.held, (trained, frozen, optimizer, given)))
    rows = batch["rows"]
    return Program("train step", made, Trees(rows.end, rows.positions)), held


def beside_reference(program: Program, held: Held, apart: bool) -> tuple[Program, Held]:
    """The same where the reference's weights lie beside the policy: a copy of what is trained.

    apart: of another model (config.reference.source), all of whose weights do.
    """
    copied = held.trained + (held.frozen if apart else 0)
    held = dataclasses.replace(held, frozen=held.frozen + copied)
    return dataclasses.replace(program, beside=program.beside + copied), held


def lowered(program: Any, mesh: Mesh, *arguments: Any, **settings: Any) -> jax.stages.Lowered:
    """A jitted program for the mesh's machine. settings: what it is compiled for."""
    found: jax.stages.Lowered = program.trace(*arguments, **settings).lower(
        lowering_platforms=_platforms(mesh)
    )
    return found


def revision(
    architecture: DecoderConfig,
    mesh: Mesh,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    stops: tuple[int, ...],
    revisions: int,
) -> Iterator[Program]:
    """The programs that answer a batch of prompts and revise the answers: answer, decode, improve.

    architecture: for inference, adapters merged.
    """
    graphdef, state = nnx.split(nnx.merge(*abstract(architecture, mesh)))
    model = programs.Model.shaped(graphdef, state, mesh)
    new = sampling.max_new_tokens
    shape = Shape.needed(prompts, Need(new, revisions > 0))
    parts = mesh_module.batch_parts(mesh)
    size = group(len(prompts), sampling.refill, parts)
    groups = -(-len(prompts) // size)
    settings: dict[str, Any] = {"sampling": dataclasses.replace(sampling, batch_size=1, refill=1.0)}
    rows = _pooled(mesh, pool.described(model, len(prompts), shape, **settings))
    settings["stops"] = stops
    keys = jax.eval_shape(programs.keys, 0, np.zeros(size, np.uint32))

    beside = stack_beside(model)

    def lower(program: Any, *arguments: Any) -> jax.stages.Lowered:
        return lowered(program, mesh, model, rows, *arguments, **settings)

    def put(program: Any, put_in: programs.Rows[np.ndarray], revision: int) -> jax.stages.Lowered:
        begun = start(put_in, keys, [revision] * size)
        into = np.zeros((parts, size // parts), np.int32)
        return lower(program, *over_batch(mesh, (put_in, begun, into)))

    given, chosen = PromptArrays.of(prompts), np.arange(size)
    direct = shape.direct(given, chosen)
    trees = as_trees(direct)
    answer = put(pool.answer, direct, 0)
    yield Program("answer", answer, trees, executions=groups, beside=beside)
    wait = jax.ShapeDtypeStruct((), np.int32)
    decode = lower(pool.decode, wait)
    yield Program("decode", decode, trees, revisions + 1, loops=new - 1, beside=beside)
    if revisions:
        shown = Shown(np.zeros((size, new), np.int32), np.full(size, new - 1, np.int32))
        improve = put(pool.improve, shape.improve(given, chosen, shown), 1)
        yield Program("improve", improve, trees, executions=groups * revisions, beside=beside)


def stack_beside(model: programs.Model) -> int:
    """Bytes of the stack of layers where the programs take copies of them."""
    return mesh_module.held(model.state["blocks"]) if model.layers else 0


def _pooled(mesh: Mesh, rows: Pool) -> Pool:
    """The shapes of a pool, split up as its programs leave it."""

    def split(cache: Any) -> Any:
        return jax.tree.map(lambda x: of_cache(mesh, x), cache)

    at = dataclasses.replace(over_batch(mesh, rows.at), cache=split(rows.at.cache))
    return Pool(split(rows.cache), at)


def _platforms(mesh: Mesh) -> tuple[str]:
    return ("tpu" if mesh.devices.flat[0].platform == "tpu" else "cuda",)


def as_trees(rows: programs.Rows[np.ndarray]) -> Trees:
    """Prompts as attention sees them: trees without branches."""
    positions = np.broadcast_to(np.arange(rows.tokens.shape[1], dtype=np.int32), rows.tokens.shape)
    counts = rows.counts[:, None]
    return Trees(np.where(positions < counts, counts, 0).astype(np.int32), positions)


def placed(x: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def over_batch(mesh: Mesh, tree: Any) -> Any:
    """Shapes of arrays whose leading dimension is split over the batch axes; scalars are everywhere."""
    split, whole = mesh_module.batch_sharding(mesh), mesh_module.replicated(mesh)
    return jax.tree.map(lambda x: placed(x, split if x.ndim else whole), tree)


def of_cache(mesh: Mesh, x: Any) -> jax.ShapeDtypeStruct:
    """An array of a cache: keys or values, of a layer or with all of them in front, or positions."""
    of_layer = ("batch", "kv_heads", None, None)
    axes = {5: ("layers", *of_layer), 4: of_layer, 2: ("batch", None)}[x.ndim]
    return placed(x, mesh_module.sharding(mesh, axes, x.shape))
