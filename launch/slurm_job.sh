#!/usr/bin/env bash
# The job of launch/slurm.sh, which SLURM starts on the first node: COMMAND on every GPU.
#
#   slurm_job.sh COMMAND [ARGUMENT ...]
#
# SIGTERM comes when the job's time is almost over, or it is preempted: the command is asked to save, and
# the job goes back to the queue. SIGUSR1 (launch/slurm.sh stop) asks it to save, and ends the job.
# --requeue of sbatch brings the job back after the failure of a node.

set -uo pipefail

again=
# SRPO_DISTRIBUTED=cluster: JAX finds the other processes by SLURM's variables.
export SRPO_DISTRIBUTED=cluster PYTHONUNBUFFERED=1

srun --kill-on-bad-exit=1 "$@" &
steps=$!
trap 'again=yes; kill -s TERM "$steps"' TERM
trap 'kill -s TERM "$steps"' USR1
wait "$steps"
code=$?
while kill -0 "$steps" 2>/dev/null; do # `wait` returns at a signal, the steps are still saving
  wait "$steps"
  code=$?
done
if [[ -n $again ]] && ((code != 0 && code != 2)); then
  echo "saved; back to the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
