#!/usr/bin/env bash
# Runs a program on a queued resource of Cloud TPU, and again on a new one when it was preempted.
#
#   launch/queued.sh create --name NAME --zone ZONE --type TYPE [--spot | --reserved] [OPTION ...]
#   launch/queued.sh watch  --name NAME --zone ZONE --type TYPE [OPTION ...] -- COMMAND [ARGUMENT ...]
#   launch/queued.sh status | logs | delete --name NAME --zone ZONE
#
#   create   asks for the TPU, which comes when one is free
#   watch    creates it where it is not there, waits until it is, installs this repository, runs the
#            command; when the TPU is preempted: deletes what is left, and from the beginning. The command
#            goes on from its last checkpoint, so its --workdir must outlive the TPU: gs://…
#            Ends with the command's status once that is 0 or 2 (a mistake of the user's); after --tries
#            other failures without a preemption; the TPU is then kept, until delete
#   status   state of the request
#   logs     output of the run
#   delete   deletes the request and its TPU
#
#   --project PROJECT    default: gcloud's
#   --version VERSION    software, where it is not known by the type (see launch/tpu_vm.sh)
#   --topology TOPOLOGY  such as 4x4; --type is then a generation, such as v5litepod or v5p
#   --spot, --reserved   how it is paid for
#   --data-disk DISK     such as source=projects/P/zones/Z/disks/D,mode=read-only
#   --internal-ips       no public addresses
#   --valid-until-duration D   how long to wait in the queue, such as 6h
#   --every SECONDS      between two looks at the state (default 30)
#   --tries N            of a command that fails on a TPU that is still there (default 3)
#   --dry-run            prints the commands of one round, and runs nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"
actions=(create watch status logs delete)
valued=(name zone project type version topology data-disk valid-until-duration every tries)
switches=(spot reserved internal-ips)
# What read_options sets.
name='' zone='' project='' type='' version='' every='' tries='' topology='' internal_ips=''
read_options "$@"
needs name "of the request and its TPU"
needs zone "such as us-west4-a"
every=${every:-30} tries=${tries:-3}
if [[ $action == create || $action == watch ]]; then
  needs type "the accelerator type, such as v5litepod-16"
  if [[ -z $version ]]; then
    version=$(bash "$here/tpu_vm.sh" version --type "$type")
  fi
fi
if [[ $action == watch ]]; then
  [[ ${#command[@]} -gt 0 ]] || fail "watch needs a command after --"
fi
tool gcloud "install the Google Cloud CLI"

where=("--zone=$zone")
[[ -z $project ]] || where+=("--project=$project")

queued() { # VERB ...
  act gcloud compute tpus queued-resources "$@" "${where[@]}"
}

tpu_vm() { # ACTION ...: launch/tpu_vm.sh on the TPU of the request
  local more=()
  [[ -z $internal_ips ]] || more+=(--internal-ips)
  [[ -z $dry_run ]] || more+=(--dry-run)
  bash "$here/tpu_vm.sh" "$1" --name "$name" "${where[@]}" "${more[@]}" "${@:2}"
}

create() {
  given spot reserved data-disk internal-ips valid-until-duration
  local what=("--accelerator-type=$type")
  [[ -z $topology ]] || what=("--type=$type" "--topology=$topology")
  queued create "$name" "--node-id=$name" "--runtime-version=$version" "${what[@]}" "${chosen[@]}"
}

state() { # of the request; MISSING where there is none
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>/dev/null || echo MISSING
}

delete() {
  queued delete "$name" --force --quiet
}

watch() {
  local now before='' failed=0 ready='' code
  while :; do
    now=$(state)
    [[ $now == "$before" ]] || printf '%s: %s\n' "$name" "$now" >&2
    before=$now
    case $now in
      MISSING)
        ready=''
        create
        ;;
      SUSPENDED | FAILED)
        printf '%s: the TPU is gone; a new one is asked for\n' "$name" >&2
        ready='' failed=0
        delete
        ;;
      ACTIVE)
        code=0
        if [[ -z $ready ]]; then
          tpu_vm setup && ready=yes || code=$?
        fi
        if ((code == 0)); then
          tpu_vm run -- "${command[@]}" || code=$?
        fi
        ((code != 0 && code != 2)) || exit "$code"
        if [[ $(state) == ACTIVE ]]; then
          failed=$((failed + 1))
          printf '%s: status %s, failure %s of %s\n' "$name" "$code" "$failed" "$tries" >&2
          ((failed < tries)) || exit "$code"
        fi
        ;;
      *) ;; # it is being made, or taken away
    esac
    sleep "$every"
  done
}

case $action in
  create) create ;;
  watch)
    if [[ -n $dry_run ]]; then
      create
      queued describe "$name" '--format=value(state.state)'
      tpu_vm setup
      tpu_vm run -- "${command[@]}"
      delete
    else
      watch
    fi
    ;;
  status) queued describe "$name" '--format=value(state.state)' ;;
  logs) tpu_vm logs ;;
  delete) delete ;;
esac
