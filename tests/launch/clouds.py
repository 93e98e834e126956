"""Stand-ins of the clouds' tools, which take the machine away once and keep a record."""

import subprocess
import sys
from pathlib import Path

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
TOOLS = {
    "gcloud": GCLOUD,
    "kubectl": KUBECTL,
    "sbatch": SBATCH,
    "srun": SRUN,
    "scancel": SCANCEL,
    "scontrol": SCONTROL,
    "sky": SKY,
}


def call(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCH / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()
