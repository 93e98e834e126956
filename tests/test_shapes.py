"""The annotations of shapes and dtypes are checked in tests: see CHECKED in conftest.py."""

import importlib

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from srpo_jax import objectives
from srpo_jax.models import attention, vocabulary
from srpo_jax.objectives import losses
from srpo_jax.trees import packing, prefix_tree

ONES = jnp.ones(3)
# (what is wrong, a call that is refused)
WRONG = {
    "a label too many": lambda: losses.dpo({"w": ONES, "l": ONES}, {}, jnp.ones(4)),
    "scores of text": lambda: objectives.get("sft")({"w": np.array(["a"])}, None, ONES),
    "kernel [D, V] for [V, D]": lambda: vocabulary.log_probabilities(
        jnp.ones((1, 2, 3)), jnp.ones((3, 5)), jnp.zeros((1, 2), int)
    ),
    "targets that are no tokens": lambda: vocabulary.log_probabilities(
        jnp.ones((1, 2, 3)), jnp.ones((5, 3)), jnp.ones((1, 2))
    ),
    "heads before slots": lambda: attention.attend(
        jnp.ones((1, 4, 8, 2)),
        jnp.ones((1, 8, 4, 2)),
        jnp.ones((1, 8, 4, 2)),
        jnp.ones((1, 8, 8), bool),
    ),
    "one end more than positions": lambda: attention.tree_mask(
        jnp.ones((1, 5), int), jnp.zeros((1, 4), int)
    ),
    "no rows": lambda: attention.dense_mask(jnp.ones(5, int)),
    "sizes that are no numbers of slots": lambda: packing.balanced(np.array([1.5]), 1),
    "a tree whose runs have no end": lambda: prefix_tree.Tree(
        **{
            **vars(prefix_tree.build([([1, 2], [3])])),
            "runs": np.zeros((1, 2), np.int32),
        }
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_shape_is_refused(wrong):
    with pytest.raises(jaxtyping.TypeCheckError):
        WRONG[wrong]()


def test_traced_calls_are_checked_too():
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.eval_shape(attention.dense_mask, jax.ShapeDtypeStruct((2, 3, 4), jnp.int32))


def test_the_checked_modules_exist(checked_modules):
    """A module that moved would otherwise be checked no more, and nobody would notice."""
    for name in checked_modules:
        importlib.import_module(name)
