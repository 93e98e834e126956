import sqlite3
from pathlib import Path

import numpy as np
import pytest

from srpo_jax.judges.llm.store import Record, Store
from srpo_jax.revision import samples
from srpo_jax.runtime import files, metrics, storage
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import tree_files
from tests import objects

BOTH = ["gs://bucket/run", "s3://bucket/run"]


@pytest.fixture
def store():
    with objects.serve():
        yield objects.Objects.held


@pytest.fixture(params=["here", *BOTH])
def directory(request, store, tmp_path):
    return storage.place(tmp_path if request.param == "here" else request.param)


def test_home_is_not_a_folder_called_tilde(monkeypatch, tmp_path):
    """Of --workdir=~/run a shell makes nothing, and the run lay in a folder `~` of the current one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (
        storage.folder("~/run", "--workdir")
        == storage.here("~/run", "--output")
        == tmp_path / "run"
    )
    assert storage.place("a~/run") == Path("a~/run")


def test_where_nothing_can_be_written_is_said_before_it_is_tried(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "new" / "deeper", tmp_path / "file"):
        storage.check_writable(path, "--output")
    for below in ("x", "x/y"):
        with pytest.raises(UserError, match=rf"--output=.*/file/{below}: .*/file is no folder"):
            storage.check_writable(tmp_path / "file" / below, "--output")
    monkeypatch.setattr(storage.os, "access", lambda *_: False)  # who is root may write everywhere
    for path in (tmp_path / "new", tmp_path / "file"):
        with pytest.raises(UserError, match=f"nothing may be written in {tmp_path}: give"):
            storage.check_writable(path, "--output")


def test_small_files_appear_whole(directory):
    path = directory / "a" / "config.json"
    files.write_json(path, {"a": 1})
    failing = files.whole(path)
    failing.__enter__().write_text("half")
    assert not failing.gen.close()  # as a failure in the block does
    assert files.read_json(path, "mend it") == {"a": 1}
    assert [p.name for p in storage.below(directory)] == ["config.json"]
    assert storage.size(path) == len('{\n  "a": 1\n}\n')


def test_lines_and_records_are_added(directory, monkeypatch):
    with storage.Lines(directory / "log") as log:
        log.write("one\n")
    with storage.Lines(directory / "log") as log:
        log.write("two\n")
        log.flush()
        assert (directory / "log").read_text() == "one\ntwo\n"
        monkeypatch.setattr(storage, "SECONDS", 0.0)
        log.write("three\n")
        assert (directory / "log").read_text() == "one\ntwo\nthree\n"
    path = directory / "samples.jsonl"
    assert samples.resume(path, {"seed": 1}, lambda _: True) == []
    samples.append(path, [{"id": "a"}])
    assert samples.resume(path, {"seed": 1}, lambda _: True) == [{"id": "a"}]
    assert samples.resume(path, {"seed": 2}, lambda _: True) == []
    assert samples.resume(path, {"seed": 1}, lambda _: True) == [{"id": "a"}]


def test_metrics_go_on_behind_the_step_that_was_kept(directory):
    for resume, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with metrics.Metrics(directory, resume=resume) as log:
            for step in steps:
                log.write(step, {"loss": resume})
    lines = metrics.read(f"{directory}/metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0), (2, 0), (3, 2), (4, 2)]
    assert len(list((directory / "tensorboard").iterdir())) == 2


def test_trees_are_built_and_read(directory):
    from srpo_jax.trees import prefix_tree

    tree = prefix_tree.build([((1, 2), (3,)), ((1, 2), (4, 5))])
    build = lambda process, processes: iter([(0, 1.0, tree), (1, 0.5, tree)])
    never = lambda process, processes: pytest.fail("they are there")
    first = tree_files.open_or_build(directory / "trees" / "key", build, lambda: 2)
    again = tree_files.open_or_build(directory / "trees" / "key", never, lambda: 2)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert first.trees.digest() == again.trees.digest()
    assert not [p for p in (directory / "trees").iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("address", BOTH)
def test_answers_that_were_paid_for_reach_the_store(store, address):
    path = storage.place(address) / "judge.sqlite"
    Store(path).put("key", "judge", Record(1.0, answer="A"))
    kept = Store(path)
    assert kept.get(["key"]) == {}  # not yet sent
    kept.put("key", "judge", Record(0.0, answer="B"))
    kept.flush()
    assert Store(path).get(["key"])["key"].answer == "B"
    assert (
        sqlite3.connect(storage.local_copy(path)).execute("SELECT verdict FROM answers").fetchone()
    )


def test_what_cannot_be_used_is_one_sentence(store, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    storage.place("s3://bucket/file").write_text("")
    for path in (f"{tmp_path}/file", "s3://bucket/file"):
        with pytest.raises(UserError, match=r"^--workdir=.*/file is a file: give a folder$"):
            storage.folder(path, "--workdir")
    with pytest.raises(UserError, match="gs://, s3:// can be used, or a local folder"):
        storage.folder("hdfs://host/run", "--workdir")
    with pytest.raises(UserError, match="--output=gs://bucket/x: this must be a path of this"):
        storage.here("gs://bucket/x", "--output")

    def denied(self, path, **_):
        raise PermissionError("403 Forbidden: no right to list\nmore")

    monkeypatch.setattr(objects.Objects, "info", denied)
    with pytest.raises(UserError, match=r"cannot be used: 403 Forbidden: no right to list$"):
        storage.folder("gs://bucket/run", "--workdir")


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing(name):
        raise ImportError("no s3fs")

    monkeypatch.setattr(storage.fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=r"needs the package s3fs: pip install 'srpo_jax\[s3\]'"):
        storage.place("s3://bucket/run")
