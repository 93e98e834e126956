import json
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from srpo_jax.runtime import metrics
from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics, Progress


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def losses(path: Path) -> list[tuple[int, Any]]:
    return [(line["step"], line["loss"]) for line in metrics.read(path / "metrics.jsonl")]


def scalars(path: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((path / "tensorboard").iterdir())]


def test_a_line_is_on_disk_when_write_returns(tmp_path: Path) -> None:
    with Metrics(tmp_path / "run") as log:
        log.write(1, {"loss": jnp.float32(0.5), "accuracy": np.float64(1)})
        line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert line.pop("time") > 1.7e9
    assert line == {"step": 1, "loss": 0.5, "accuracy": 1.0}
    assert any(b"accuracy" in data for data in scalars(tmp_path / "run"))


def test_resume_drops_later_lines(tmp_path: Path) -> None:
    with Metrics(tmp_path) as log:
        for step in range(1, 6):
            log.write(step, {"loss": step})
    with Metrics(tmp_path, resume=3) as log:
        log.write(4, {"loss": 40})
    assert losses(tmp_path) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]


def test_a_new_run_drops_all(tmp_path: Path) -> None:
    with Metrics(tmp_path) as log:
        log.write(1, {"loss": 1})
    with Metrics(tmp_path):
        assert losses(tmp_path) == []


def test_a_line_cut_off_is_left_out(tmp_path: Path) -> None:
    with Metrics(tmp_path) as log:
        log.write(1, {"loss": 1})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    with Metrics(tmp_path, resume=2) as log:
        log.write(3, {"loss": 3})
    assert losses(tmp_path) == [(1, 1.0), (3, 3.0)]


@pytest.mark.parametrize("broken", [b'{"loss": 1}', b"\xff\xfe", b"\0\0"])
def test_a_broken_line_is_named(tmp_path: Path, broken: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + broken + b"\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl:2"):
        metrics.read(path)


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    with Metrics(tmp_path) as log:
        log.write(1, {"loss": math.nan, "norm": -math.inf})
    (line,) = metrics.read(tmp_path / "metrics.jsonl")
    assert math.isnan(float(line["loss"]))
    assert float(line["norm"]) == -math.inf


def test_only_the_first_process_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "is_main", lambda: False)
    with Metrics(tmp_path) as log, Progress("train", 1) as progress:
        log.write(1, {"loss": 1})
        metrics.status("hello")
        progress.advance()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_status_is_one_line_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold] " + "word " * 40 + "end"
    metrics.status(text)
    assert capsys.readouterr().out == text + "\n"


def test_progress_prints_seldom_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("train", total=100, unit="tokens", interval=5, clock=clock) as progress:
        for _ in range(99):
            clock.now += 0.5
            progress.advance(work=50, note="loss 0.5")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "train: 10/100 · 100 tokens/s · elapsed 0:05 · ETA 0:45 · loss 0.5"
    assert lines[-1] == "train: 99/100 · 100 tokens/s · elapsed 0:50 · ETA 0:00 · loss 0.5"


def test_progress_forgets_the_first_round(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with Progress("train", total=13, done=10, clock=clock) as progress:
        clock.now += 600
        progress.advance()
        clock.now += 7
        progress.advance()
    first, second = capsys.readouterr().out.splitlines()
    assert first == "train: 11/13 · 0.00167 steps/s · elapsed 10:00 · ETA 20:00"
    assert second == "train: 12/13 · 0.143 steps/s · elapsed 10:07 · ETA 0:07"


def test_progress_is_live_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    clock = Clock()
    with Progress("train", total=2, clock=clock) as progress:
        clock.now += 1
        progress.advance()
        metrics.status("between")
        clock.now += 1
        progress.advance()
    out = capsys.readouterr().out
    assert "between\n" in out
    assert "2/2 · 1 steps/s" in out
    assert "\x1b[" in out
