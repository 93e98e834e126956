#!/usr/bin/env bash
# The job of launch/slurm.sh, which SLURM starts on the first node: COMMAND on every GPU.
#
#   slurm_job.sh COMMAND [ARGUMENT ...]
#
# SIGTERM comes when the job's time is almost over: the command is asked to save, and the job goes back to
# the queue. SIGUSR1 (launch/slurm.sh stop) asks it to save, and ends the job. At a preemption SLURM itself
# asks the command (or this script, where the cluster has PreemptParameters=send_user_signal).
# --requeue of sbatch brings the job back after that, and after the failure of a node.

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
  # A job that is being cancelled gets SIGTERM too: `incomplete` leaves it cancelled.
  scontrol requeue incomplete "$SLURM_JOB_ID" && echo "asked to save; back to the queue"
fi
exit "$code"
