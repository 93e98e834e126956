#!/usr/bin/env bash
# Runs a program on the GPUs of a SLURM cluster, and again when the job was preempted or its time is over.
#
#   launch/slurm.sh submit --name NAME [--nodes N] [--gpus G] [OPTION ...] -- COMMAND [ARGUMENT ...]
#   launch/slurm.sh resume | status | logs | stop | delete --name NAME
#
#   submit   queues the job; the command starts once on each GPU. When the job's time is almost over, or
#            it is preempted (where the cluster's PreemptMode is REQUEUE), the command is asked to save, and
#            the job goes back to the queue; it then goes on from its last checkpoint: its --workdir is a
#            folder that all nodes see, or gs://… A command that fails is started again on the same nodes, a
#            mistake of the user's (status 2) is not
#   resume   submits the last job of this name once more, after a failure that was not a preemption
#   status   its place in the queue
#   logs     output of the job, of all its starts
#   stop     asks the command to save, and cancels the job
#   delete   cancels the job at once
#
#   --nodes N, --gpus G   G of each node; default 1 and 8
#   --cpus-per-task C     cores of each GPU's process: as many as a node has for a GPU (SLURM gives it one)
#   --time T              at most, such as 24:00:00; --mem M, --exclusive, --partition P, --account A, --qos Q,
#                         --constraint C, --reservation R: as for sbatch
#   --notice SECONDS      between the request to save and the end of the job's time (default 300)
#   --tries N             of a command that fails on nodes that are still there (default 3)
#   --dry-run             prints the commands, and runs nothing
#
# The log, slurm-NAME.log, and the job, slurm-NAME.command, are kept in the folder where submit is called.

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"
actions=(submit resume status logs stop delete)
valued=(name nodes gpus cpus-per-task mem time partition account qos constraint reservation notice tries)
switches=(exclusive)
name='' nodes='' gpus='' notice='' tries='' # read_options sets them
read_options "$@"
needs name "of the job"
nodes=${nodes:-1} gpus=${gpus:-8} notice=${notice:-300} tries=${tries:-3}
[[ $action == logs ]] || tool sbatch "call this on a login node of the cluster"
log=slurm-$name.log kept=slurm-$name.command

case $action in
  submit)
    [[ ${#command[@]} -gt 0 ]] || fail "submit needs a command after --"
    given cpus-per-task mem time partition account qos constraint reservation exclusive
    flags=$(bash "$here/xla_flags.sh" gpu)
    job=(env "$flags" sbatch "--job-name=$name" "--nodes=$nodes" "--gpus-per-node=$gpus"
      "--ntasks-per-node=$gpus" --requeue --open-mode=append "--output=$log"
      "--signal=B:USR2@$notice" "${chosen[@]}" "$here/slurm_job.sh" "$tries" "${command[@]}")
    act "${job[@]}"
    [[ -n $dry_run ]] || words "${job[@]}" >"$kept"
    ;;
  resume)
    [[ -n $dry_run || -f $kept ]] || fail "$kept is not here: resume where submit was called"
    act bash "$kept"
    ;;
  status) act squeue "--name=$name" --states=all ;;
  logs) act tail -n +1 -F "$log" ;;
  stop) act scancel "--name=$name" --batch --signal=USR1 ;;
  delete) act scancel "--name=$name" ;;
esac
