"""Trees are built once, and read again as they were; what they depend on decides where they are."""

import dataclasses
import pickle
import shutil

import numpy as np
import pytest

from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.objectives.losses import DIRECT_SCORES, IMPROVE_SCORES
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import distributed
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline, tree_files
from srpo_jax.training.pipeline import Limits

NAMES = DIRECT_SCORES + IMPROVE_SCORES
PAIRS = [Pair(f"text {i}" * (i + 1), "yes" * (i + 1), "no", i / 9, i + 1) for i in range(9)]
LIMITS = Limits(512)


def prepared(folder, pairs=PAIRS, template="plain", origin="a", names=NAMES, limits=LIMITS):
    renderer = Renderer(template, ByteTokenizer())
    said = origin if callable(origin) else lambda: origin
    return tree_files.prepare(folder, said, lambda: pairs, renderer, names, limits, "file")


def in_memory(**settings):
    renderer = Renderer("plain", ByteTokenizer())
    return pipeline.prepare(PAIRS, renderer, NAMES, **({"max_length": 512} | settings))


def never():
    raise AssertionError("the pairs are read again")


def assert_same(one, other):
    assert one.names == other.names
    assert one.left_out == other.left_out
    assert one.fingerprint == other.fingerprint
    np.testing.assert_array_equal(one.label_prob, other.label_prob)
    for name in ("slots", "targets", "lengths", "depths"):
        np.testing.assert_array_equal(getattr(one.trees, name), getattr(other.trees, name), name)
    for mine, its in zip(one.trees, other.trees, strict=True):
        for field in dataclasses.fields(mine):
            np.testing.assert_array_equal(getattr(mine, field.name), getattr(its, field.name))


def by_processes(monkeypatch, folder, count, **settings):
    """What `count` processes build together: here they write one after the other, and process 0 reads."""

    def everywhere(work):
        for process in range(count if work.__name__ == "write" else 1):
            patch.setattr(tree_files.jax, "process_index", lambda process=process: process)
            work()
        patch.setattr(tree_files.jax, "process_index", lambda: 0)

    with monkeypatch.context() as patch:
        patch.setattr(tree_files.jax, "process_count", lambda: count)
        patch.setattr(distributed, "from_main", lambda work: work())
        patch.setattr(distributed, "everywhere", everywhere)
        return prepared(folder, **settings)


def test_a_second_start_reads_what_the_first_one_built(tmp_path):
    assert_same(prepared(tmp_path), in_memory())
    again = tree_files.prepare(
        tmp_path, lambda: "a", never, Renderer("plain", ByteTokenizer()), NAMES, LIMITS, "file"
    )
    assert_same(again, in_memory())
    assert isinstance(again.trees.tokens, np.memmap)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_what_several_processes_built_is_what_one_would_have(tmp_path, monkeypatch, count):
    assert_same(by_processes(monkeypatch, tmp_path, count), in_memory())
    assert_same(prepared(tmp_path, pairs=None), in_memory())  # and one process reads it


def test_a_host_that_reads_other_pairs_than_the_first_is_named(tmp_path, monkeypatch):
    """A stale copy on its disk: half of the trees would be of other pairs than was asked for."""
    own = lambda: str(tree_files.jax.process_index() == 2)
    with pytest.raises(UserError, match="file: process 2 reads other pairs there than process 0"):
        by_processes(monkeypatch, tmp_path, 3, origin=own)


def test_dropped_pairs_are_counted_and_keep_the_others_in_order(tmp_path, monkeypatch):
    drop = {"max_length": 80, "overlong": "drop"}
    want = in_memory(**drop)
    assert 0 < want.left_out.long < 9
    got = by_processes(monkeypatch, tmp_path, 2, limits=Limits(**drop))
    assert_same(got, want)
    assert_same(prepared(tmp_path, pairs=None, limits=Limits(**drop)), want)


def test_refused_pairs_are_counted_and_the_first_is_named_at_every_start(tmp_path, monkeypatch):
    pairs = [*PAIRS[:3], Pair("x\U0010ff00", "y", "z", 1.0, 4), *PAIRS[4:]]
    given = {"template": "chat", "limits": Limits(2000, refused="drop")}
    built = by_processes(monkeypatch, tmp_path, 2, pairs=pairs, **given)
    assert (len(built), *built.left_out[:2]) == (8, 0, 1)
    assert built.left_out.first.startswith("file:4: a message holds a private-use character")
    assert_same(prepared(tmp_path, pairs=None, **given), built)


@pytest.mark.parametrize(
    "changed",
    [
        {"origin": "b"},
        {"template": "tldr"},
        {"names": DIRECT_SCORES},
        {"limits": Limits(500)},
        {"limits": Limits(512, row_length=2000)},
    ],
)
def test_whatever_trees_depend_on_builds_others(tmp_path, changed):
    prepared(tmp_path)
    prepared(tmp_path, **changed)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_pair_too_long_leaves_nothing_that_could_be_taken_for_whole(tmp_path):
    with pytest.raises(UserError, match=r"file:\d: this pair needs"):
        prepared(tmp_path, limits=Limits(100))
    assert not list(tmp_path.iterdir())


def test_none_that_fits_is_said(tmp_path):
    for _ in range(2):
        with pytest.raises(UserError, match="none of 9 pairs fits"):
            prepared(tmp_path, limits=Limits(512, 3, "drop"))


@pytest.mark.parametrize("damage", ["cut", "gone", "no json"])
def test_damaged_trees_are_built_anew_and_it_is_said(tmp_path, capsys, damage):
    prepared(tmp_path)
    (manifest,) = tmp_path.glob("*/*.json")
    tokens = manifest.with_suffix(".tokens")
    if damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-4])
    elif damage == "gone":
        tokens.unlink()
    else:
        manifest.write_text("{")
    capsys.readouterr()
    assert_same(prepared(tmp_path), in_memory())
    assert f"{manifest.parent}: these trees are not whole" in capsys.readouterr().out
    assert_same(prepared(tmp_path, pairs=None), in_memory())


def test_runs_that_build_the_same_at_once_do_not_disturb_each_other(tmp_path, monkeypatch):
    build, others = tree_files.built, []

    def meanwhile(*arguments):
        for number, one in enumerate(build(*arguments)):
            if number == 4 and not others:
                others.append(None)
                others.append(prepared(tmp_path))
            yield one

    monkeypatch.setattr(tree_files, "built", meanwhile)
    assert_same(prepared(tmp_path), in_memory())
    assert_same(others[1], in_memory())
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_build_left_goes_when_it_is_old(tmp_path, monkeypatch):
    prepared(tmp_path)
    (folder,) = tmp_path.iterdir()
    left = tmp_path / f".{folder.name}.building-dead"
    folder.rename(left)
    prepared(tmp_path)
    assert left.is_dir(), "it may still be written to"
    shutil.rmtree(folder)
    monkeypatch.setattr(tree_files, "ABANDONED", -1.0)
    prepared(tmp_path)
    assert list(tmp_path.iterdir()) == [folder]


def test_a_folder_that_is_not_shared_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(tree_files, "PATIENCE", 1)
    write = tree_files._write

    def elsewhere(folder, name, *arguments):
        write(tmp_path / name if name.startswith("1") else folder, name, *arguments)

    monkeypatch.setattr(tree_files, "_write", elsewhere)
    with pytest.raises(UserError, match="must be a folder that all of them share"):
        by_processes(monkeypatch, tmp_path / "cache", 2)


def test_a_worker_gets_the_files_name_and_not_its_content(tmp_path):
    big = prepared(tmp_path, pairs=PAIRS * 200)
    sent = pickle.dumps(big.trees)
    assert len(sent) < big.trees.tokens.nbytes + 100 * len(big)
    assert b"tokens" in sent
    np.testing.assert_array_equal(pickle.loads(sent).tokens, big.trees.tokens)
