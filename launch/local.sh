#!/usr/bin/env bash
# Runs a program as several processes on this machine, which together form one device mesh.
#
#   launch/local.sh [--processes N] [--devices D] [--port P] [--grace S] -- COMMAND [ARGUMENT ...]
#
#   launch/local.sh --processes 2 --devices 4 -- \
#     python -m srpo_jax.train --config=configs/NAME.py --workdir=runs/two
#
# Each process gets D virtual CPU devices, so the mesh has N x D; it is the way to try here what a
# machine with several hosts does. Every line of output begins with the process's number.
#
#   --processes N   how many processes (default 2)
#   --devices D     virtual devices of each (default 1)
#   --port P        port of process 0, for the others to join (default: a free one)
#   --grace S       seconds between asking processes to stop and killing them, once one has failed
#                   (default 5)
#
# Exit status: 0 if all succeeded, else the status of the first process that failed; the others are
# then stopped. SIGTERM and Ctrl-C are passed on to all processes, which save and stop; a second one
# is passed on too, and ends them at once.
#
# The processes see SRPO_COORDINATOR, SRPO_PROCESSES and SRPO_PROCESS_ID (srpo_jax/runtime/
# distributed.py), XLA_FLAGS with the number of devices, and JAX_PLATFORMS=cpu unless it is set.

set -uo pipefail
shopt -s extglob
# Every process becomes its own group: Ctrl-C reaches this script alone, which passes it on once.
set -m

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

usage() {
  sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
}

whole() { # NAME VALUE: checks that an option's value is a whole number above 0
  [[ $2 =~ ^[1-9][0-9]*$ ]] || fail "$1 is '$2': it must be a whole number above 0"
}

processes=2
devices=1
port=
grace=5
while [[ $# -gt 0 ]]; do
  case $1 in
    --processes | --devices | --port | --grace)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      whole "$1" "$2"
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      break
      ;;
    *) fail "unknown option '$1': the command comes after -- (see --help)" ;;
  esac
done
[[ $# -gt 0 ]] || fail "no command: launch/local.sh --processes 2 --devices 4 -- COMMAND ..."
command -v -- "$1" >/dev/null || fail "there is no command '$1'"

free_port() { # below the range from which the system itself takes ports
  local candidate
  while :; do
    candidate=$((20000 + RANDOM % 12000))
    (exec 3<>"/dev/tcp/127.0.0.1/$candidate") 2>/dev/null || break
  done
  echo "$candidate"
}

[[ -n $port ]] || port=$(free_port)
export SRPO_COORDINATOR=127.0.0.1:$port SRPO_PROCESSES=$processes
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
flags=${XLA_FLAGS:-}
flags=${flags//--xla_force_host_platform_device_count=+([0-9])/}
export XLA_FLAGS="$flags --xla_force_host_platform_device_count=$devices"
export PYTHONUNBUFFERED=1

prefix() { # NUMBER: puts it before each line of input; signals are for the program, not for this
  trap '' TERM INT
  local line
  while IFS= read -r line || [[ -n $line ]]; do
    printf '%s| %s\n' "$1" "$line"
  done
}

pids=()
send() { # SIGNAL: to all processes; those that have ended do not matter
  local pid
  for pid in "${pids[@]}"; do
    kill -s "$1" "$pid" 2>/dev/null
  done
}
end_all() {
  local pid
  for pid in "${pids[@]}"; do
    kill -s KILL -- "-$pid" 2>/dev/null
  done
}
trap 'send TERM' TERM
trap 'send INT' INT
trap end_all EXIT

for ((number = 0; number < processes; number++)); do
  SRPO_PROCESS_ID=$number "$@" > >(prefix "$number") 2> >(prefix "$number" >&2) &
  pids+=($!)
done

first=0    # status of the first process that failed
deadline=0 # when the others are killed; 0: none has failed
running=$processes
ended=()
while ((running > 0)); do
  for ((number = 0; number < processes; number++)); do
    [[ -z ${ended[number]:-} ]] || continue
    ! kill -0 "${pids[number]}" 2>/dev/null || continue
    wait "${pids[number]}"
    status=$?
    ended[number]=yes
    ((running--))
    if ((status != 0)); then
      if ((first == 0)); then
        first=$status
        deadline=$((SECONDS + grace))
        printf 'error: process %s failed with status %s\n' "$number" "$status" >&2
        send TERM
      fi
    fi
  done
  if ((deadline > 0 && SECONDS >= deadline)); then
    end_all
  fi
  sleep 0.1
done
# A group is empty when its last line of output is out.
deadline=$((SECONDS + grace))
for pid in "${pids[@]}"; do
  while kill -0 -- "-$pid" 2>/dev/null && ((SECONDS < deadline)); do
    sleep 0.05
  done
done
exit "$first"
