"""Writers, with stand-ins for the packages that are not installed."""

import math
import sys
import types
from typing import Any

import pytest

from srpo_jax.runtime.errors import UserError
from srpo_jax.runtime.metrics import Metrics


class Service:
    """What was asked of a package's functions, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.active: Any = None

    def __getattr__(self, name: str) -> Any:
        def call(*values: Any, **named: Any) -> Any:
            self.calls.append((name, (*values, named)))
            if name == "start_run":
                self.active = types.SimpleNamespace(info=types.SimpleNamespace(run_id="run 7"))
                return self.active
            if name == "active_run":
                return self.active
            if name == "end_run":
                self.active = None
            return self

        return call

    def asked(self, name: str) -> list[Any]:
        return [given for called, given in self.calls if called == name]


def two_attempts(workdir, name):
    for resume, step in ((0, 1), (1, 2)):
        with Metrics(workdir, resume, (name,), "mine") as log:
            log.write(step, {"loss": 0.5, "kl": math.nan})


def test_wandb_goes_on_with_its_run(monkeypatch, tmp_path):
    wandb = Service()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    two_attempts(tmp_path / "one", "wandb")
    (first,), (second,) = wandb.asked("init")
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("mine", "one", "allow")
    logged = wandb.asked("log")
    assert [named for _, named in logged] == [{"step": 1}, {"step": 2}]
    assert logged[0][0]["loss"] == 0.5
    assert len(wandb.asked("finish")) == 2


def test_mlflow_goes_on_with_its_run(monkeypatch, tmp_path):
    mlflow = Service()
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    two_attempts(tmp_path / "one", "mlflow")
    assert mlflow.asked("set_experiment") == [("mine", {})] * 2
    assert mlflow.asked("start_run") == [({"run_name": "one"},), ({"run_id": "run 7"},)]
    assert mlflow.asked("log_metrics") == [({"loss": 0.5}, {"step": n}) for n in (1, 2)]
    assert len(mlflow.asked("end_run")) == 2


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"writers has 'wandb', .* pip install wandb"):
        Metrics(tmp_path, names=("wandb",))


def test_no_writer_is_needed(tmp_path):
    with Metrics(tmp_path, names=()) as log:
        log.write(1, {"loss": 1.0})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
