"""The program `train` as a user sees it: it learns, resumes, refuses, and stops with a reason."""

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from srpo_jax import config as config_module
from srpo_jax import objectives, train
from srpo_jax.data import records
from srpo_jax.data.records import Pair
from srpo_jax.data.tokenizer import ByteTokenizer
from srpo_jax.models import loading
from srpo_jax.prompts import Renderer
from srpo_jax.runtime import distributed, metrics, program
from srpo_jax.runtime import mesh as mesh_module
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError
from srpo_jax.training import pipeline
from srpo_jax.training.score_files import ScoreFiles
from srpo_jax.trees.order import EARLIER, RULE, Order
from tests import processes

pytestmark = pytest.mark.usefixtures("compiled_once")
ANSWERS = ["yes", "sure", "fine"]
make_mesh = mesh_module.make


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """One of the eight virtual devices: compiles fastest."""
    one = functools.partial(make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(mesh_module, "make", one)


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    pairs = [Pair(f"{i}?", ANSWERS[i % 3], "no way") for i in range(12)]
    records.write_pairs(path, pairs)
    return path


def settings(pairs: Path) -> ConfigDict:
    config = config_module.default()
    config.model.update({"source": "tiny", "dtype": "float32", "remat": "none"})
    config.data.update({"pairs": str(pairs), "template": "plain"})
    config.train.update({"steps": 10, "batch_size": 4, "checkpoint_every": 5})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 2})
    return config


def attempt(config: ConfigDict, workdir: Path) -> bool:
    """As the command line does it: the settings are checked, then the run is made."""
    return train.train(config_module.checked(config), workdir)


@pytest.fixture
def config(pairs_file):
    return settings(pairs_file)


def lines(workdir: Path) -> list[dict]:
    return metrics.read(workdir / "metrics.jsonl")


def weights(workdir: Path) -> dict[str, np.ndarray]:
    flat = nnx.to_flat_state(nnx.state(loading.load(str(workdir), dtype="float32")))
    return {".".join(map(str, path)): np.array(v.get_value()) for path, v in flat}


@contextlib.contextmanager
def at_step(number: int, action):
    """Runs action once the step has been taken and before its checkpoint is due."""
    asked = distributed.StopSignal.requested

    def requested(self, step):
        if step == number:
            action()
        return asked(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.StopSignal, "requested", requested)
        yield


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


class Killed(BaseException):
    pass


def die():
    raise Killed


def test_it_learns(config, tmp_path):
    config.train.update({"steps": 30, "checkpoint_every": 100})
    config.optimizer.learning_rate = 3e-3
    assert attempt(config, tmp_path)
    first, last = lines(tmp_path)[0], lines(tmp_path)[-1]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 31))
    assert first["loss"] == pytest.approx(0.75)  # all log-ratios are 0
    # Reference scores come from rows with other neighbours: sums differ in the last digit of float32.
    for name in ("margin", "log_ratio", "kl"):
        assert first[name] == pytest.approx(0, abs=1e-6)
    assert last["loss"] < 0.5 * first["loss"]
    assert last["accuracy"] == last["accuracy_improve"] == 1
    assert last["margin"] > 0.1
    assert (tmp_path / "checkpoints" / "30").is_dir()
    assert list((tmp_path / "tensorboard").iterdir())


@pytest.fixture(scope="module")
def whole(pairs_file, tmp_path_factory):
    """A run of 10 steps that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    config = settings(pairs_file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh_module, "make", functools.partial(make_mesh, devices=jax.devices()[:1]))
        assert attempt(config, workdir)
        return workdir, weights(workdir)


def same_losses(one: Path, other: Path, rtol: float = 0.0) -> None:
    a, b = ([(line["step"], line["loss"]) for line in lines(path)] for path in (one, other))
    np.testing.assert_allclose(a, b, rtol=rtol)


@pytest.fixture
def stopped(pairs_file, tmp_path_factory, tmp_path):
    """A copy of a run that was asked to stop at step 5, where no checkpoint was due."""
    made = tmp_path_factory.getbasetemp() / "stopped"
    if not made.exists():
        config = settings(pairs_file)
        config.train.checkpoint_every = 100
        with at_step(5, terminate):
            assert not attempt(config, made)
        assert [line["step"] for line in lines(made)] == [1, 2, 3, 4, 5]
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_a_run_that_is_stopped_goes_on_as_if_it_had_not_been(config, stopped, whole):
    assert attempt(config, stopped)
    workdir, expected = whole
    same_losses(stopped, workdir)
    for name, value in weights(stopped).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_run_that_is_killed_goes_on_from_its_checkpoint(config, tmp_path, whole):
    config.train.checkpoint_every = 3
    with at_step(5, die), pytest.raises(Killed):
        attempt(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]  # 4 was read only behind 5
    assert attempt(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    workdir, expected = whole
    same_losses(tmp_path, workdir)
    for name, value in weights(tmp_path).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


def test_a_workdir_that_is_moved_away_is_not_made_anew_and_loses_nothing(config, tmp_path, whole):
    workdir, aside = tmp_path / "run", tmp_path / "aside"

    def move_away():
        while not (workdir / "checkpoints" / "5").is_dir():
            time.sleep(0.01)
        workdir.rename(aside)

    said = r"run/checkpoints: this folder is gone, so step 10 is not saved: bring it back"
    with at_step(8, move_away), pytest.raises(UserError, match=said):
        attempt(config, workdir)
    assert not (workdir / "checkpoints").exists()
    shutil.rmtree(workdir, ignore_errors=True)
    aside.rename(workdir)
    assert attempt(config, workdir)
    same_losses(workdir, whole[0])


def test_a_workdir_that_cannot_be_written_is_a_sentence_and_loses_nothing(
    config, stopped, whole, capsys
):
    mount = lambda *how: (
        subprocess.run(["mount", *how, stopped], check=False, timeout=60).returncode
    )
    if mount("--bind", stopped):
        pytest.skip("only root may mount")
    try:
        assert not mount("-o", "remount,bind,ro")
        assert program._guarded(lambda _: attempt(config, stopped), []) == program.USER_ERROR
    finally:
        # Lazily: trees are mapped.
        subprocess.run(["umount", "--lazy", stopped], check=True, timeout=60)
    assert capsys.readouterr().err == (
        f"error: {stopped}/config.json: Read-only file system: put that right, and the same command goes "
        "on\n"
    )
    assert attempt(config, stopped)
    same_losses(stopped, whole[0])


SCORED = """
import sys
from pathlib import Path
import jax
from srpo_jax import config, train
from srpo_jax.runtime import mesh
from srpo_jax.training import score_files

make = mesh.make
mesh.make = lambda **sizes: make(**sizes, devices=jax.devices()[:1])
score_files.PIECE_SECONDS = 0.0  # what there is is written behind every batch
train.train(config.read(Path(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_kill_9_while_the_reference_is_scored_leaves_scores_to_go_on_with(
    config, tmp_path, monkeypatch
):
    """Rows of one pair each: in rows of others a score is rounded otherwise."""
    pairs = [Pair(f"{i}?", ANSWERS[i % 3], "no way") for i in range(400)]
    records.write_pairs(tmp_path / "pairs.jsonl", pairs)
    config.data.update({"pairs": str(tmp_path / "pairs.jsonl"), "pack": False})
    config.train.steps = 100
    config_module.save(config_module.checked(config), tmp_path / "settings.json")
    workdir = tmp_path / "killed"
    command = [sys.executable, "-c", SCORED, tmp_path / "settings.json", workdir]
    with processes.within(400, subprocess.Popen(command, stdout=subprocess.DEVNULL)) as scoring:
        while scoring.poll() is None and len(list(workdir.glob("*.piece-*.npz"))) < 3:
            time.sleep(0.005)
        scoring.kill()
    assert scoring.returncode == -signal.SIGKILL
    assert not (workdir / "reference_scores.npz").exists()
    scores, added, add = [], [], ScoreFiles.add
    monkeypatch.setattr(
        ScoreFiles, "add", lambda self, n, values: (added.append(len(n)), add(self, n, values))
    )
    for path in (workdir, tmp_path / "whole"):
        with at_step(1, terminate):
            assert not attempt(config, path)
        with np.load(path / "reference_scores.npz") as file:
            scores.append({name: file[name] for name in file})
    assert sum(added) <= 2 * 400 - 3 * 4, "those of three batches were there already"
    assert scores[0].keys() == scores[1].keys()
    for name, values in scores[0].items():
        np.testing.assert_array_equal(values, scores[1][name], err_msg=name)


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(config, stopped, whole, monkeypatch):
    config.mesh.update({"fsdp": 2, "tensor": 2})
    monkeypatch.setattr(
        mesh_module, "make", functools.partial(make_mesh, devices=jax.devices()[:4])
    )
    assert attempt(config, stopped)
    workdir, expected = whole
    same_losses(stopped, workdir, rtol=1e-4)  # float32 sums of another order, then Adam
    monkeypatch.setattr(
        mesh_module, "make", functools.partial(make_mesh, devices=jax.devices()[:1])
    )
    for name, value in weights(stopped).items():
        np.testing.assert_allclose(value, expected[name], atol=2e-4, err_msg=name)


@pytest.mark.parametrize("rule", [EARLIER, RULE])
def test_a_run_draws_in_the_order_that_it_was_begun_with(config, pairs_file, rule):
    config.data.pack, config.seed = False, 3
    renderer = Renderer("plain", ByteTokenizer())
    data = pipeline.prepare(records.read_pairs(pairs_file), renderer, ("w", "l"), max_length=512)
    mesh = mesh_module.make(devices=jax.devices()[:1])
    packing = train.pack(config_module.checked(config), data, mesh, [(0, 4)], rule)
    drawn = [i for step in range(7) for row in packing.batch(step).rows for i in row]
    assert drawn == Order(12, 3, rule).take(0, 28).tolist()


def test_a_finished_run_says_so(config, whole, capsys):
    workdir, _ = whole
    before = (workdir / "metrics.jsonl").read_text()
    assert attempt(config, workdir)
    said = capsys.readouterr().out
    assert "is finished: step 10 of 10" in said
    assert "template plain: each prompt as" in said
    assert "steps: 10 of 4 pairs, 3.3 times through the data" in said
    assert r"template plain: each prompt as '…\n\nSummary of this text:\n'" in said
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("train.steps", 9),
        ("objective.beta", 0.2),
        ("data.template", "tldr"),
        ("optimizer.learning_rate", 2e-3),
        ("lora.rank", 2),
    ],
)
def test_a_workdir_of_another_configuration_is_refused(config, whole, key, value):
    workdir, _ = whole
    content = {path: path.read_bytes() for path in workdir.glob("*.*")}
    config_module.update(config, {key: value}, "test")
    with pytest.raises(UserError, match=rf"holds a run with {key}=.*, now .*--workdir"):
        attempt(config, workdir)
    assert {path: path.read_bytes() for path in workdir.glob("*.*")} == content


def test_more_steps_under_another_schedule_must_be_asked_for(config, whole, tmp_path, capsys):
    workdir = shutil.copytree(whole[0], tmp_path / "run")
    config.train.steps = 12
    with pytest.raises(UserError, match=r"was 10 and is 12: .*=cosine the 10 steps .* --extend"):
        attempt(config, workdir)
    assert train.train(config_module.checked(config), workdir, extend=True)
    assert "12 steps in place of 10: step 11 has the learning rate" in capsys.readouterr().out
    assert [line["step"] for line in lines(workdir)] == list(range(1, 13))
    assert lines(workdir)[:10] == lines(whole[0])
    assert attempt(config, workdir)
    assert "is finished: step 12 of 12" in capsys.readouterr().out


def test_another_batch_size_must_be_asked_for_and_stays_with_the_run(
    config, stopped, tmp_path_factory, capsys
):
    """From step 5 on, also where it is killed and goes on without being asked again."""
    config.train.batch_size = 6
    with pytest.raises(UserError, match=r"batch_size was 4 and is 6: --change_batch .* step 5;"):
        attempt(config, stopped)
    other = shutil.copytree(stopped, tmp_path_factory.mktemp("other") / "run")
    assert train.train(config_module.checked(config), stopped, change_batch=True)
    assert "6 pairs in place of 4 behind step 5" in capsys.readouterr().out
    config.train.checkpoint_every = 7
    with at_step(9, die), pytest.raises(Killed):
        train.train(config_module.checked(config), other, change_batch=True)
    assert attempt(config, other)
    assert "resuming at step 7 of 10" in capsys.readouterr().out
    same_losses(stopped, other)
    expected = weights(stopped)
    for name, value in weights(other).items():
        np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.slow
def test_a_longer_run_of_constant_rate_is_the_run_it_would_have_been(config, tmp_path):
    """To the bit without a reference, whose scores are rounded otherwise in rows of other pairs."""
    config.optimizer.schedule = "constant"
    config.objective.name = "sft"
    for name, lengths in (("at once", [4]), ("grown", [2, 4])):
        for steps in lengths:
            config.train.steps = steps
            assert attempt(config, tmp_path / name)
    same_losses(tmp_path / "at once", tmp_path / "grown")
    expected = weights(tmp_path / "at once")
    for key, value in weights(tmp_path / "grown").items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


def test_other_pairs_or_another_tokenizer_are_refused(config, whole, tmp_path):
    workdir, _ = whole
    for name in ("config.json", "run.json"):
        (tmp_path / name).write_bytes((workdir / name).read_bytes())
    pairs = Path(config.data.pairs)
    content = pairs.read_text()
    try:
        pairs.write_text(content.replace('"label_prob": 1.0', '"label_prob": 0.5', 1))
        with pytest.raises(UserError, match="was begun with another data"):
            attempt(config, tmp_path)
    finally:
        pairs.write_text(content)
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"tokenizer": "0" * 64}))
    with pytest.raises(UserError, match=r"another tokenizer \(000000000000…"):
        attempt(config, tmp_path)


def test_stale_reference_scores_are_refused_and_kept(config, whole, tmp_path):
    workdir, _ = whole
    kept = (workdir / "reference_scores.npz").read_bytes()
    path = tmp_path / "reference_scores.npz"
    path.write_bytes(kept)
    config.seed = 1  # another random model: other weights
    with pytest.raises(UserError, match=r"reference_scores\.npz was scored with other"):
        attempt(config, tmp_path)
    assert path.read_bytes() == kept


def test_runs_that_share_a_folder_build_and_score_once(config, tmp_path, capsys):
    config.data.cache = str(tmp_path / "cache")
    config.train.update({"steps": 1, "checkpoint_every": 100})
    for beta in (0.1, 0.2):
        config.objective.beta = beta
        assert attempt(config, tmp_path / str(beta))
    said = capsys.readouterr().out
    assert said.count("trees: built") == 1
    assert said.count(f"pairs read from {config.data.cache}") == 1
    assert len(list((tmp_path / "cache").glob("reference_*.npz"))) == 1
    assert not list(tmp_path.glob("*/reference_scores.npz"))


@pytest.fixture
def trained_anew(whole, tmp_path):
    """A run, and what puts other weights in the place of its checkpoint."""
    source, other = tmp_path / "source", tmp_path / "other"
    shutil.copytree(whole[0], source)
    (source / "checkpoints" / "5").rename(other)

    def replace():
        shutil.rmtree(source / "checkpoints" / "10")
        other.rename(source / "checkpoints" / "10")

    return source, replace


def test_a_run_goes_on_with_the_reference_that_it_was_begun_with(config, trained_anew, tmp_path):
    """Where runs share a folder scores of the new one are not there, and would be computed."""
    source, replace = trained_anew
    config.model.source, config.data.cache = str(source), str(tmp_path / "cache")
    with at_step(2, terminate):
        assert not attempt(config, tmp_path / "run")
    replace()
    with pytest.raises(UserError, match=r"was begun with a reference .*WORKDIR@STEP"):
        attempt(config, tmp_path / "run")


@pytest.mark.slow
def test_adapters_go_on_upon_the_weights_that_they_were_begun_on(config, trained_anew, tmp_path):
    """No reference tells of it under SFT."""
    source, replace = trained_anew
    config.model.source, config.objective.name, config.lora.rank = str(source), "sft", 2
    with at_step(2, terminate):
        assert not attempt(config, tmp_path / "run")
    replace()
    with pytest.raises(UserError, match="was begun with weights of its reference, or"):
        attempt(config, tmp_path / "run")


def test_what_no_checkpoint_can_be_compared_by_is_said(config, tmp_path):
    config.train.keep_best = 1
    with pytest.raises(UserError, match=r"keep_best_by=held_out/loss, which nothing measures"):
        attempt(config, tmp_path)


def test_held_out_labels_have_log_odds_too(config, tmp_path):
    held = tmp_path / "held.jsonl"
    soft = tmp_path / "soft.jsonl"
    records.write_pairs(held, [Pair("a", "yes", "no")])
    records.write_pairs(soft, [Pair(f"{i}?", "yes", "no", 0.8) for i in range(8)])
    config.data.update({"pairs": str(soft), "held_out": str(held)})
    config.objective.update({"name": "copg", "label_smoothing": 0.0})
    config.train.update({"evaluate_every": 5, "evaluate_documents": 0})
    with pytest.raises(UserError, match="1 of 1 pairs have a label_prob of 0 or 1"):
        attempt(config, tmp_path / "run")


def test_a_loss_that_is_no_number_stops_the_run(config, tmp_path):
    config.optimizer.update({"learning_rate": 1e30, "warmup_steps": 0})
    config.train.checkpoint_every = 1
    said = r"(loss|grad_norm) is \w+ at step 2; the checkpoint of step 1 is kept"
    with pytest.raises(UserError, match=said):
        attempt(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1]
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.steps() == [1]
    assert all(np.isfinite(value).all() for value in weights(tmp_path).values())


QUICK = ("simpo", "sft")  # without a reference; SRPO trains in the tests above
OTHERS = [name for name in objectives.OBJECTIVES if name not in (*QUICK, "srpo")]


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_objective_trains(config, tmp_path, name):
    config.objective.update({"name": name, "beta": 0.5, "gamma": 0.5, "label_smoothing": 0.1})
    config.train.update({"steps": 2, "checkpoint_every": 100})
    assert attempt(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]
    for line in lines(tmp_path):
        numbers = {k: float(v) for k, v in line.items()}
        assert all(np.isfinite(v) for v in numbers.values()), numbers
    assert lines(tmp_path)[0]["grad_norm"] > 0  # a hinge may be content after one step
    assert (tmp_path / "reference_scores.npz").is_file() == objectives.get(name).needs_reference


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.steps", 0),
        ("train.batch_size", 0),
        ("train.accumulate", 0),
        ("train.accumulate", 5),
        ("train.log_every", 0),
        ("train.checkpoint_every", 0),
        ("train.keep_checkpoints", 0),
        ("optimizer.learning_rate", -1.0),
        ("optimizer.warmup_steps", -1),
        ("optimizer.b2", 1.0),
        ("optimizer.clip_norm", 0.0),
        ("data.row_length", -1),
        ("data.workers", -1),
        ("objective.name", "srpo2"),
        ("objective.beta", 0.0),
        ("objective.alpha", 2.0),
        ("optimizer.schedule", "linear"),
        ("lora.rank", -1),
        ("model.dtype", "half"),
        ("mesh.tensor", 3),
        ("train.router_loss", 0.1),  # of a model without experts
        ("model.source", "no such model"),
        ("data.template", "none"),
        ("data.pairs", "no such file"),
    ],
)
def test_a_setting_out_of_range_is_named(config, tmp_path, key, value):
    config_module.update(config, {key: value}, "test")
    with pytest.raises(UserError) as error:
        attempt(config, tmp_path / "run")
    said = str(error.value)
    assert key in said or str(value) in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()


def test_a_batch_must_fill_the_devices(config, tmp_path, monkeypatch):
    monkeypatch.setattr(mesh_module, "make", make_mesh)
    said = r"batch_size=4 pairs are fewer than .* = 8 rows, .*: make it 8 or more, or .*tensor=2$"
    with pytest.raises(UserError, match=said):
        attempt(config, tmp_path)
