import os
import shlex
import subprocess
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "tpu_vm.sh"
WHERE = ["--name", "srpo", "--zone=us-west4-a"]

# Runs what it is asked to run on the workers here, in $HOME, and writes down all else.
GCLOUD = """#!/usr/bin/env bash
for word in "$@"; do
  case $word in
    --command=*) cd "$HOME" && exec bash -c "${word#--command=}" ;;
  esac
done
printf '%s ' "$@" >>"$HOME/asked"
"""


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | variables,
    )


def dry(*arguments: str) -> list[list[str]]:
    done = run(*arguments, "--dry-run", PATH="/usr/bin:/bin")
    assert (done.returncode, done.stderr) == (0, "")
    return [shlex.split(line) for line in done.stdout.splitlines()]


def tpu(*words: str) -> list[str]:
    return ["gcloud", "compute", "tpus", "tpu-vm", *words, "--zone=us-west4-a"]


def on_workers(command: str) -> list[str]:
    alive = ("--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oConnectTimeout=30")
    return tpu("ssh", "srpo", "--worker=all", *alive, f"--command={command}")


def worker(*words: str) -> list[str]:
    return on_workers(" ".join(["bash", "srpo_jax/launch/worker.sh", *words]))


@pytest.mark.parametrize(
    ("options", "version"),
    [
        (["--type", "v4-8"], "tpu-ubuntu2204-base"),
        (["--type", "v5litepod-16"], "v2-alpha-tpuv5-lite"),
        (["--type", "v5p-256"], "v2-alpha-tpuv5"),
        (["--type", "v6e-8"], "v2-alpha-tpuv6e"),
        (["--type", "v6e-8", "--version", "mine"], "mine"),
    ],
)
def test_create(options: list[str], version: str) -> None:
    assert dry("create", *WHERE, *options) == [
        tpu("create", "srpo", f"--accelerator-type={options[1]}", f"--version={version}")
    ]


def test_a_topology_beyond_v4_is_asked_of_gcloud_alpha() -> None:
    """`gcloud compute tpus tpu-vm create` itself (528.0.0): "Valid choices are [v2, v3, v4]"."""
    for kind, track in (("v4", []), ("v5p", ["alpha"])):
        (words,) = dry("create", *WHERE, f"--type={kind}", "--topology=4x4x8")
        assert words[: 2 + len(track)] == ["gcloud", *track, "compute"]
        assert words[-4:-2] == [f"--type={kind}", "--topology=4x4x8"]


def test_setup_copies_and_installs() -> None:
    pack, copy, folder, unpack, install, clean = dry("setup", *WHERE, "--until=2026-11-30")
    assert pack[:2] == ["tar", "-czf"]
    archive = pack[2]
    assert pack[3:5] == ["-C", str(ROOT)]
    alive = ("--scp-flag=-oServerAliveInterval=30", "--scp-flag=-oConnectTimeout=30")
    assert copy == tpu("scp", archive, "srpo:srpo_jax.tar.gz", "--worker=all", *alive)
    assert folder == on_workers("mkdir -p srpo_jax")
    assert unpack == on_workers("tar -xzf srpo_jax.tar.gz -C srpo_jax")
    assert install == worker("setup", "2026-11-30")
    assert clean == ["rm", "-f", archive]


@pytest.mark.parametrize(
    ("action", "expected"),
    [
        ("resume", [worker("resume"), worker("follow")]),
        ("stop", [worker("stop")]),
        ("status", [tpu("describe", "srpo", "--format=value(state)"), worker("status")]),
        ("delete", [tpu("delete", "srpo")]),
    ],
)
def test_other_actions(action: str, expected: list[list[str]]) -> None:
    assert dry(action, *WHERE) == expected


def test_the_command_is_quoted_for_the_workers() -> None:
    words = ["python", "-c", "print('a  b')", "$HOME", "x;y", '"', "*"]
    done = run("run", *WHERE, "--dry-run", "--", *words)
    start, follow = (shlex.split(line) for line in done.stdout.splitlines())
    (command,) = (word for word in start if word.startswith("--command="))
    assert shlex.split(command.removeprefix("--command=")) == [
        "bash",
        "srpo_jax/launch/worker.sh",
        "start",
        *words,
    ]
    assert follow == worker("follow")


def test_the_project_is_passed_on() -> None:
    assert dry("delete", *WHERE, "--project=mine") == [[*tpu("delete", "srpo"), "--project=mine"]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say what to do"),
        (["start", *WHERE], "unknown action 'start'"),
        (["create", "--zone=z", "--type=t"], "create needs --name"),
        (["status", "--name=n"], "status needs --zone"),
        (["create", *WHERE], "create needs --type"),
        (["create", *WHERE, "--type=v99-8"], "create needs --version"),
        (["run", *WHERE], "run needs a command after --"),
        (["stop", *WHERE, "--", "x"], "stop takes no command"),
        (["run", *WHERE, "--spots"], "unknown option '--spots'"),
        (["run", "--name"], "--name needs a value"),
        (["delete", *WHERE], "gcloud is not here"),
    ],
)
def test_wrong_use_is_one_sentence(arguments: list[str], said: str, tmp_path: Path) -> None:
    for tool in ("dirname", "sed"):
        (tmp_path / tool).symlink_to(f"/usr/bin/{tool}")
    (tmp_path / "bash").symlink_to("/bin/bash")
    done = run(*arguments, PATH=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, str]:
    """Environment in which this machine plays the only worker of a TPU VM."""
    home, tools = tmp_path / "home", tmp_path / "tools"
    (home / "srpo_jax").mkdir(parents=True)
    (home / "srpo_jax" / "launch").symlink_to(ROOT / "launch")
    tools.mkdir()
    (tools / "gcloud").write_text(GCLOUD)
    (tools / "gcloud").chmod(0o755)
    return {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}


def test_run_then_resume(machine: dict[str, str]) -> None:
    code = 'echo "$1 $SRPO_DISTRIBUTED"; exit 3'
    first = run("run", *WHERE, "--", "bash", "-c", code, "x", "two  words", **machine)
    again = run("resume", *WHERE, **machine)
    for done in (first, again):
        assert done.returncode == 3, done.stderr
        assert done.stdout.endswith("| two  words cluster\n")
    assert "ended with status 3: two  words cluster" in run("status", *WHERE, **machine).stdout
    (earlier,) = (Path(machine["HOME"]) / "srpo_jax_run").glob("log.*")  # why the first one ended
    assert earlier.read_text() == "two  words cluster\n"


def test_stop_asks_the_program_to_stop(machine: dict[str, str]) -> None:
    code = "trap 'echo saved; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    started = subprocess.Popen(
        ["bash", str(SCRIPT), "run", *WHERE, "--", "bash", "-c", code],
        env=os.environ | machine,
        stdout=subprocess.PIPE,
        text=True,
    )
    with processes.within(120, started) as following:
        assert following.stdout is not None
        assert following.stdout.readline().endswith("| ready\n")
        assert ": running: ready" in run("status", *WHERE, **machine).stdout
        assert "stop it first" in run("run", *WHERE, "--", "true", **machine).stderr
        # As launch/queued.sh does once a connection is lost.
        again = subprocess.Popen(
            following.args, env=os.environ | machine, stdout=subprocess.PIPE, text=True
        )
        with processes.within(120, again):
            assert again.stdout is not None
            assert again.stdout.readline().endswith(": this run is going on already\n")
            assert again.stdout.readline().endswith("| ready\n")
            assert run("stop", *WHERE, **machine).returncode == 0
            assert again.stdout.read().endswith("| saved\n")
        assert following.stdout.read().endswith("| saved\n")
    assert following.returncode == again.returncode == 0
    assert "no run is going on" in run("stop", *WHERE, **machine).stderr
