"""A decoder's variables where they belong on a mesh: with values, or as shapes only."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from srpo_jax.models import weights
from srpo_jax.models.architecture import SCORE, VECTORS, DecoderConfig
from srpo_jax.models.decoder import Decoder
from srpo_jax.models.lora import Adapter
from srpo_jax.models.weights import Parameters, Weight
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError


def trainable(config: DecoderConfig) -> Any:
    """An nnx filter: which variables an optimiser may change.

    The adapters where there are any, with a reward model's head; else all that config.frozen does not name.
    """
    if config.lora_rank:
        return nnx.Any(Adapter, nnx.PathContains("score")) if config.rewards else Adapter
    if not config.frozen:
        return nnx.Param

    def free(path: tuple[Any, ...], variable: Any) -> bool:
        name = ".".join(map(str, path))
        return isinstance(variable, nnx.Param) and not any(
            re.fullmatch(pattern, name) for pattern in config.frozen
        )

    return free


def create(
    config: DecoderConfig, parameters: Parameters | None, mesh: Mesh, seed: int
) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any], nnx.State[Any, Any]]:
    """(graphdef, trainable state, frozen state), every array made where it belongs on the mesh.

    parameters: {dotted name: array} read from somewhere, or None to draw all at random. Adapters and a
    reward model's head are drawn from seed, and are the same on every mesh. Frozen matrices are kept in the
    compute dtype they would be cast to at every use; norms and all that is trained are float32.
    """
    platform = mesh.devices.flat[0].platform
    if config.attention == "pallas" and platform != "tpu":
        raise UserError(
            f"config.model.attention=pallas needs TPUs, and these devices are of kind {platform}: use auto"
        )

    def make() -> Decoder:
        return Decoder(config, nnx.Rngs(seed))

    kind = trainable(config)
    graphdef, *abstract = nnx.split(nnx.eval_shape(make), kind, ...)
    if parameters is not None:
        known = {
            ".".join(map(str, path)) for state in abstract for path, _ in nnx.to_flat_state(state)
        }
        if config.rewards:  # which takes the place of the vocabulary projection
            known.add("head.kernel")
        if unknown := sorted(set(parameters) - known):
            raise UserError(f"the weights have {unknown[0]}: not those of this architecture")
    states = []
    for which, state in enumerate(abstract):
        shardings = mesh_module.parameter_shardings(mesh, state)
        given: Parameters = {} if parameters is None else parameters
        flat = nnx.to_flat_state(state)
        names = [".".join(map(str, path)) for path, _ in flat]
        if parameters is None or any(name not in given for name in names):
            drawn = jax.jit(
                lambda w=which: nnx.split(make(), kind, ...)[1 + w], out_shardings=shardings
            )
            missing = [n for n in names if n not in given and "lora_" not in n and n != SCORE]
            if parameters is not None and missing:
                raise UserError(f"the weights lack {missing[0]}: not those of this architecture")
            state = drawn()
        where = dict(nnx.to_flat_state(shardings))
        placed = []
        for (path, variable), name in zip(nnx.to_flat_state(state), names, strict=True):
            dtype = _stored(config, which == 1, name)
            value = variable.get_value()
            if name in given:
                value = _place(name, given[name], value.shape, dtype, where[path].get_value())
            elif value.dtype != dtype:
                value = value.astype(dtype)
            placed.append((path, variable.replace(value)))
        states.append(nnx.from_flat_state(placed))
    return graphdef, states[0], states[1]


def _stored(config: DecoderConfig, is_frozen: bool, name: str) -> Any:
    """The dtype that a parameter is kept in."""
    kept = config.dtype if is_frozen else config.parameters
    wide = name.endswith(VECTORS) or "lora_" in name or name == SCORE
    return jnp.dtype(jnp.float32 if wide else kept)


def abstract(
    config: DecoderConfig, mesh: Mesh
) -> tuple[nnx.GraphDef[Any], nnx.State[Any, Any], nnx.State[Any, Any]]:
    """What `create` would make, as shapes that know where they would lie."""
    model = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    graphdef, *states = nnx.split(model, trainable(config), ...)
    placed = []
    for which, state in enumerate(states):
        where = dict(nnx.to_flat_state(mesh_module.parameter_shardings(mesh, state)))
        leaves = []
        for path, variable in nnx.to_flat_state(state):
            dtype = _stored(config, which == 1, ".".join(map(str, path)))
            sharding = where[path].get_value()
            shape = jax.ShapeDtypeStruct(variable.get_value().shape, dtype, sharding=sharding)
            leaves.append((path, variable.replace(shape)))
        placed.append(nnx.from_flat_state(leaves))
    return graphdef, placed[0], placed[1]


def _place(
    name: str, array: np.ndarray | Weight, shape: tuple[int, ...], dtype: Any, sharding: Any
) -> jax.Array:
    if array.shape != shape:
        raise UserError(f"the weights' {name} has shape {array.shape}; the model needs {shape}")
    return weights.place(array, dtype, sharding)
