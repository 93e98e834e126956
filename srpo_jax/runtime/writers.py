"""Where a run's numbers go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

A writer takes the numbers of a step, in process 0. Another one is a class with these two methods and a line
in `WRITERS`. What an attempt wrote behind its last checkpoint is written again by the next one.
"""

import contextlib
import importlib
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from srpo_jax.runtime import files, storage
from srpo_jax.runtime.errors import UserError


class Writer(Protocol):
    """One place that numbers go to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a step; not all are finite."""

    def close(self) -> None:
        """Nothing is written any more; what was written is there when this returns."""


class TensorBoard:
    """WORKDIR/tensorboard. Of a resumed run the later steps of the attempt before are hidden."""

    def __init__(self, workdir: Path, project: str, resume: int) -> None:
        # Not before it is asked for: where torch is installed it imports that, which takes seconds.
        tensorboard = importlib.import_module("tensorboardX")
        self._stack = contextlib.ExitStack()
        # tensorboardX writes to this machine; a store gets its files at `close`.
        folder = self._stack.enter_context(storage.staged(workdir / "tensorboard"))
        later = resume + 1 if resume else 0
        self._board = tensorboard.SummaryWriter(
            str(folder), purge_step=later, filename_suffix=f".{resume}"
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, number in values.items():
            self._board.add_scalar(name, number, global_step=step)

    def close(self) -> None:
        self._board.close()
        self._stack.close()


class WeightsAndBiases:
    """A run of `wandb`, which a resumed run goes on with; its account and address are wandb's own business.

    project: of wandb. The run is named after the workdir.
    """

    def __init__(self, workdir: Path, project: str, resume: int) -> None:
        wandb = _package("wandb")
        name = _kept(workdir, "wandb", lambda: uuid.uuid4().hex)
        self._run = wandb.init(project=project, name=workdir.name, id=name, resume="allow")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of `mlflow`, which a resumed run goes on with; MLFLOW_TRACKING_URI says where.

    project: the experiment. Numbers that are not finite are left out, as MLflow's stores refuse some.
    """

    def __init__(self, workdir: Path, project: str, resume: int) -> None:
        self._mlflow = _package("mlflow")
        self._mlflow.set_experiment(project)
        begin = lambda: self._mlflow.start_run(run_name=workdir.name).info.run_id
        name = _kept(workdir, "mlflow", begin)
        if self._mlflow.active_run() is None:
            self._mlflow.start_run(run_id=name)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: number for name, number in values.items() if math.isfinite(number)}
        self._mlflow.log_metrics(finite, step=step)

    def close(self) -> None:
        self._mlflow.end_run()


WRITERS: dict[str, Callable[[Path, str, int], Writer]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
}


def open_all(names: Sequence[str], workdir: Path, project: str, resume: int) -> list[Writer]:
    """The writers of these names. resume: the step a run goes on from, 0 for a new one.

    Raises UserError where a package is not installed.
    """
    return [WRITERS[name](workdir, project, resume) for name in names]


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"config.train.writers has {name!r}, whose package is not installed: pip install {name}"
        ) from error


def _kept(workdir: Path, name: str, begin: Callable[[], str]) -> str:
    """What a service calls this run, kept in WORKDIR/writers.json; where it has no name yet, a new one."""
    path = workdir / "writers.json"
    known = files.read_json(path, "delete it to begin new runs there") if path.is_file() else {}
    if name not in known:
        known[name] = begin()
        files.write_json(path, known)
    return str(known[name])
