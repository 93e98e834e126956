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
#            goes on from its last checkpoint, so its --workdir must outlive the TPU: gs://… A request that
#            fails before there is a TPU is made again, after pauses that grow
#            Ends with the command's status once that is 0 or 2 (a mistake of the user's); after --tries
#            other failures without a preemption; after --losses lost connections in a row, each with a
#            longer pause behind it. The TPU is then kept, until delete; the same line goes on watching
#   status   state of the request
#   logs     output of the run. To stop it: end the watch, which would start it again, then
#            launch/tpu_vm.sh stop
#   delete   deletes the request and its TPU
#
#   --project PROJECT    default: gcloud's
#   --version VERSION    software, where it is not known by the type (see launch/tpu_vm.sh)
#   --topology TOPOLOGY  such as 4x4; --type is then a generation, such as v5litepod or v5p, which
#                        `gcloud alpha` alone knows beyond v4
#   --until DATE         packages as they were then, such as 2026-11-30T12:00:00Z; default: when watch begins
#   --spot, --reserved   how it is paid for
#   --data-disk DISK     such as source=projects/P/zones/Z/disks/D,mode=read-only
#   --internal-ips       no public addresses
#   --valid-until-duration D   how long to wait in the queue, such as 6h
#   --every SECONDS      between two looks at the state (default 30)
#   --tries N            of a command that fails on a TPU that is still there (default 3)
#   --losses N           of the connection to a TPU that is still there, or to the cloud, in a row: one that held
#                        longer than the pause before it counts anew. Pauses grow from --every to 10 minutes
#                        (default 12)
#   --dry-run            prints the commands of one round, and runs nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"
actions=(create watch status logs delete)
valued=(name zone project type version topology data-disk valid-until-duration until every tries losses)
switches=(spot reserved internal-ips)
# What read_options sets.
name='' zone='' project='' type='' version='' until='' every='' tries='' losses='' topology='' internal_ips=''
read_options "$@"
needs name "of the request and its TPU"
needs zone "such as us-west4-a"
every=${every:-30} tries=${tries:-3} losses=${losses:-12} until=${until:-$(date -u +%Y-%m-%dT%H:%M:%SZ)}
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

track=()
queued() { # VERB ...
  act gcloud "${track[@]}" compute tpus queued-resources "$@" "${where[@]}"
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
  local track=()
  [[ -z $topology || $type == v[234] ]] || track=(alpha)
  queued create "$name" "--node-id=$name" "--runtime-version=$version" "${what[@]}" "${chosen[@]}"
}

state() { # of the request; MISSING where there is none; fails, saying why, where the cloud does not answer
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2>"$scratch" && return
  local said
  said=$(<"$scratch")
  [[ ${said,,} == *not[_\ ]found* ]] || {
    printf '%s\n' "$said" >&2
    return 1
  }
  echo MISSING
}

delete() {
  queued delete "$name" --force --quiet
}

tell() { # WORD ...
  printf '%s: %s\n' "$name" "$*" >&2
}

grow() { # COUNT: sets `pause`, longer each time: from --every to 10 minutes
  local longest=$((every > 600 ? every : 600))
  pause=$((every << ($1 < 16 ? $1 - 1 : 15)))
  ((pause <= longest)) || pause=$longest
}

taken() { # whether the TPU itself is being taken away: its request may say ACTIVE for a while
  local node
  node=$(gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null) || return 1
  [[ $node == @(PREEMPTED|TERMINATED|STOPPING|STOPPED|DELETING|REPAIRING|RESTARTING|STARTING) ]] &&
    tell "the TPU is $node"
}

why() { # of a request that failed
  queued describe "$name" '--format=value(state.failedData.error.message)' || :
}

again() { # CODE WHAT: waits, longer after each loss in a row, or ends with this status after the last one
  lost=$((lost + 1))
  if ((lost >= losses)); then
    tell "$2, $lost times in a row: given up; the TPU is kept, and the same command goes on"
    exit "$1"
  fi
  grow "$lost"
  tell "$2, $lost of $losses times in a row; once more in $pause s"
  sleep "$pause"
}

attempt() { # installs where it is not, and runs the command; sets `code`
  local began=$SECONDS going=$'host [^:]+: running(:|\n|$)'
  code=0
  # Nothing is installed under a run that is going on, where the watch was ended and began anew.
  if [[ -z $ready && $(tpu_vm status 2>/dev/null || :) =~ $going ]]; then
    tell "a run is going on there: nothing is installed"
    ready=yes
  fi
  if [[ -z $ready ]]; then
    tpu_vm setup --until "$until" && ready=yes || code=$?
  fi
  if ((code == 0)); then
    tpu_vm run -- "${command[@]}" || code=$?
  fi
  ((SECONDS - began <= pause)) || lost=0
}

watch() {
  local now before='' failed=0 ready='' code lost=0 pause=0 refused=0 had=''
  scratch=$(mktemp)
  trap 'rm -f "$scratch"' EXIT
  while :; do
    now=$(state) || {
      [[ -n $before ]] || fail "the state of $name cannot be asked"
      again 1 "the cloud does not answer"
      continue
    }
    [[ $now == "$before" ]] || tell "$now"
    [[ $now == ACTIVE || $now == MISSING ]] || lost=0
    case $now in
      MISSING)
        ready=''
        create || {
          code=$?
          [[ -n $before ]] || exit "$code"
          again "$code" "no new TPU can be asked for"
          continue
        }
        ;;
      SUSPENDED | FAILED)
        local gone="the TPU is gone"
        [[ $now == SUSPENDED ]] || gone="the request failed ($(why))"
        tell "$gone; a new one is asked for"
        ready='' failed=0
        delete || {
          again $? "what is left of it cannot be deleted"
          continue
        }
        if [[ $now == FAILED && -z $had ]]; then
          refused=$((refused + 1))
          grow "$refused"
          tell "requests that failed in a row: $refused; the next in $pause s"
          sleep "$pause"
        fi
        had=''
        ;;
      ACTIVE)
        had=yes refused=0
        attempt
        ((code != 0 && code != 2)) || exit "$code"
        if [[ $(state) == ACTIVE ]]; then
          if ((code == 255)); then # of ssh: the run goes on without it
            before=$now
            again "$code" "the connection was lost"
            continue
          fi
          taken || {
            failed=$((failed + 1))
            tell "status $code, failure $failed of $tries"
            ((failed < tries)) || exit "$code"
          }
        fi
        ;;
      *) ;; # it is being made, or taken away
    esac
    before=$now
    sleep "$every"
  done
}

case $action in
  create) create ;;
  watch)
    if [[ -n $dry_run ]]; then
      create
      queued describe "$name" '--format=value(state.state)'
      tpu_vm setup --until "$until"
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
