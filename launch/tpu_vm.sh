#!/usr/bin/env bash
# Runs a program on a Cloud TPU VM: one host or a slice of many, all workers at once.
#
#   launch/tpu_vm.sh create --name NAME --zone ZONE --type TYPE [OPTION ...]
#   launch/tpu_vm.sh setup  --name NAME --zone ZONE
#   launch/tpu_vm.sh run    --name NAME --zone ZONE -- COMMAND [ARGUMENT ...]
#   launch/tpu_vm.sh resume --name NAME --zone ZONE
#   launch/tpu_vm.sh logs   --name NAME --zone ZONE
#   launch/tpu_vm.sh status --name NAME --zone ZONE
#   launch/tpu_vm.sh stop   --name NAME --zone ZONE
#   launch/tpu_vm.sh delete --name NAME --zone ZONE
#
#   create   makes the TPU VM
#   setup    copies this repository to all workers and installs it there; again after a change. Several
#            workers: `ssh-add ~/.ssh/google_compute_engine` first, where an ssh-agent runs
#   run      starts the command on all workers and shows its output; the run goes on when this
#            terminal is closed or Ctrl-C is pressed, and the same line then shows its output again
#   resume   starts the command of the last run again (a run goes on from its last checkpoint), or
#            shows the output of the one that is still going on
#   logs     shows the output of the last start, from its beginning; that of earlier ones stays on the
#            workers, as ~/srpo_jax_run/log.TIME
#   status   state of the TPU VM, and on each worker: running or ended, with the last line of output
#   stop     asks the run to save and stop
#   delete   deletes the TPU VM, and all that is only there (gcloud asks first)
#
#   --name NAME        of the TPU VM
#   --zone ZONE        such as us-west4-a
#   --project PROJECT  default: gcloud's
#   --type TYPE        accelerator type, such as v5litepod-16 (create)
#   --version VERSION  software of the TPU VM (create; known for v2 to v4, v5e, v5p and v6e)
#   --topology T       such as 4x4 (create); --type is then a generation, such as v5litepod or v5p, which
#                      `gcloud alpha` alone knows beyond v4
#   --until DATE       packages as they were then, such as 2026-11-30T12:00:00Z (setup); default: the newest
#   --spot, --reserved how it is paid for (create); a spot VM may be taken away at any time, and then
#                      launch/queued.sh is the script that makes a new one and resumes
#   --data-disk DISK   such as source=projects/P/zones/Z/disks/D,mode=read-only (create)
#   --internal-ips     no public addresses: given to create, and to all other actions
#   --dry-run          prints the commands, ready to be pasted, and runs nothing
#
# Example:
#   launch/tpu_vm.sh create --name srpo --zone us-west4-a --type v5litepod-16
#   launch/tpu_vm.sh setup  --name srpo --zone us-west4-a
#   launch/tpu_vm.sh run    --name srpo --zone us-west4-a -- \
#     python -m srpo_jax.train --config=configs/NAME.py --workdir=gs://BUCKET/run
#   launch/tpu_vm.sh delete --name srpo --zone us-west4-a
#
# The command runs in the repository's folder. With several workers the workdir must be one that all of
# them see: gs://BUCKET/FOLDER, or a mounted disk.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/common.sh
. "$root/launch/common.sh"
# `version` prints the software that suits --type, for launch/queued.sh.
actions=(create setup run resume logs status stop delete version)
valued=(name zone project type version topology data-disk until)
switches=(spot reserved internal-ips)
# What read_options sets.
name='' zone='' project='' type='' version='' topology='' until='' internal_ips=''
read_options "$@"
if [[ $action != version ]]; then
  needs name "the name of the TPU VM"
  needs zone "such as us-west4-a"
fi
if [[ $action == create || $action == version ]]; then
  needs type "the accelerator type, such as v5litepod-16"
  case $type in
    "${version:+$type}") ;;
    v2-* | v3-* | v4 | v4-*) version=tpu-ubuntu2204-base ;;
    v5litepod | v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    v5p | v5p-*) version=v2-alpha-tpuv5 ;;
    v6e | v6e-*) version=v2-alpha-tpuv6e ;;
    *) fail "$action needs --version: the software that suits --type $type is not known here" ;;
  esac
fi
if [[ $action == version ]]; then
  echo "$version"
  exit 0
fi
if [[ $action == run ]]; then
  [[ ${#command[@]} -gt 0 ]] || fail "run needs a command after --"
else
  [[ ${#command[@]} -eq 0 ]] || fail "$action takes no command: only run does"
fi
tool gcloud "install the Google Cloud CLI"

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

tpu() { # VERB ...
  act gcloud "${track[@]}" compute tpus tpu-vm "$@" "${where[@]}"
}

track=()
# How the workers are reached. A host that is gone answers nothing, and is not waited for for hours.
reach=(--worker=all)
alive=(-oServerAliveInterval=30 -oConnectTimeout=30)
[[ -z $internal_ips ]] || reach+=(--internal-ip)

on_workers() { # WORD ...: a command for the workers' shell, each word quoted for it
  tpu ssh "$name" "${reach[@]}" "${alive[@]/#/--ssh-flag=}" --command="$(words "$@")"
}

worker() { # VERB ...: launch/worker.sh on all workers
  on_workers bash srpo_jax/launch/worker.sh "$@"
}

case $action in
  create)
    given spot reserved data-disk internal-ips
    what=("--accelerator-type=$type")
    [[ -z $topology ]] || what=("--type=$type" "--topology=$topology")
    [[ -z $topology || $type == v[234] ]] || track=(alpha)
    tpu create "$name" "${what[@]}" "--version=$version" "${chosen[@]}"
    ;;
  setup)
    archive=${TMPDIR:-/tmp}/srpo_jax-$name.tar.gz
    act tar -czf "$archive" -C "$root" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude='./.*_cache' \
      --exclude=__pycache__ .
    tpu scp "$archive" "$name:srpo_jax.tar.gz" "${reach[@]}" "${alive[@]/#/--scp-flag=}"
    on_workers mkdir -p srpo_jax
    on_workers tar -xzf srpo_jax.tar.gz -C srpo_jax
    worker setup ${until:+"$until"}
    act rm -f "$archive"
    ;;
  run)
    worker start "${command[@]}"
    worker follow
    ;;
  logs) worker follow ;;
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
