"""Reference scores are read again only for exactly what they were computed from."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models.architecture import DecoderConfig
from srpo_jax.objectives.losses import DIRECT_SCORES
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline, reference, score_files

WEIGHTS = {"a": jnp.arange(12.0).reshape(3, 4), "b": jnp.ones(5, jnp.bfloat16)}


def data(template="plain", count=5):
    pairs = [Pair(f"text {i}", "yes" * (i + 1), "no") for i in range(count)]
    renderer = Renderer(template, ByteTokenizer())
    return pipeline.prepare(pairs, renderer, DIRECT_SCORES, max_length=512)


def score(rows):
    """Stands for the model: the number of targets of each tree, and the same negated."""
    places = jnp.arange(rows.pair.shape[1])
    mine = (rows.target_tree[:, :, None] == places) & (rows.target_last > 0)[:, :, None]
    size = mine.sum(1).astype(jnp.float32).reshape(-1)
    return {"w": size, "l": -size}, rows.pair.reshape(-1)


def never(rows):
    raise AssertionError("scored again")


@pytest.fixture(scope="module")
def mesh():
    return mesh_module.make(devices=jax.devices()[:1])


PAIRS = data()
ARCHITECTURE = DecoderConfig(
    vocab_size=259, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, mlp_width=8, dtype="float32"
)


def load(
    path, mesh, data=PAIRS, weights=WEIGHTS, score=score, used=None, architecture=ARCHITECTURE
):
    identity = reference.fingerprint(data, weights, architecture)
    return reference.load_or_score(path, identity, data, score, data.packing(4, 0), mesh, used)


def test_every_pair_is_scored_once_and_then_read(tmp_path, mesh):
    path = tmp_path / "run" / "reference_scores.npz"
    scores = load(path, mesh)
    sizes = [len(tree.target_token) for tree in data().trees]
    np.testing.assert_array_equal(scores["w"], sizes)
    np.testing.assert_array_equal(scores["l"], np.negative(sizes))
    again = load(path, mesh, score=never)
    for name in DIRECT_SCORES:
        np.testing.assert_array_equal(again[name], scores[name])
        assert again[name].dtype == np.float32
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def counted(seen, fail_at=None):
    """`score` that remembers the pairs, and ends like a killed program before its `fail_at`-th batch."""

    def one(rows):
        if fail_at is not None and len(seen) >= fail_at:
            raise KeyboardInterrupt
        seen.append([int(i) for i in np.ravel(rows.pair) if i >= 0])
        return score(rows)

    return one


def test_what_is_not_used_is_not_scored_until_it_is(tmp_path, mesh):
    path, seen = tmp_path / "reference_scores.npz", []
    used = np.array([True, False, True, False, False])
    first = load(path, mesh, used=lambda: used, score=counted(seen))
    np.testing.assert_array_equal(np.isnan(first["w"]), ~used)
    assert sorted(itertools.chain(*seen)) == [0, 2]
    seen.clear()
    whole = load(path, mesh, score=counted(seen))
    assert sorted(itertools.chain(*seen)) == [1, 3, 4]
    plain = load(tmp_path / "other.npz", mesh)
    for name in DIRECT_SCORES:
        np.testing.assert_array_equal(whole[name], plain[name])


def test_an_interrupted_attempt_is_gone_on_with(tmp_path, mesh, monkeypatch):
    monkeypatch.setattr(score_files, "PIECE_SECONDS", 0.0)
    path, seen, pairs = tmp_path / "reference_scores.npz", [], data(count=19)
    for batches in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            load(path, mesh, pairs, score=counted(seen, fail_at=batches))
        assert not path.exists()
        assert len(list(tmp_path.glob("*.piece-*"))) == batches
    scores = load(path, mesh, pairs, score=counted(seen))
    assert sorted(itertools.chain(*seen)) == list(range(19)), "each pair once"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    plain = load(tmp_path / "other.npz", mesh, pairs)
    for name in DIRECT_SCORES:
        np.testing.assert_array_equal(scores[name], plain[name])


def test_a_piece_cut_short_is_scored_again_and_what_others_wrote_stays(
    tmp_path, mesh, monkeypatch, capsys
):
    monkeypatch.setattr(score_files, "PIECE_SECONDS", 0.0)
    path, seen = tmp_path / "reference_scores.npz", []
    with pytest.raises(KeyboardInterrupt):
        load(path, mesh, score=counted(seen, fail_at=1))
    (piece,) = tmp_path.glob("*.piece-*")
    piece.write_bytes(piece.read_bytes()[:50])
    (tmp_path / ".left.part").write_bytes(b"")  # by a kill in the middle of a write

    def meanwhile(rows):
        """Another run that shares the folder finishes pair 4, which this one does not use."""
        if not path.exists():
            load(path, mesh, used=lambda: np.arange(5) == 4)
        return score(rows)

    found = load(path, mesh, score=meanwhile, used=lambda: np.arange(5) < 2)
    assert "cannot be read" in capsys.readouterr().out
    assert np.isnan(found["w"][2:]).all()
    assert np.flatnonzero(
        ~np.isnan(load(path, mesh, used=lambda: np.arange(5) < 1)["w"])
    ).tolist() == [0, 1, 4]


def test_adapters_and_how_it_is_computed_are_no_part_of_the_reference():
    adapted = dataclasses.replace(ARCHITECTURE, lora_rank=4, lora_targets=("query",), remat="full")
    plain = reference.fingerprint(PAIRS, WEIGHTS, ARCHITECTURE)
    assert reference.fingerprint(PAIRS, ({"lora": jnp.ones(3)}, WEIGHTS), adapted) == plain


@pytest.mark.parametrize(
    "change",
    [
        {"data": data("tldr")},
        {"data": data(count=4)},
        {"weights": WEIGHTS | {"a": WEIGHTS["a"].at[2, 1].add(1e-6)}},
        {"architecture": dataclasses.replace(ARCHITECTURE, dtype="bfloat16")},
    ],
    ids=["template", "pairs", "weights", "dtype"],
)
def test_a_stale_file_is_an_error_and_stays(tmp_path, mesh, change):
    path = tmp_path / "reference_scores.npz"
    load(path, mesh)
    content = path.read_bytes()
    with pytest.raises(UserError, match=r"reference_scores\.npz was scored with other"):
        load(path, mesh, score=never, **change)
    assert path.read_bytes() == content


@pytest.mark.parametrize("keep", [0, 100, -30])
def test_a_damaged_file_is_named(tmp_path, mesh, keep):
    path = tmp_path / "reference_scores.npz"
    load(path, mesh)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"reference_scores\.npz cannot be read.*delete it"):
        load(path, mesh, score=never)


def test_a_score_that_is_no_number_is_an_error_and_is_not_kept(tmp_path, mesh):
    path = tmp_path / "reference_scores.npz"

    def broken(rows):
        scores, pair = score(rows)
        return scores | {"l": jnp.where(pair == 3, jnp.nan, scores["l"])}, pair

    with pytest.raises(UserError, match="reference score 'l' of pair 3 is not finite"):
        load(path, mesh, score=broken)
    assert not path.exists()


def test_the_digest_sees_every_bit_and_no_sharding():
    plain = jax.random.normal(jax.random.key(0), (16, 24))
    digest = reference.weights_digest([plain])
    mesh = mesh_module.make(fsdp=4, tensor=2)
    placed = jax.device_put(plain, mesh_module.sharding(mesh, ("embed", "mlp")))
    assert reference.weights_digest([placed]) == digest
    others = [
        plain.at[5, 7].multiply(1 + 1e-6),
        plain.at[5, 7].multiply(-1),
        plain.at[jnp.array([2, 9])].set(plain[jnp.array([9, 2])]),  # two rows swapped
        plain.T.reshape(16, 24),
        plain.astype(jnp.bfloat16),
    ]
    digests = {reference.weights_digest([other]) for other in others}
    assert len(digests | {digest}) == len(others) + 1
