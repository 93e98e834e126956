"""Floating point operations of a JAX program, counted from its jaxpr; nothing is computed or compiled."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval


def count(function: Callable[..., Any], *arguments: Any) -> float:
    """2 for each multiplication and addition of the matrix products of `function(*arguments)`.

    arguments: pytrees of arrays or `jax.ShapeDtypeStruct`s. Whole, whatever mesh the program is for. A scan
    counts as often as it runs, a `while` whose trips depend on data once, of the branches of a `cond` the
    dearest; what Pallas kernels do is not seen. Products that no result depends on do not count, nor does
    what a grouped product (`jax.lax.ragged_dot`) leaves out: a row's product with other groups' matrices.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _count(needed)


def _count(jaxpr: core.Jaxpr) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        kind = equation.primitive.name
        inner = [_count(sub) for sub in core.jaxprs_in_params(equation.params)]
        if kind == "dot_general":
            total += _product(equation)
        elif kind == "ragged_dot_general":
            total += _grouped(equation)
        elif kind == "scan":
            total += equation.params["length"] * sum(inner)
        elif kind == "cond":
            total += max(inner)
        elif kind == "shard_map":  # its body is one device's
            total += equation.params["mesh"].size * sum(inner)
        elif kind != "pallas_call":
            total += sum(inner)
    return total


def _product(equation: core.JaxprEqn) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    given: Any = equation.invars[0].aval
    made: Any = equation.outvars[0].aval
    summed = math.prod(given.shape[axis] for axis in contracted)
    return float(2 * math.prod(made.shape) * summed)


def _grouped(equation: core.JaxprEqn) -> float:
    """Each row by the matrix of its group, or each group's rows by one another; not all rows by all."""
    dimensions = equation.params["ragged_dot_dimension_numbers"]
    (_, contracted), (_, batch) = dimensions.dot_dimension_numbers
    given: list[Any] = [variable.aval for variable in equation.invars[:2]]
    left, right = (array.shape for array in given)
    once = {*contracted, *batch, *dimensions.rhs_group_dimensions}
    columns = [size for axis, size in enumerate(right) if axis not in once]
    return float(2 * math.prod(left) * math.prod(columns))
