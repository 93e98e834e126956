#!/usr/bin/env bash
# Runs a program on a Cloud TPU VM: one host or a slice of many, all workers at once.
#
#   launch/tpu_vm.sh create --name NAME --zone ZONE --type TYPE [--version VERSION]
#   launch/tpu_vm.sh setup  --name NAME --zone ZONE
#   launch/tpu_vm.sh run    --name NAME --zone ZONE -- COMMAND [ARGUMENT ...]
#   launch/tpu_vm.sh resume --name NAME --zone ZONE
#   launch/tpu_vm.sh status --name NAME --zone ZONE
#   launch/tpu_vm.sh stop   --name NAME --zone ZONE
#   launch/tpu_vm.sh delete --name NAME --zone ZONE
#
#   create   makes the TPU VM
#   setup    copies this repository to all workers and installs it there; again after a change
#   run      starts the command on all workers and shows its output; the run goes on when this
#            terminal is closed or Ctrl-C is pressed
#   resume   starts the command of the last run again (a run goes on from its last checkpoint), or
#            shows the output of the one that is still going on
#   status   state of the TPU VM, and on each worker: running or ended, with the last line of output
#   stop     asks the run to save and stop
#   delete   deletes the TPU VM, and all that is only there (gcloud asks first)
#
#   --name NAME        of the TPU VM
#   --zone ZONE        such as us-west4-a
#   --project PROJECT  default: gcloud's
#   --type TYPE        accelerator type, such as v5litepod-16 (create)
#   --version VERSION  software of the TPU VM (create; known for v2 to v4, v5e, v5p and v6e)
#   --dry-run          prints the commands, ready to be pasted, and runs nothing
#
# Example:
#   launch/tpu_vm.sh create --name srpo --zone us-west4-a --type v5litepod-16
#   launch/tpu_vm.sh setup  --name srpo --zone us-west4-a
#   launch/tpu_vm.sh run    --name srpo --zone us-west4-a -- \
#     python -m srpo_jax.train --config=configs/NAME.py --workdir=/mnt/bucket/run
#   launch/tpu_vm.sh delete --name srpo --zone us-west4-a
#
# The command runs in the repository's folder. With several workers the workdir must be a folder that
# all of them see (a mounted bucket, say). Not here yet: spot VMs and queued resources.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

[[ $# -gt 0 ]] || fail "say what to do: create, setup, run, resume, status, stop or delete (see --help)"
action=$1
shift
case $action in
  create | setup | run | resume | status | stop | delete) ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) fail "unknown action '$action': create, setup, run, resume, status, stop or delete" ;;
esac

name='' zone='' project='' type='' version='' dry_run=''
command=()
while [[ $# -gt 0 ]]; do
  case $1 in
    --name=* | --zone=* | --project=* | --type=* | --version=*)
      option=${1%%=*}
      printf -v "${option#--}" %s "${1#*=}"
      shift
      ;;
    --name | --zone | --project | --type | --version)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --dry-run)
      dry_run=yes
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      command=("$@")
      break
      ;;
    *) fail "unknown option '$1': the command comes after -- (see --help)" ;;
  esac
done

[[ -n $name ]] || fail "$action needs --name, the name of the TPU VM"
[[ -n $zone ]] || fail "$action needs --zone, such as us-west4-a"
if [[ $action == create ]]; then
  [[ -n $type ]] || fail "create needs --type, the accelerator type, such as v5litepod-16"
  case $type in
    "${version:+$type}") ;;
    v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v6e-*) version=v2-alpha-tpuv6e ;;
    *) fail "create needs --version: the software that suits --type $type is not known here" ;;
  esac
fi
if [[ $action == run ]]; then
  [[ ${#command[@]} -gt 0 ]] || fail "run needs a command after --"
else
  [[ ${#command[@]} -eq 0 ]] || fail "$action takes no command: only run does"
fi
if [[ -z $dry_run ]]; then
  command -v gcloud >/dev/null ||
    fail "gcloud is not here: install the Google Cloud CLI, or see the commands with --dry-run"
fi

act() { # COMMAND ...: runs it, or prints it so that a shell reads the same words
  if [[ -n $dry_run ]]; then
    local line
    printf -v line '%q ' "$@"
    printf '%s\n' "${line% }"
  else
    "$@"
  fi
}

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

tpu() { # VERB ...
  act gcloud compute tpus tpu-vm "$@" "${where[@]}"
}

on_workers() { # WORD ...: a command for the workers' shell, each word quoted for it
  local line
  printf -v line '%q ' "$@"
  tpu ssh "$name" --worker=all --command="${line% }"
}

worker() { # VERB ...: launch/worker.sh on all workers
  on_workers bash srpo_jax/launch/worker.sh "$@"
}

case $action in
  create)
    tpu create "$name" --accelerator-type="$type" --version="$version"
    ;;
  setup)
    archive=${TMPDIR:-/tmp}/srpo_jax-$name.tar.gz
    act tar -czf "$archive" -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs \
      --exclude=__pycache__ .
    tpu scp "$archive" "$name:srpo_jax.tar.gz" --worker=all
    on_workers mkdir -p srpo_jax
    on_workers tar -xzf srpo_jax.tar.gz -C srpo_jax
    worker setup
    act rm -f "$archive"
    ;;
  run)
    worker start "${command[@]}"
    worker follow
    ;;
  resume)
    worker resume
    worker follow
    ;;
  status)
    tpu describe "$name" --format='value(state)'
    worker status
    ;;
  stop)
    worker stop
    ;;
  delete)
    tpu delete "$name"
    ;;
esac
