"""A real server of a real model as the judge: the report is whole, and says that it does not judge."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from srpo_jax import config as config_module
from srpo_jax import convert, evaluate
from srpo_jax.reporting.codec import from_json

ROOT = Path(__file__).parents[2]
COUNT = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """SmolLM2-135M-Instruct behind `transformers serve`: (address, name of the model)."""
    folder = tmp_path_factory.mktemp("judge")
    model, log = folder / "smollm2", (folder / "log").open("w")
    convert.export_model("smollm2-135m-instruct", model, "float32")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", model, "--device=cpu"]
    serving = subprocess.Popen(
        [*command, "--host=127.0.0.1", f"--port={port}"],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=log,
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            urllib.request.urlopen(f"{address}/health", timeout=5).close()
            break
        except OSError:
            assert serving.poll() is None, (folder / "log").read_text()
            time.sleep(1)
    yield f"{address}/v1", str(model)
    serving.kill()
    serving.wait(60)
    log.close()


@pytest.mark.slow
@pytest.mark.assets
def test_a_small_model_behind_a_real_server_is_said_not_to_judge(server, tmp_path):
    url, model = server
    documents = [
        {"id": str(i), "prompt": f"A dog called Rex{i} ran home.", "gold": f"Rex{i} ran home."}
        for i in range(COUNT)
    ]
    outputs = [{"id": str(i), "output": "It is about something."} for i in range(COUNT)]
    for name, lines in (("documents", documents), ("outputs", outputs)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)
    config = config_module.default()
    changes = {
        "evaluate.documents": (str(tmp_path / "documents.jsonl"),),
        "evaluate.count": COUNT,
        "evaluate.outputs": (f"filler={tmp_path / 'outputs.jsonl'}",),
        "judge.name": "llm",
        "judge.base_url": url,
        "judge.model": model,
        "judge.api_key_env": "",
        "judge.max_tokens": 8,
        "judge.timeout": 300.0,
        "judge.concurrency": 2,
        "judge.missing_share": 1.0,
    }
    config_module.update(config, changes, "test")
    evaluate.evaluate(config_module.checked(config), tmp_path / "run", {}, title="real")
    report = from_json((tmp_path / "run" / "report" / "results.json").read_text())
    (position,) = report.positions
    assert "does not judge" in position.warning
    page = (tmp_path / "run" / "report" / "report.html").read_text()
    assert "does not judge" in page
    (judge,) = report.evidence.judges
    assert judge.facts["model"] == model
    assert judge.cost["requests"] >= 2 * COUNT
    assert judge.cost["prompt_tokens"] > 100 * COUNT
