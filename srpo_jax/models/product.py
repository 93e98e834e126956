"""Matrix products with narrow inputs and wide sums, forward and backward; grouped ones too."""

import functools
import itertools

import jax
import jax.numpy as jnp

Array = jax.Array
# What config.model.remat="dots" keeps of the forward pass: every `checkpoint_name` that says so.
KEPT = "kept"


def precision(a: Array, b: Array) -> jax.lax.Precision | None:
    """Of a product: float32 arrays are multiplied as such, which TPUs and newer GPUs do not do unasked."""
    wide = a.dtype == jnp.float32 and b.dtype == jnp.float32
    return jax.lax.Precision.HIGHEST if wide else None


def summed(spec: str, a: Array, b: Array) -> Array:
    """einsum(spec, a, b) in float32, see `precision`."""
    exact = precision(a, b)
    return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32, precision=exact)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def einsum(spec: str, a: Array, b: Array, out: str) -> Array:
    """einsum(spec, a, b) of arrays of one dtype, summed in float32, rounded to dtype `out`.

    spec: explicit, without ellipsis, each index of an input in the other input or in the output. The
    gradients are products of the same kind: the cotangent is first rounded to the inputs' dtype. JAX's
    own rule would multiply it in float32, which costs 2 to 6 times more and, where `out` is narrow
    already, adds nothing.
    """
    return summed(spec, a, b).astype(out)


def _forward(spec: str, a: Array, b: Array, out: str) -> tuple[Array, tuple[Array, Array]]:
    return einsum(spec, a, b, out), (a, b)


def _backward(
    spec: str, out: str, inputs: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    a, b = inputs
    left, right = spec.split("->")[0].split(",")
    result = spec.split("->")[1]
    narrow = cotangent.astype(a.dtype)
    grad_a = summed(f"{result},{right}->{left}", narrow, b)
    if a.dtype == jnp.float32:
        # With one summed index XLA on CPUs hands the arrays as they are to a product that reads them
        # transposed; with two it copies them into that order first. (Narrower products need the copy.)
        first = len(list(itertools.takewhile(lambda index: index not in right, left)))
        if first > 1 and result[:first] == left[:first]:
            a, narrow = (x.reshape(-1, *x.shape[first:]) for x in (a, narrow))
            left, result = left[first - 1 :], result[first - 1 :]
    grad_b = summed(f"{left},{result}->{right}", a, narrow)
    return grad_a.astype(a.dtype), grad_b.astype(b.dtype)


einsum.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped(a: Array, b: Array, sizes: Array, out: str) -> Array:
    """Rows a [N, I], each by the matrix of its group, b [G, I, O] -> [N, O], in dtype `out`.

    sizes: int32 [G], how many rows each group has, one group's rows behind the other's. What stands behind
    the last group is multiplied by nothing: its result and its gradient mean nothing. Sums and gradients as
    of `einsum`.
    """
    exact = precision(a, b)
    product = jax.lax.ragged_dot(a, b, sizes, exact, preferred_element_type=jnp.float32)
    return product.astype(out)


def _grouped_forward(
    a: Array, b: Array, sizes: Array, out: str
) -> tuple[Array, tuple[Array, Array, Array]]:
    return grouped(a, b, sizes, out), (a, b, sizes)


def _grouped_backward(
    out: str, inputs: tuple[Array, Array, Array], cotangent: Array
) -> tuple[Array, Array, None]:
    a, b, sizes = inputs
    narrow = cotangent.astype(a.dtype)
    product = functools.partial(
        jax.lax.ragged_dot_general,
        group_sizes=sizes,
        preferred_element_type=jnp.float32,
        precision=precision(a, b),
    )
    grad_a = product(narrow, b, ragged_dot_dimension_numbers=_BY_TRANSPOSED)
    grad_b = product(a, narrow, ragged_dot_dimension_numbers=_GROUP_BY_GROUP)
    return grad_a.astype(a.dtype), grad_b.astype(b.dtype), None


_BY_TRANSPOSED = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((1,), (2,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(0,),
)
_GROUP_BY_GROUP = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(((0,), (0,)), ((), ())),
    lhs_ragged_dimensions=(0,),
    rhs_group_dimensions=(),
)
grouped.defvjp(_grouped_forward, _grouped_backward)
