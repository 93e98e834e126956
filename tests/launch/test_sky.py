"""launch/sky.sh and sky.yaml, against a stand-in of SkyPilot and against SkyPilot itself."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.clouds import LAUNCH, PROGRAM, ROOT, asked, call


def test_sky_starts_a_preempted_job_again(cloud):
    options = ("--name=srpo", "--gpus=tpu-v6e-8", "--infra=gcp")
    done = call("sky.sh", "submit", *options, "--", "bash", "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert len((cloud / "starts").read_text().splitlines()) == 2
    assert "--use-spot --infra gcp --env SRPO_EXTRA=tpu" in asked(cloud)[0]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("cuda", "2 1 10.0.0.1:8476 unset cuda,cpu"),
        ("tpu", "unset unset unset cluster tpu,cpu"),
    ],
)
def test_several_hosts_of_sky_find_each_other(extra, expected, tmp_path):
    names = ("PROCESSES", "PROCESS_ID", "COORDINATOR", "DISTRIBUTED")
    said = " ".join(f"${{SRPO_{name}:-unset}}" for name in names) + " $JAX_PLATFORMS"
    hosts = {"NUM_NODES": "2", "NODE_RANK": "1", "NODE_IPS": "10.0.0.1\n10.0.0.2"}
    env = {f"SKYPILOT_{name}": value for name, value in hosts.items()}
    env |= {"SRPO_EXTRA": extra, "SRPO_COMMAND": f"bash -c 'echo {said}'"}
    run = yaml.safe_load((LAUNCH / "sky.yaml").read_text())["run"]
    done = subprocess.run(
        ["bash", "-c", run],
        env={"PATH": os.environ["PATH"]} | env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.strip() == expected


def test_sky_knows_the_command_and_the_task(tmp_path, monkeypatch):
    """By SkyPilot's own command line and schema. It wants an environment of its own: CONTRIBUTING.md."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    sky = pytest.importorskip("sky")
    from sky.client.cli import command as sky_command

    launch = sky_command.cli.commands["jobs"].commands["launch"]
    for options in (("--gpus=H100:8", "--nodes=2"), ("--gpus=tpu-v6e-8", "--infra=gcp/us-east5")):
        program = ("python", "-c", "print('a  b')")
        done = call("sky.sh", "submit", "--name=srpo", *options, "--dry-run", "--", *program)
        words = shlex.split(done.stdout)
        assert words[:3] == ["sky", "jobs", "launch"]
        given = launch.make_context(
            "launch", words[3:]
        ).params  # ends at an option it does not know
        assert Path(given["workdir"]) == ROOT
        task = sky.Task.from_yaml(words[3])
        task.update_envs(dict(given["env"]))
        assert tuple(shlex.split(task.envs["SRPO_COMMAND"])) == program
        wanted = {"accelerators": given["gpus"], "use_spot": True, "infra": given["infra"]}
        task.set_resources_override(wanted)
        (resources,) = task.resources
        assert resources.use_spot
        name, _, count = options[0].removeprefix("--gpus=").partition(":")
        assert resources.accelerators == {name: int(count or 1)}
        assert resources.job_recovery["recover_on_exit_codes"] == 130
    wrong = yaml.safe_load((LAUNCH / "sky.yaml").read_text())
    wrong["resources"]["use_spots"] = True
    with pytest.raises(ValueError, match="use_spots"):
        sky.Task.from_yaml_config(wrong)
    jobs = sky_command.cli.commands["jobs"].commands
    for action, name in (("status", "queue"), ("logs", "logs"), ("delete", "cancel")):
        words = shlex.split(call("sky.sh", action, "--name=srpo", "--dry-run").stdout)
        assert words[:3] == ["sky", "jobs", name]
        jobs[name].make_context(name, words[3:])
