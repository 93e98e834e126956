#!/usr/bin/env bash
# Runs a program as a managed job of SkyPilot, on spot machines of whatever cloud has them.
#
#   launch/sky.sh submit --name NAME --gpus ACCELERATORS [--nodes N] [OPTION ...] -- COMMAND [ARGUMENT ...]
#   launch/sky.sh status | logs | delete --name NAME
#
#   submit   hands the job over (launch/sky.yaml). After a preemption SkyPilot finds other machines,
#            installs this repository there and starts the command again, which goes on from its last
#            checkpoint: its --workdir is gs://…, or a mounted bucket. A command that fails by itself is
#            started 3 times more; one that was asked to save (status 130), always
#   resume   as submit: once a job has ended, the same command goes on
#   status   of all managed jobs
#   logs     output of the job
#   delete   cancels the job and deletes its machines
#
#   --gpus ACCELERATORS   of each machine, such as H100:8; or a TPU: tpu-v6e-8, tpu-v5litepod-16
#   --nodes N             machines with GPUs (default 1); a TPU of several hosts counts as one
#   --infra INFRA         where, such as gcp/us-central1; default: where it is cheapest
#   --until DATE          packages as they were then, such as 2026-11-30T12:00:00Z; default: at submit, so that
#                         machines that take others' place get the same versions
#   --on-demand           no spot machines
#   --dry-run             prints the commands, and runs nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"
actions=(submit resume status logs delete)
valued=(name gpus nodes infra until)
switches=(on-demand)
name='' gpus='' nodes='' infra='' until='' on_demand='' # read_options sets them
read_options "$@"
needs name "of the job"
tool sky "pip install skypilot"

case $action in
  submit | resume)
    needs gpus "such as H100:8 or tpu-v6e-8"
    [[ ${#command[@]} -gt 0 ]] || fail "$action needs a command after --"
    spot=--use-spot
    [[ -z $on_demand ]] || spot=--no-use-spot
    where=()
    [[ -z $infra ]] || where=(--infra "$infra")
    extra=cuda
    if [[ $gpus == tpu-* ]]; then
      extra=tpu
      [[ ${nodes:-1} == 1 ]] || fail "--nodes=$nodes: several TPUs are not joined; ask for a larger one"
    fi
    until=${until:-$(date -u +%Y-%m-%dT%H:%M:%SZ)}
    act sky jobs launch "$here/sky.yaml" --name "$name" --workdir "${here%/*}" --gpus "$gpus" \
      --num-nodes "${nodes:-1}" "$spot" "${where[@]}" --env "SRPO_EXTRA=$extra" \
      --env "SRPO_UNTIL=$until" \
      --env "SRPO_COMMAND=$(words "${command[@]}")" --yes
    ;;
  status) act sky jobs queue ;;
  logs) act sky jobs logs --name "$name" ;;
  delete) act sky jobs cancel --name "$name" --yes ;;
esac
