#!/usr/bin/env bash
# Prints, as NAME=VALUE to export, the flags of XLA that suit a chip: the one place where they stand.
#
#   launch/xla_flags.sh v4 | v5e | v5p | v6e | gpu | cpu
#
# TPU: flags of the TPU's compiler go into LIBTPU_INIT_ARGS. All of them are about one thing: with
# mesh.fsdp the weights are gathered and gradients scattered in every layer, and that traffic is to go on
# while the cores compute:
#   async_collective_fusion (and fuse_all_gather, multiple_steps): a gather is cut into steps that are
#     fused with the matrix products beside it;
#   overlap_compute_collective_tc: computing and collectives may run at once on a tensor core;
#   enable_async_all_gather: gathers are started early and awaited late.
# v5p and v4 have two cores that act as one chip; there the compiler's megacore fusion of gathers would
# undo the first point, and is off.
# GPU: the latency hiding scheduler starts collectives early too; the pipelined passes move those of the
# next layer into this one. These go into XLA_FLAGS.
#
# Names and values were checked against libtpu 0.0.42 and jaxlib 0.10.2, which take all of them. The first
# two are the TPU compiler's defaults by now ("XLA Flags Guidance"). What they bring has not been measured
# by this project: compare `step_seconds` of a short run with and without.

set -euo pipefail

overlap=(
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  --xla_tpu_overlap_compute_collective_tc=true
  --xla_enable_async_all_gather=true
)
case ${1:-} in
  v5e | v6e) printf 'LIBTPU_INIT_ARGS=%s\n' "${overlap[*]}" ;;
  v4 | v5p) printf 'LIBTPU_INIT_ARGS=%s\n' "${overlap[*]} --xla_tpu_megacore_fusion_allow_ags=false" ;;
  gpu)
    printf 'XLA_FLAGS=%s\n' "--xla_gpu_enable_latency_hiding_scheduler=true \
--xla_gpu_enable_pipelined_all_gather=true --xla_gpu_enable_pipelined_reduce_scatter=true"
    ;;
  cpu) ;;
  -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0" ;;
  *)
    printf "error: no flags are known for '%s': one of v4, v5e, v5p, v6e, gpu, cpu\n" "${1:-}" >&2
    exit 2
    ;;
esac
