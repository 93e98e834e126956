"""Blockwise attention and the TPU kernel (interpreted) against the dense definition."""

import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from srpo_jax.models import attention
from srpo_jax.models.attention import blockwise
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.trees import prefix_tree

HEADS, KV_HEADS, SIZE = 4, 2, 16
LENGTH = 224  # of a row


def random_tree(rng, sequences=5, length=24):
    """Few symbols, so that sequences share beginnings of all lengths."""
    shared = rng.integers(0, 3, length)
    parts = []
    for _ in range(sequences):
        kept = rng.integers(1, length)
        parts.append((shared[:kept], rng.integers(0, 3, rng.integers(2, length))))
    return prefix_tree.build(parts)


class Words(NamedTuple):
    """What the mask is made of, [B, S]."""

    end: jax.Array
    positions: jax.Array


def random_rows(seed, rows=2, length=LENGTH, trees=2) -> Words:
    rng = np.random.default_rng(seed)
    made = [[random_tree(rng) for _ in range(trees)] for _ in range(rows)]
    packed = prefix_tree.stack([prefix_tree.pack(row, length, 2000) for row in made])
    return Words(packed.end, packed.positions)


class Case(NamedTuple):
    words: Words
    query: jax.Array
    key: jax.Array
    value: jax.Array
    cotangent: jax.Array


def random_case(words, dtype=jnp.float32, heads=HEADS, kv_heads=KV_HEADS, seed=0) -> Case:
    batch, length = words.end.shape
    keys = jax.random.split(jax.random.key(seed), 4)
    query, key, value, cotangent = (
        jax.random.normal(k, (batch, length, n, SIZE)).astype(dtype)
        for k, n in zip(keys, (heads, kv_heads, kv_heads, heads), strict=True)
    )
    # Nobody reads what padding slots compute.
    cotangent = cotangent * (words.end > 0)[..., None, None].astype(dtype)
    return Case(jax.tree.map(jnp.asarray, words), query, key, value, cotangent)


def run(case: Case, kind: str, block: int | None = None, **settings):
    """The output on real slots and the three gradients, float32 numpy."""

    window = settings.pop("window", None)

    def both(case: Case):
        if kind == "dense":
            mask = attention.dense_mask(case.words.end)
            if window is not None:
                back = case.words.positions[:, :, None] - case.words.positions[:, None]
                mask &= back < window
        else:
            mask = attention.tree_mask(*case.words, kind=kind, block=block)
            mask = mask if window is None else mask.within(window)
        attend = lambda *x: attention.attend(*x, mask, **settings)
        out, pull = jax.vjp(attend, case.query, case.key, case.value)
        return out, *pull(case.cotangent)

    interpreted = pltpu.force_tpu_interpret_mode() if kind == "pallas" else contextlib.nullcontext()
    with interpreted:
        results = jax.jit(both)(case)
    real = np.asarray(case.words.end > 0)[..., None, None]
    return [np.where(real, np.asarray(x, np.float32), 0.0) for x in results]


def assert_close(got, want, tolerance):
    for name, a, b in zip(("out", "query", "key", "value"), got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), err_msg=name)


KINDS = [("blockwise", 32), ("blockwise", 50), ("pallas", 32)]
# Float32: sums in another order.
TOLERANCE = 5e-6
# The kernels compile long: what one setting does alone is tried with them where all are.
EACH = [{}, {"softcap": 2.0}, {"window": 9}, {"scale": 0.5, "softcap": 3.0, "window": 20}]
SETTINGS = [
    pytest.param(*kind, one, marks=[pytest.mark.slow] * (kind[0] == "pallas" and len(one) < 3))
    for kind in KINDS
    for one in EACH
]


@pytest.mark.parametrize(("kind", "block", "settings"), SETTINGS)
def test_forward_and_gradients_equal_the_dense_ones(kind, block, settings):
    """Two trees a row, and padding of whole blocks; 50 does not divide the row."""
    case = random_case(random_rows(0))
    assert_close(run(case, kind, block, **settings), run(case, "dense", **settings), TOLERANCE)


@pytest.mark.parametrize(("kind", "block"), [KINDS[0], KINDS[2]])
@pytest.mark.parametrize(("heads", "kv_heads"), [(3, 3), (3, 1)])
def test_key_heads_with_one_or_all_query_heads(kind, block, heads, kv_heads):
    case = random_case(random_rows(1, rows=1), heads=heads, kv_heads=kv_heads)
    assert_close(run(case, kind, block), run(case, "dense"), TOLERANCE)


@pytest.mark.parametrize(("kind", "block"), [KINDS[0], KINDS[2]])
def test_bfloat16(kind, block):
    """Weights and cotangents are rounded to 8 bits, in other places than the dense ones."""
    case = random_case(random_rows(2, rows=1), jnp.bfloat16)
    assert_close(run(case, kind, block), run(case, "dense"), 2e-2)


@pytest.mark.parametrize(("kind", "block"), [KINDS[0], KINDS[2]])
def test_blocks_that_no_one_sees_are_not_computed(kind, block):
    """No number in the second tree's blocks reaches the first tree, not even as 0 * nan."""
    rng = np.random.default_rng(3)
    first, second = random_tree(rng), random_tree(rng)
    start = -(-len(first.tokens) // block) * block
    row = prefix_tree.pack([first], start, 2000)
    other = prefix_tree.pack([second], LENGTH - start, 2000)
    join = lambda a, b: np.concatenate([a, b])[None]
    ends = np.where(other.end > 0, other.end + start, 0)
    case = random_case(Words(join(row.end, ends), join(row.positions, other.positions)))
    want = run(case, kind, block)
    spoilt = case._replace(
        key=case.key.at[:, start:].set(jnp.nan), value=case.value.at[:, start:].set(jnp.nan)
    )
    got = run(spoilt, kind, block)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a[:, :start], b[:, :start])


@pytest.mark.parametrize(("kind", "block"), [KINDS[0], KINDS[2]])
def test_a_row_of_nothing_is_finite(kind, block):
    words = jax.tree.map(lambda x: np.stack([x[0], np.zeros_like(x[1])]), random_rows(4))
    case = random_case(words)
    case = case._replace(cotangent=jnp.ones_like(case.query))
    mask = attention.tree_mask(*case.words, kind=kind, block=block)
    with pltpu.force_tpu_interpret_mode():
        out, pull = jax.vjp(lambda *x: attention.attend(*x, mask), *case[1:4])
        gradients = pull(case.cotangent)
    assert all(jnp.isfinite(x).all() for x in (out, *gradients))
    assert all((x[1] == 0).all() for x in (out, *gradients))


def test_the_lists_hold_the_pairs_of_blocks_that_are_seen():
    words, block = jax.tree.map(jnp.asarray, random_rows(5)), 32
    lists = attention.tree_mask(*words, kind="blockwise", block=block).lists
    dense = np.asarray(attention.dense_mask(words.end))
    blocks = LENGTH // block
    seen = dense.reshape(2, blocks, block, blocks, block).any((2, 4))
    for row in range(2):
        for i in range(blocks):
            for listed, count, want in (
                (lists.keys, lists.key_count, seen[row, i]),
                (lists.queries, lists.query_count, seen[row, :, i]),
            ):
                assert list(listed[row, i, : count[row, i]]) == list(np.flatnonzero(want))
    assert seen.sum() < 2 * blocks * (blocks + 1) / 2, (
        "some blocks of the lower triangle should be empty"
    )


def test_blocks_beyond_the_window_are_not_listed():
    """One text of 256 tokens in blocks of 32: with a window of 40 a block reads itself and two more."""
    slots = jnp.arange(256)[None]
    mask = attention.tree_mask(jnp.full((1, 256), 256), slots, kind="blockwise", block=32)
    assert list(mask.lists.key_count[0]) == [1, 2, 3, 4, 5, 6, 7, 8]
    limited = mask.within(40).lists
    assert list(limited.key_count[0]) == [1, 2, 3, 3, 3, 3, 3, 3]
    assert list(limited.keys[0, 7, :3]) == [5, 6, 7]
    assert list(limited.queries[0, 2, :3]) == [2, 3, 4]


def test_auto_takes_what_suits_the_row():
    short, long = random_rows(6, length=480), random_rows(6, length=480)
    short = jax.tree.map(lambda x: x[:, : attention.DENSE_UP_TO], short)
    assert attention.tree_mask(*short).shape == (2, attention.DENSE_UP_TO, attention.DENSE_UP_TO)
    assert attention.tree_mask(*long).kind == "blockwise"


def test_unknown_kinds_are_refused():
    with pytest.raises(UserError, match=r"config\.model\.attention='flash' is none of auto, dense"):
        attention.tree_mask(*random_rows(7), kind="flash")


@pytest.mark.parametrize("kind", ["blockwise", "pallas"])
def test_a_mesh_changes_nothing(kind):
    case = random_case(random_rows(8, length=160, trees=1))
    mesh = mesh_module.make(fsdp=2, tensor=2, devices=jax.devices()[:4])

    def both(case):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            mask = attention.tree_mask(*case.words, kind=kind, block=32)
            out, pull = jax.vjp(lambda *x: attention.attend(*x, mask), *case[1:4])
            return out, *pull(case.cotangent)

    heads = mesh_module.sharding(mesh, ("batch", None, "heads", None))
    placed = jax.device_put(case, Case(mesh_module.batch_sharding(mesh), *[heads] * 4))
    with pltpu.force_tpu_interpret_mode():
        got = jax.jit(both)(placed)
    want = run(case, "dense")
    real = np.asarray(case.words.end > 0)[..., None, None]
    assert_close(
        [np.where(real, x, 0.0) for x in got], [np.where(real, x, 0.0) for x in want], 5e-6
    )


def test_memory_is_linear_in_the_row_length():
    """Temporaries of forward and backward at twice the length: 2 times as large, where dense takes 4."""

    def temporaries(length: int, kind: str) -> int:
        word = jax.ShapeDtypeStruct((1, length), jnp.int32)
        heads, kv_heads = (jax.ShapeDtypeStruct((1, length, n, SIZE), jnp.float32) for n in (4, 2))

        def gradient(words, *x):
            mask = attention.tree_mask(*words, kind=kind)
            return jax.grad(lambda *x: attention.attend(*x, mask).sum(), argnums=(0, 1, 2))(*x)

        lowered = jax.jit(gradient).lower(Words(word, word), heads, kv_heads, kv_heads)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporaries(4096, "blockwise") < 2.2 * temporaries(2048, "blockwise")
    assert temporaries(4096, "dense") > 3.5 * temporaries(2048, "dense")


COMPILE = """
import jax, jax.numpy as jnp
from jax.experimental import topologies
from srpo_jax.models import attention
from srpo_jax.models.attention import blockwise

def compile(topology, length, heads, kv_heads, size, dtype, window=None, **settings):
    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    where = jax.sharding.SingleDeviceSharding(chip)
    shape = lambda *s, dtype=dtype: jax.ShapeDtypeStruct(s, dtype, sharding=where)
    word = shape(1, length, dtype=jnp.int32)

    def both(words, query, key, value, cotangent):
        mask = attention.tree_mask(*words, kind="pallas")
        mask = mask if window is None else mask.within(window)
        attend = lambda *x: attention.attend(*x, mask, **settings)
        out, pull = jax.vjp(attend, query, key, value)
        return out, pull(cotangent)

    query, key = shape(1, length, heads, size), shape(1, length, kv_heads, size)
    traced = jax.jit(both).trace((word, word), query, key, key, query)
    traced.lower(lowering_platforms=("tpu",)).compile()

for topology in ("v5e:2x2", "v5:2x2x1", "v6e:2x2"):
    compile(topology, 2880, 32, 8, 128, jnp.bfloat16)
compile("v5e:2x2", 1000, 9, 3, 64, jnp.float32)
compile("v5e:2x2", 2880, 8, 1, 256, jnp.bfloat16, softcap=50.0, window=1024)
compile("v5e:2x2", 32768, 32, 8, 128, jnp.bfloat16)
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: extra `plan`"
)
def test_the_kernels_compile_for_tpus():
    settings = {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }
    result = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.stdout.strip().endswith("compiled"), result.stderr[-3000:]


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_key_heads_that_cannot_be_cut_are_repeated(kv_heads):
    """12 query heads over 4 devices: all of 1, 2 or 3 key heads' queries are where their keys are."""
    keys = jax.random.split(jax.random.key(0), 3)
    shape = lambda heads: (2, 32, heads, 8)
    query, key, value = (
        jax.random.normal(k, shape(h)) for k, h in zip(keys, (12, kv_heads, kv_heads), strict=True)
    )
    end = np.full((2, 32), 32, np.int32)
    positions = np.broadcast_to(np.arange(32, dtype=np.int32), (2, 32))
    mesh = mesh_module.make(fsdp=2, tensor=4)

    def attended(query, key, value):
        mask = attention.tree_mask(end, positions, kind="blockwise")
        return attention.attend(query, key, value, mask)

    def loss(*given):
        return (attended(*given) ** 2).sum()

    def on_mesh(*given):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.value_and_grad(loss, argnums=(0, 1, 2))(*given)

    expected = jax.value_and_grad(loss, argnums=(0, 1, 2))(query, key, value)
    split = mesh_module.batch_sharding(mesh)
    found = jax.jit(on_mesh)(*(jax.device_put(x, split) for x in (query, key, value)))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected
    )
    assert attention.shared_heads(12, kv_heads, 4) in (4, 12)


def test_key_heads_that_can_be_cut_stay():
    assert attention.shared_heads(32, 8, 4) == 8
    assert attention.shared_heads(32, 8, 16) == 16


@pytest.mark.parametrize("limit", [1, 2 * 4 * 20, 3 * 2 * 4 * 20])
def test_attention_over_a_cache_is_the_same_in_pieces(monkeypatch, limit):
    """One query at a time, one, and three of eleven."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    query = draw(2, 11, 4, 8)
    parts = [(draw(2, 2, 8, 12), draw(2, 2, 12, 8)), (draw(2, 2, 8, 8), draw(2, 2, 8, 8))]
    mask = jnp.asarray(rng.random((2, 11, 20)) < 0.5)
    expected = attention.attend_cached(query, parts, mask, softcap=2.0)
    module = importlib.import_module(
        "srpo_jax.models.attention.attend"
    )  # a function has this name too
    monkeypatch.setattr(module, "LOGITS", limit)
    found = jax.jit(lambda q: attention.attend_cached(q, parts, mask, softcap=2.0))(query)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


def test_programs_are_traced_for_the_platform_that_is_named():
    end, positions = jnp.full((1, 1024), 1024), jnp.arange(1024)[None]
    with attention.lowered_for("tpu"):
        assert attention.tree_mask(end, positions).kind == "pallas"
    with attention.lowered_for("gpu"):
        mask = attention.tree_mask(end, positions)
        assert mask.kind == "blockwise"
        together, _ = blockwise.in_parts(mask)
        assert together.turns.shape[0] == blockwise.PARTS
    together, _ = blockwise.in_parts(mask)
    assert together.turns.shape[1] == blockwise.TOGETHER
