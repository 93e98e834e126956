#!/usr/bin/env bash
# The job of launch/slurm.sh, which SLURM starts on the first node: COMMAND on every GPU.
#
#   slurm_job.sh TRIES COMMAND [ARGUMENT ...]
#
# SIGUSR2 comes when the job's time is almost over (and at a preemption, where the cluster has
# PreemptParameters=send_user_signal): the command is asked to save, and the job goes back to the queue.
# SIGUSR1 (launch/slurm.sh stop) asks it to save, and ends the job. At a preemption, or when the job is
# cancelled, SLURM itself asks the command; one that has saved and ended (130; 143 where there was nothing to
# save) is put back, unless it is cancelled.
# A command that fails is started again on the same nodes, until it has failed TRIES times. After the failure
# of a node, --requeue of sbatch brings the job back.

set -uo pipefail

tries=$1
shift
asked= # why the command was asked to save: queue or stop
# SRPO_DISTRIBUTED=cluster: JAX finds the other processes by SLURM's variables. With JAX_PLATFORMS it ends
# where it finds no GPU, or no driver for it; without, it would compute on CPUs.
export SRPO_DISTRIBUTED=cluster PYTHONUNBUFFERED=1 JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
# srun does not read what sbatch was told of cores.
[[ -z ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK

# shellcheck disable=SC2329 # called by the traps
save() { # WHY: all processes are asked by scancel, as srun kills them (SIGKILL) when it gets a SIGTERM
  asked=$1
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap 'save queue' USR2
trap 'save stop' USR1
trap : TERM # of SLURM, which sends it to the command, too

start() { # COMMAND ...: once on each GPU; sets `code`
  local steps
  # Not killed at the first process that ends: it may have saved before the others have.
  srun --kill-on-bad-exit=0 --wait=600 "$@" &
  steps=$!
  while kill -0 "$steps" 2>/dev/null; do # `wait` returns at a signal, too
    wait "$steps"
  done
  wait "$steps"
  code=$?
}

for ((failed = 1; ; failed++)); do
  start "$@"
  [[ -z $asked ]] || break
  ((code != 0 && code != 2 && code != 130 && code != 143 && failed < tries)) || break
  echo "status $code, failure $failed of $tries: started again"
done
case $asked:$code in
  stop:* | *:0 | *:2) ;;
  queue:* | *:130 | *:143) # `incomplete` leaves a job cancelled that is being cancelled
    scontrol requeue incomplete "$SLURM_JOB_ID" && echo "asked to save; back to the queue"
    ;;
esac
exit "$code"
