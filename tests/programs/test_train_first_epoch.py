"""config.reference.when=first_epoch: the run is the one that scores its pairs before the first step."""

import contextlib
import functools
import io
import os
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from srpo_jax import config as config_module
from srpo_jax import train
from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.runtime import distributed, metrics
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.errors import UserError
from srpo_jax.training.first_epoch import FirstEpoch
from srpo_jax.training.reference import Reference

pytestmark = pytest.mark.usefixtures("compiled_once")
make_mesh = mesh_module.make


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    """13 pairs: the fourth batch of four has pairs of two epochs."""
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    records.write_pairs(path, [Pair(f"{i}?", ("yes", "sure")[i % 2], "no way") for i in range(13)])
    return path


def attempt(pairs: Path, workdir: Path, when: str = "first_epoch", devices: int = 1, **changes):
    config = config_module.default()
    config.model.update({"source": "tiny", "dtype": "float32", "remat": "none"})
    config.data.update({"pairs": str(pairs), "template": "plain"})
    config.train.update({"steps": 8, "batch_size": 4, "checkpoint_every": 100})
    config.optimizer.update({"learning_rate": 3e-3, "warmup_steps": 0, "schedule": "constant"})
    config.reference.when = when
    config_module.update(config, changes.pop("change", {}), "test")
    with pytest.MonkeyPatch.context() as patch:
        some = functools.partial(make_mesh, devices=jax.devices()[:devices])
        patch.setattr(mesh_module, "make", some)
        return train.train(config_module.checked(config), workdir)


def losses(workdir: Path) -> np.ndarray:
    return np.array(
        [(line["step"], line["loss"]) for line in metrics.read(workdir / "metrics.jsonl")]
    )


def scores(workdir: Path) -> dict[str, np.ndarray]:
    with np.load(workdir / "reference_scores.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def before(pairs_file, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("before")
    assert attempt(pairs_file, workdir, "before")
    return workdir


@pytest.fixture(scope="module")
def watched(pairs_file, tmp_path_factory):
    """A run with first_epoch that nothing interrupts: its folder, whether it had a copy of the weights
    behind each batch that it placed, and what it said."""
    copied, said, place = [], io.StringIO(), FirstEpoch.place

    def watch(self, batch):
        placed = place(self, batch)
        copied.append(self.policy is not None)
        return placed

    workdir = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(FirstEpoch, "place", watch)
        assert attempt(pairs_file, workdir)
    return workdir, copied, said.getvalue()


@pytest.fixture(scope="module")
def whole(watched):
    return watched[0]


def assert_same_run(one: Path, other: Path) -> None:
    """Scores come from rows with other neighbours: sums differ in float32's last digits, then Adam."""
    np.testing.assert_allclose(losses(one), losses(other), rtol=1e-4)
    assert losses(one)[-1, 1] < 0.9 * losses(one)[0, 1], (
        "it learns, so that a moved reference shows"
    )
    found, expected = scores(one), scores(other)
    assert found.keys() == expected.keys()
    assert str(found.pop("fingerprint")) == str(expected.pop("fingerprint"))
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, err_msg=name)


def test_the_losses_are_those_of_a_run_that_scores_before(before, whole):
    assert_same_run(whole, before)
    assert not list(whole.glob("*.piece-*"))


@pytest.mark.slow
def test_on_eight_devices_too(pairs_file, tmp_path, before):
    mesh = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
    assert attempt(pairs_file, tmp_path, devices=8, change=mesh)
    assert_same_run(tmp_path, before)


@pytest.mark.slow
def test_of_a_model_with_adapters_the_reference_is_the_base(pairs_file, tmp_path):
    change = {"lora.rank": 4, "optimizer.learning_rate": 0.005, "train.accumulate": 2}
    for when in ("before", "first_epoch"):
        assert attempt(pairs_file, tmp_path / when, when, change=change)
    assert_same_run(tmp_path / "first_epoch", tmp_path / "before")


@pytest.mark.slow
def test_a_run_that_is_stopped_in_the_first_epoch_goes_on_as_if_it_had_not_been(
    pairs_file, tmp_path, whole, monkeypatch, capsys
):
    asked = distributed.StopSignal.requested

    def requested(self, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return asked(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(distributed.StopSignal, "requested", requested)
        assert not attempt(pairs_file, tmp_path)
    assert len(list(tmp_path.glob("reference_scores.piece-*"))) == 1
    other = tmp_path.with_name("other")
    shutil.copytree(tmp_path, other)
    capsys.readouterr()
    assert attempt(pairs_file, tmp_path)
    assert "5 of 13 pairs get theirs in the steps" in capsys.readouterr().out
    np.testing.assert_array_equal(losses(tmp_path), losses(whole))
    for name, values in scores(whole).items():
        np.testing.assert_array_equal(scores(tmp_path)[name], values)
    # The same files serve a run that scores what is left before it goes on, on other devices.
    assert attempt(pairs_file, other, "before", devices=2)
    assert_same_run(other, whole)


def test_the_copy_of_the_weights_goes_when_all_pairs_have_scores(watched):
    _, copied, said = watched
    assert copied == [True] * 4 + [False] * 4
    assert "the copy advantage is not known before" in said
    assert said.index("all pairs of the run have theirs") < said.index("copy advantage: shown a")


def test_a_score_that_is_no_number_is_an_error(pairs_file, tmp_path, monkeypatch):
    score = Reference.score

    def spoiled(self, rows):
        scores, pair = score(self, rows)
        return {name: values * np.nan for name, values in scores.items()}, pair

    monkeypatch.setattr(Reference, "score", spoiled)
    with pytest.raises(UserError, match=r"the reference score '.*' of pair .* is not finite"):
        attempt(pairs_file, tmp_path)
    assert not list(tmp_path.glob("reference_scores*"))
