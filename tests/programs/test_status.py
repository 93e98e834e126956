import json
import os
import subprocess
import sys

import numpy as np
import pytest

from srpo_jax import config as config_module
from srpo_jax import status
from srpo_jax.runtime.checkpoints import Checkpoints
from srpo_jax.runtime.errors import UserError

BEGUN = 1_700_000_000.0


def line(step: int, seconds: float, **values) -> str:
    speed = {"step_seconds": 2.0, "tokens_per_second": 1234.5, "data_wait": 0.1}
    own = {"step": step, "time": BEGUN + seconds, "loss": 1 / step, "compile_seconds": 0.0}
    return json.dumps(own | speed | values) + "\n"


@pytest.fixture
def workdir(tmp_path):
    config = config_module.default()
    config.train.steps = 100
    config.data.pairs = "pairs.jsonl"
    config.model.source = "tiny"
    config_module.save(config_module.checked(config), tmp_path / "config.json")
    return tmp_path


def test_a_run_that_has_not_begun(workdir):
    first, step, checkpoints = status.standing(workdir, BEGUN)
    assert first.endswith("srpo of tiny on pairs.jsonl")
    assert (step, checkpoints) == ("step: none yet of 100", "checkpoints: none yet")


def test_where_a_run_stands_and_where_its_time_went(workdir):
    lines = [
        line(10, 0, start_seconds=30.0),
        line(20, 23, save_seconds=3.0),
        json.dumps({"step": 20, "time": BEGUN + 26, "held_out/seconds": 3.0}) + "\n",
        line(40, 100, compile_seconds=15.0, start_seconds=25.0),
    ]
    # 40 steps of 2 s, a tenth of it waiting for data, in 130 s. Of 30 s before the first line 20 were
    # steps; behind step 20 it was killed, and of 77 s 40 were steps and 15 compiling.
    (workdir / "metrics.jsonl").write_text("".join(lines))
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        for step in (20, 40):
            checkpoints.save(step, {"x": np.zeros(2)})
    _, *said = status.standing(workdir, BEGUN + 130)
    assert said == [
        "step: 40 of 100 (40%), loss 0.0250, 0:00:30 ago",
        "speed: 2 s a step, 1,234 tokens/s, 0:02:00 left at this speed",
        "checkpoints: 40, 20",
        "goodput: 55% of 0:02:10 (lost: starts and restarts 0:00:32, compiling 0:00:15, saving 0:00:03, "
        "evaluating 0:00:03, waiting for data 0:00:08)",
    ]


def test_one_long_wait_for_data_is_no_part_of_the_steps(workdir):
    """10 steps of 2 s and a wait of 100 s: of both a sixth was counted, as the median step had no wait."""
    slow = line(20, 123, interval_seconds=120.0, data_wait=100 / 120)
    (workdir / "metrics.jsonl").write_text(line(10, 0, start_seconds=30.0) + slow)
    goodput = next(one for one in status.standing(workdir, BEGUN) if one.startswith("goodput"))
    assert goodput.startswith("goodput: 25% of 0:02:33 (lost: starts and restarts 0:00:10")
    assert goodput.endswith("waiting for data 0:01:42)")


def test_what_went_wrong_is_named(workdir):
    (workdir / "metrics.jsonl").write_text(line(1, 0) + line(2, 2, loss="nan"))
    (workdir / "checkpoints" / "2.damaged").mkdir(parents=True)
    problems = [one for one in status.standing(workdir, BEGUN + 600) if one.startswith("problem: ")]
    assert problems == [
        "problem: the loss of step 2 is no number",
        "problem: the checkpoint of step 2 was damaged",
        "problem: no step for 0:09:58: it has stopped, or waits; the same command goes on",
    ]


def test_a_recipe_is_told_stage_by_stage(workdir, tmp_path_factory):
    whole = tmp_path_factory.mktemp("recipe")
    names = [("golds", "pairs"), ("sft", "train"), ("report", "evaluate")]
    stages = [{"name": name, "program": program} for name, program in names]
    (whole / "recipe.json").write_text(json.dumps({"stages": stages}))
    (whole / "golds").mkdir()
    (whole / "golds" / "finished.json").write_text(json.dumps({"program": "pairs"}))
    (workdir / "metrics.jsonl").write_text(line(40, 0))
    workdir.rename(whole / "sft")
    said = list(status.standing(whole, BEGUN + 30))
    assert said[:3] == [
        f"{whole}: a recipe, 1 of 3 stages finished",
        "1. golds (pairs): finished",
        "2. sft (train): begun",
    ]
    assert "   step: 40 of 100 (40%), loss 0.0250, 0:00:30 ago" in said
    assert said[-1] == "3. report (evaluate): not begun"
    (whole / "recipe.json").unlink()  # of an earlier version
    assert list(status.standing(whole, BEGUN)) == [
        f"{whole}: a recipe, 1 of 1 stages finished",
        "1. golds (pairs): finished",
    ]


def test_pairs_and_an_evaluation_are_told(tmp_path):
    def lines(name: str, count: int) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n" * count)

    lines("made.jsonl", 7)
    lines("made.jsonl.samples", 5)
    lines("made.jsonl.settings", 1)
    lines("other.jsonl.samples", 3)
    lines("documents/news.jsonl", 1 + 8)
    lines("samples/srpo-news.jsonl", 1 + 6)
    lines("samples/other-olds.jsonl", 1 + 8)
    lines("report/report.html", 1)
    lines("verdicts/short/judge.json", 0)
    (tmp_path / "verdicts" / "short" / "judge.json").write_text('{"name": "shorter"}')
    assert list(status.standing(tmp_path, BEGUN)) == [
        f"{tmp_path}/made.jsonl: 7 pairs",
        f"{tmp_path}/other.jsonl: 2 documents sampled, no pairs yet",
        "documents: 8 of news",
        "written: 6 of 8 by srpo",
        "judged by shorter",
        f"report: {tmp_path}/report/report.html",
    ]


def test_a_folder_of_something_else_is_called_so(tmp_path):
    for path, said in (
        (tmp_path / "none", "there is no folder"),
        (tmp_path, "holds no run, no rec"),
    ):
        with pytest.raises(UserError, match=said):
            list(status.standing(path, BEGUN))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="holds a model"):
        list(status.standing(tmp_path, BEGUN))
    (tmp_path / "config.json").unlink()
    (tmp_path / "compiled").mkdir()
    assert "something was started here" in next(status.standing(tmp_path, BEGUN))


def test_a_run_of_train_online_is_told_as_such(workdir):
    config = config_module.default()
    config.train.steps, config.model.source = 8, "tiny"
    config.online.objective, config.online.documents = "ppo", "documents.jsonl"
    config_module.save(config_module.checked(config), workdir / "config.json")
    (workdir / "run.json").write_text(json.dumps({"tokenizer": "0", "documents": "1"}))
    first, *said = status.standing(workdir, BEGUN)
    assert first.endswith("ppo of tiny on documents.jsonl")
    assert said == ["round: none yet of 8", "checkpoints: none yet"]
    spent = {"seconds_write": 3.0, "seconds_reward": 0.5, "seconds_learn": 1.5}
    rounds = [
        {"step": i, "time": BEGUN + 5 * i, "reward": 0.25, "loss": 1.0} | spent for i in (1, 2)
    ]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rounds))
    _, *said = status.standing(workdir, BEGUN + 40)
    assert said == [
        "round: 2 of 8 (25%), reward 0.2500, 0:00:30 ago",
        "speed: 5 s a round, 0:00:30 left at this speed",
        "checkpoints: none yet",
    ]


def test_the_command_names_a_folder_without_a_run(tmp_path):
    command = [sys.executable, "-m", "srpo_jax.status", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ), timeout=120
    )
    assert done.returncode == 2
    assert done.stderr == (
        f"error: {tmp_path} holds no run, no recipe, no pairs and no evaluation\n"
    )
