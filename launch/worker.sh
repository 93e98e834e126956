#!/usr/bin/env bash
# One worker's side of launch/tpu_vm.sh, which copies it there and calls it.
#
#   worker.sh setup [DATE] | start COMMAND [ARGUMENT ...] | resume | follow | status | stop
#
# A run outlives the connection that started it. It is kept in ~/srpo_jax_run: `command` (a script),
# `pid`, `log`, and `code` (the exit status) once it has ended; `log.TIME` are the logs of earlier starts.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=$HOME/srpo_jax_run
host=$(hostname)

fail() {
  printf 'error: host %s: %s\n' "$host" "$*" >&2
  exit 2
}

running() {
  [[ -s $run/pid && ! -e $run/code ]] && kill -0 "$(<"$run/pid")" 2>/dev/null
}

launch() {
  rm -f "$run/pid" "$run/code"
  [[ ! -s $run/log ]] || mv "$run/log" "$run/log.$(date -u -r "$run/log" +%Y%m%dT%H%M%SZ)"
  # The script replaces itself with the program, so that its process number is the program's.
  # shellcheck disable=SC2016
  setsid nohup bash -c 'bash "$1/command" >"$1/log" 2>&1; echo "$?" >"$1/code"' launch "$run" \
    </dev/null >/dev/null 2>&1 &
  for _ in {1..300}; do
    [[ ! -s $run/pid ]] || return 0
    sleep 0.1
  done
  fail "the command has not started within 30 s (is the disk full?)"
}

case ${1:-} in
  setup)
    cd "$root"
    # The system's Python is older than 3.11 on many TPU VMs; uv brings one where it must.
    python3 -m pip install --quiet --user uv
    python3 -m uv venv --quiet --allow-existing --python '>=3.11' .venv
    # Of a date, so that a TPU that takes another's place gets the same versions.
    python3 -m uv pip install --quiet --python .venv/bin/python ${2:+"--exclude-newer=$2"} -e '.[tpu,gcs]'
    echo "host $host: ready"
    ;;
  start)
    shift
    mkdir -p "$run"
    {
      printf 'echo $$ >%q\n' "$run/pid"
      printf 'cd %q\n' "$root"
      printf 'if [[ -f .venv/bin/activate ]]; then . .venv/bin/activate; fi\n'
      # Where the TPU cannot be opened, JAX ends, and does not compute on CPUs.
      printf 'export SRPO_DISTRIBUTED=cluster PYTHONUNBUFFERED=1 JAX_PLATFORMS=tpu,cpu\n'
      printf 'exec'
      printf ' %q' "$@"
      printf '\n'
    } >"$run/asked"
    if ! running; then
      mv "$run/asked" "$run/command"
      launch
    elif cmp -s "$run/asked" "$run/command"; then # the connection that started it was lost
      printf 'host %s: this run is going on already\n' "$host"
    else
      fail "another run is going on (see status): stop it first"
    fi
    ;;
  resume)
    [[ -f $run/command ]] || fail "nothing has been run here: use run"
    running || launch
    ;;
  follow)
    [[ -s $run/pid ]] || fail "nothing has been run here: use run"
    tail -n +1 -f --pid="$(<"$run/pid")" "$run/log" | sed -u "s/^/$host| /"
    for _ in {1..20}; do
      [[ ! -s $run/code ]] || exit "$(<"$run/code")"
      sleep 0.1
    done
    fail "the run was killed: see status"
    ;;
  status)
    if running; then
      state=running
    elif [[ -s $run/code ]]; then
      state="ended with status $(<"$run/code")"
    elif [[ -s $run/pid ]]; then
      state=killed
    else
      state='nothing has been run'
    fi
    last=
    [[ ! -f $run/log ]] || last=$(tail -n 1 "$run/log")
    printf 'host %s: %s%s\n' "$host" "$state" "${last:+: $last}"
    ;;
  stop)
    running || fail "no run is going on"
    kill -s TERM "$(<"$run/pid")"
    echo "host $host: asked to save and stop"
    ;;
  *) fail "worker.sh: unknown action '${1:-}'" ;;
esac
