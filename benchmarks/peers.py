"""The table of PyTorch peers: train steps of the usual kind on the same pairs (extra `bench`)."""

from collections.abc import Callable, Mapping

import numpy as np

from benchmarks import peers_torch
from benchmarks.workload import Model, Workload
from srpo_jax import objectives

NAMES = (
    "SRPO, six rows, PyTorch",
    "SRPO, six rows, PyTorch, completions projected",
    "DPO, TRL, reference stored",
    "DPO, TRL, reference computed",
)


def make(
    name: str, model: Model, work: Workload, hyper: Mapping[str, float]
) -> Callable[[], float]:
    """The step of one of NAMES on the pairs of `work`; SRPO's stored reference is zeros, as ours."""
    method, *_, what = name.split(", ")
    pairs = work.sequences(objectives.get(method.lower()).needs)
    if method == "DPO":
        from benchmarks.peers_trl import trl_dpo

        stored = what == "reference stored"
        return trl_dpo(
            model.weights, model.config, pairs, beta=hyper["beta"], precompute_reference=stored
        )
    reference = np.zeros((len(pairs), 6), np.float32)
    return peers_torch.torch_six_rows(
        model.weights, model.config, pairs, reference, **hyper, project_all=what == "PyTorch"
    )
