"""Evaluation on several processes: the same texts; killed and run again: the same report."""

import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pytest
from pyarrow import parquet

from tests.processes import finish, kill_when
from tests.processes import start as start_program

start = functools.partial(start_program, program="evaluate")

# The paper's protocol on stand-ins: a tiny model, fewer documents and revisions.
CONFIG = """
from configs.paper_tldr_xsum import get_config as paper

def get_config():
    config = paper()
    config.model.source = "tiny"
    config.model.dtype = "float32"
    config.sampling.max_new_tokens = 8
    config.sampling.batch_size = 8
    config.evaluate.documents = (
        {{"source": "{folder}/tldr.jsonl", "format": "tldr"}},
        {{"source": "{folder}/xsum.parquet", "fields": ("prompt=document", "gold=summary")}},
    )
    config.evaluate.count = {count}
    config.evaluate.max_prompt_tokens = 400
    config.evaluate.revisions = 2
    config.evaluate.models = ("a=tiny",)
    config.judge.model = "stand-in"
    config.judge.api_key_env = ""
    return config
"""


@pytest.fixture
def config(tmp_path):
    """Stand-ins of both sets in the schemas of the hub."""

    def write(count):
        posts = [
            {
                "id": f"t3_{i}",
                "subreddit": "tifu",
                "title": f"T{i}",
                "post": "It rained. " * (i % 5 + 1),
                "summary": f"Rain {i}",
            }
            for i in range(count)
        ]
        (tmp_path / "tldr.jsonl").write_text("".join(json.dumps(post) + "\n" for post in posts))
        news = [
            {"document": f"News {i} came. " * (i % 4 + 1), "summary": f"News {i}", "id": str(i)}
            for i in range(count)
        ]
        parquet.write_table(pyarrow.Table.from_pylist(news), tmp_path / "xsum.parquet")
        path = tmp_path / "config.py"
        path.write_text(CONFIG.format(folder=tmp_path, count=count))
        return path

    return write


def texts(workdir):
    return {path.name: path.read_text() for path in sorted(workdir.glob("samples/*.jsonl"))}


@pytest.mark.slow
def test_every_number_of_hosts_and_devices_writes_the_same(config, tmp_path):
    """Greedy, float32: token for token."""
    path, found = config(11), {}
    for processes, devices in ((1, 1), (1, 8), (2, 4)):
        workdir = tmp_path / f"{processes}x{devices}"
        codes, said = finish(start(path, workdir, processes, devices, "--stage=write"))
        assert codes == [0] * processes, said
        found[processes, devices] = texts(workdir)
    assert len(found[1, 1]) == 2
    assert found[1, 8] == found[1, 1]
    assert found[2, 4] == found[1, 1]


def test_what_fails_in_process_0_ends_all_with_its_sentence(config, tmp_path):
    (tmp_path / "gpt.jsonl").write_text("no JSON\n")
    more = f"--config.evaluate.outputs=('gpt={tmp_path / 'gpt.jsonl'}',)"
    codes, said = finish(start(config(3), tmp_path / "run", 2, 1, "--stage=write", more))
    assert codes[0] == 2
    assert codes[1] != 0
    assert f"error: {tmp_path / 'gpt.jsonl'}:1: not JSON" in said[0][1]
    assert "Traceback" not in said[0][1]


class StandIn(BaseHTTPRequestHandler):
    """A judge by the rule of a hash: any question has one answer."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        label = "AB"[sum(json.dumps(asked["messages"]).encode()) % 2]
        message = {"role": "assistant", "content": label}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "stand-in"}
        content = json.dumps({**answer, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.server.asked += 1

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), StandIn) as listening:
        listening.asked = 0
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield listening
        listening.shutdown()


@pytest.mark.slow
def test_two_hosts_killed_twice_end_with_the_report_of_one(config, server, tmp_path):
    path = config(40)
    more = (
        f"--config.judge.base_url=http://127.0.0.1:{server.server_port}/v1",
        "--config.judge.concurrency=2",
    )
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    codes, said = finish(start(path, alone, 1, 1, *more))
    assert codes == [0], said
    once, server.asked = server.asked, 0

    def written():
        return sum(len(text.splitlines()) - 1 for text in texts(killed).values())

    kill_when(start(path, killed, 2, 2, *more), lambda: written() > 0)
    kept = texts(killed)
    assert 0 < written() < 80
    kill_when(start(path, killed, 2, 2, *more), lambda: server.asked > 20)
    for name, text in kept.items():
        assert texts(killed)[name].startswith(text[: text.rfind("\n") + 1])
    codes, said = finish(start(path, killed, 2, 2, *more))
    assert codes == [0, 0], said
    # Rows are done in another order where more devices share them.
    in_order = lambda workdir: {name: sorted(t.splitlines()) for name, t in texts(workdir).items()}
    assert in_order(killed) == in_order(alone)
    for verdicts in alone.glob("verdicts/*/*-vs-*.json"):
        assert (killed / verdicts.relative_to(alone)).read_text() == verdicts.read_text()
    assert (killed / "report" / "report.html").is_file()
    assert once <= server.asked <= once + 2  # what was under way at the kill
