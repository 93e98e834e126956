"""A workdir in a store of objects: train, stop, resume, evaluate."""

import functools

import jax
import pytest

from srpo_jax import config as config_module
from srpo_jax import evaluate, train
from srpo_jax.data import documents, records
from srpo_jax.data.documents import Document
from srpo_jax.data.records import Pair
from srpo_jax.reporting import compare
from srpo_jax.runtime import distributed, metrics, storage
from srpo_jax.runtime import mesh as mesh_module
from tests import objects

pytestmark = [pytest.mark.usefixtures("compiled_once"), pytest.mark.slow]
make_mesh = mesh_module.make


@pytest.fixture(scope="module")
def store():
    with objects.serve() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        # Asks Google's own library, which is not here, what kind of bucket it is.
        patch.setattr(
            "orbax.checkpoint._src.path.gcs_utils.is_hierarchical_namespace_enabled",
            lambda path: False,
        )
        patch.setattr(mesh_module, "make", functools.partial(make_mesh, devices=jax.devices()[:1]))
        yield objects.Objects.held


def settings():
    config = config_module.default()
    config.model.update({"source": "tiny", "dtype": "float32", "remat": "none"})
    config.data.update({"pairs": "gs://bucket/pairs.jsonl", "template": "plain"})
    config.train.update({"steps": 4, "batch_size": 4, "checkpoint_every": 2})
    config.sampling.update({"max_new_tokens": 4, "batch_size": 2})
    config.evaluate.update({"documents": ("aclsum",), "revisions": 1, "count": 2})
    config.evaluate.judge_check = 0
    config.judge.name = "longer"
    return config_module.checked(config)


def test_a_run_lives_in_a_bucket(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = storage.folder("gs://bucket/runs/one", "--workdir")
    pairs = [Pair(f"{i}?", ["yes", "sure", "fine"][i % 3], "no way") for i in range(8)]
    records.write_pairs("gs://bucket/pairs.jsonl", pairs)
    whole = tmp_path / "whole"
    assert train.train(settings(), whole)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed.StopSignal, "requested", lambda self, step: step >= 2)
        assert not train.train(settings(), workdir)
    assert train.train(settings(), workdir)
    loss = [[one["loss"] for one in metrics.read(w / "metrics.jsonl")] for w in (workdir, whole)]
    assert loss[0] == loss[1]
    for name in ("config.json", "run.json", "reference_scores.npz", "metrics.jsonl"):
        assert f"bucket/runs/one/{name}" in store, sorted(store)
    for folder in ("checkpoints/4/", "trees/", "tensorboard/events"):
        assert any(name.startswith(f"bucket/runs/one/{folder}") for name in store), folder

    known = [Document(f"{i}", f"text {i}", "gold" * i, "test") for i in range(3)]
    monkeypatch.setattr(documents, "load", lambda name, split: known)
    models = {"start": "tiny", "srpo": str(workdir)}
    made = evaluate.evaluate(settings(), workdir, models, title="in a bucket")
    again = evaluate.evaluate(settings(), workdir, models, title="in a bucket", stages=["report"])
    assert made.curves[0].key == again.curves[0].key
    assert compare.read(f"{workdir}/report").evidence.title == "in a bucket"
    for folder in ("documents", "samples", "verdicts/longer", "report/report.html"):
        assert any(name.startswith(f"bucket/runs/one/{folder}") for name in store), folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole"]
