#!/usr/bin/env bash
# Runs a program on TPUs of a GKE cluster, as a JobSet: one slice or several.
#
#   launch/gke.sh create --cluster C --location L --chip CHIP --topology T [--slices N] [OPTION ...]
#   launch/gke.sh submit --name NAME --image IMAGE --chip CHIP --topology T [OPTION ...] -- COMMAND ...
#   launch/gke.sh resume --name NAME … -- COMMAND ...    as submit, once its restarts are used up
#   launch/gke.sh status | logs | stop --name NAME
#   launch/gke.sh delete --cluster C --location L --chip CHIP --topology T [--slices N]
#
#   create   makes a node pool for each slice, in a cluster that is there. The pods share the nodes' network,
#            and with it the nodes' service account, which must be allowed to write to the bucket
#   submit   hands the JobSet to the cluster. After a preemption, or a failure, the JobSet starts all its
#            pods again, and the command goes on from its last checkpoint: its --workdir is gs://…
#            A mistake of the user's (status 2) is not tried again
#   stop     deletes the JobSet: the pods are asked to save, and have --grace seconds
#   delete   deletes the node pools
#
#   --zone Z             where the nodes are, one zone that has the chips: create (and --xpk); the location
#                        may be a region
#   --chip CHIP          v4, v5e, v5p or v6e
#   --topology T         of one slice, such as 4x4
#   --slices N           default 1; the command's mesh.replica must be a multiple of it. Several slices must
#                        have several hosts each
#   --image IMAGE        with this repository installed (see docs/launch.md)
#   --restarts N         default 100
#   --grace SECONDS      default 300
#   --service-account S  of Kubernetes
#   --secret S           of Kubernetes, whose entries the command finds in its environment (keys of s3://,
#                        W&B, the hub): submit
#   --spot               nodes that may be taken away: create and submit
#   --reservation R      create on reserved capacity
#   --chips-per-host N   default 4
#   --xpk                submit by `xpk workload create`, to a cluster that xpk made (needs --cluster and
#                        --type, the accelerator type)
#   --manifest           prints the JobSet of a submit, and does nothing
#   --dry-run            prints the commands, and runs nothing

set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=launch/common.sh
. "$here/common.sh"
actions=(create submit resume status logs stop delete)
valued=(name cluster location chip topology slices image restarts grace service-account secret
  reservation chips-per-host type project zone)
switches=(spot xpk manifest)
# What read_options sets.
name='' cluster='' location='' zone='' chip='' topology='' slices='' image='' restarts='' grace=''
service_account='' secret='' reservation='' chips_per_host='' type='' spot='' xpk='' manifest='' project=''
read_options "$@"
slices=${slices:-1} restarts=${restarts:-100} grace=${grace:-300} chips_per_host=${chips_per_host:-4}

known_chip() { # sets `accelerator`, a node's label, and `machine`, its type
  case $chip in
    v4) accelerator=tpu-v4-podslice machine=ct4p-hightpu-${chips_per_host}t ;;
    v5e) accelerator=tpu-v5-lite-podslice machine=ct5lp-hightpu-${chips_per_host}t ;;
    v5p) accelerator=tpu-v5p-slice machine=ct5p-hightpu-${chips_per_host}t ;;
    v6e) accelerator=tpu-v6e-slice machine=ct6e-standard-${chips_per_host}t ;;
    *) fail "--chip is '$chip': one of v4, v5e, v5p, v6e" ;;
  esac
}

count_hosts() { # sets `hosts` of a slice
  [[ $topology =~ ^[0-9]+(x[0-9]+)*$ ]] || fail "--topology is '$topology': such as 4x4"
  local chips=$((${topology//x/*}))
  ((chips % chips_per_host == 0)) ||
    fail "--topology=$topology has $chips chips, no multiple of --chips-per-host=$chips_per_host"
  hosts=$((chips / chips_per_host))
  ((hosts > 1 || slices == 1)) ||
    fail "--slices=$slices of one host each (--topology=$topology): only slices of several are joined"
}

json() { # WORD ...: a JSON array of texts
  local word list=''
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//$'\n'/\\n}
    list+=", \"${word//$'\t'/\\t}\""
  done
  printf '[%s]' "${list:2}"
}

jobset() {
  local flags account='' node='' from=''
  flags=$(bash "$here/xla_flags.sh" "$chip")
  [[ -z $service_account ]] || account=$'\n            '"serviceAccountName: $service_account"
  [[ -z $secret ]] || from=$'\n              '"envFrom: [{secretRef: {name: $secret}}]"
  [[ -z $spot ]] || node='
              cloud.google.com/gke-spot: "true"
            tolerations:
            - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}'
  cat <<YAML
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
  annotations:
    alpha.jobset.sigs.k8s.io/exclusive-topology: cloud.google.com/gke-nodepool
spec:
  failurePolicy:
    maxRestarts: $restarts
    rules:
    - name: mistake
      action: FailJobSet
      onJobFailureReasons: [PodFailurePolicy]
  replicatedJobs:
  - name: slice
    replicas: $slices
    template:
      spec:
        parallelism: $hosts
        completions: $hosts
        backoffLimit: 0
        podFailurePolicy:
          rules:
          - action: FailJob
            onExitCodes: {containerName: srpo, operator: In, values: [2]}
        template:
          spec:
            restartPolicy: Never
            hostNetwork: true
            dnsPolicy: ClusterFirstWithHostNet
            terminationGracePeriodSeconds: $grace$account
            nodeSelector:
              cloud.google.com/gke-tpu-accelerator: $accelerator
              cloud.google.com/gke-tpu-topology: $topology$node
            containers:
            - name: srpo
              image: $image
              command: $(json "${command[@]}")$from
              env:
              - {name: SRPO_DISTRIBUTED, value: cluster}
              - {name: PYTHONUNBUFFERED, value: "1"}
              - {name: JAX_PLATFORMS, value: "tpu,cpu"}
              - {name: ${flags%%=*}, value: "${flags#*=}"}
              resources:
                requests: {google.com/tpu: $chips_per_host}
                limits: {google.com/tpu: $chips_per_host}
YAML
}

submit() {
  needs name "of the JobSet"
  needs image "with this repository installed"
  [[ ${#command[@]} -gt 0 ]] || fail "$action needs a command after --"
  if [[ -n $xpk ]]; then
    needs cluster "where xpk is to run it"
    needs type "the accelerator type, such as v5litepod-16"
    [[ -z $secret ]] || fail "--secret belongs to the JobSet that this script writes: not with --xpk"
    tool xpk "pip install xpk"
    given project zone
    # xpk restarts after 127 and more, not after 1. `exec`: the request to save reaches the program itself.
    act xpk workload create --cluster "$cluster" --workload "$name" --tpu-type="$type" \
      --num-slices="$slices" --docker-image="$image" --max-restarts="$restarts" \
      --restart-on-exit-codes=1 --termination-grace-period-seconds="$grace" "${chosen[@]}" \
      --command="exec env SRPO_DISTRIBUTED=cluster JAX_PLATFORMS=tpu,cpu $(words "${command[@]}")"
    return
  fi
  needs chip "such as v5e"
  needs topology "such as 4x4"
  known_chip
  count_hosts
  if [[ -n $manifest ]]; then
    jobset
  elif [[ -n $dry_run ]]; then
    printf "kubectl apply -f - <<'YAML'\n%s\nYAML\n" "$(jobset)"
  else
    tool kubectl "install it with: gcloud components install kubectl"
    jobset | kubectl apply -f -
  fi
}

pools() { # create or delete
  needs cluster "that is there"
  needs location "its zone or region"
  needs chip "such as v5e"
  needs topology "such as 4x4"
  known_chip
  count_hosts
  tool gcloud "install the Google Cloud CLI"
  local slice failed=0 where=("--cluster=$cluster" "--location=$location") how=()
  [[ -z $project ]] || where+=("--project=$project")
  [[ -z $zone ]] || how+=("--node-locations=$zone")
  # A topology makes a slice of several nodes; of one, the machine's type says it all.
  ((hosts == 1)) || how+=("--tpu-topology=$topology")
  [[ -z $spot ]] || how+=(--spot)
  [[ -z $reservation ]] ||
    how+=(--reservation-affinity=specific "--reservation=$reservation")
  for ((slice = 0; slice < slices; slice++)); do
    if [[ $action == create ]]; then
      act gcloud container node-pools create "srpo-$chip-$topology-$slice" "${where[@]}" \
        "--machine-type=$machine" "--num-nodes=$hosts" --scopes=cloud-platform "${how[@]}"
    else
      # One that is not there is no reason to keep, and pay for, the others.
      act gcloud container node-pools delete "srpo-$chip-$topology-$slice" "${where[@]}" --quiet || failed=$?
    fi
  done
  return "$failed"
}

case $action in
  create | delete)
    pools
    exit
    ;;
esac
needs name "of the JobSet"
[[ -n $xpk || -n $manifest ]] || tool kubectl "install it with: gcloud components install kubectl"
case $action in
  submit) submit ;;
  resume)
    if [[ -n $xpk ]]; then
      needs cluster "where xpk is to run it"
      given project zone
      act xpk workload delete --cluster "$cluster" --workload "$name" "${chosen[@]}"
    else
      act kubectl delete jobset "$name" --ignore-not-found --wait
    fi
    submit
    ;;
  status)
    act kubectl get jobset "$name"
    act kubectl get pods "--selector=jobset.sigs.k8s.io/jobset-name=$name"
    ;;
  logs)
    act kubectl logs --follow --prefix --max-log-requests=256 \
      "--selector=jobset.sigs.k8s.io/jobset-name=$name"
    ;;
  stop) act kubectl delete jobset "$name" ;;
esac
