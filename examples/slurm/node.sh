#!/usr/bin/env bash
# One node's part of a stage: srun starts this on every node (IFM_LAUNCH in repro.sbatch), with the stage's own words.
set -euo pipefail
: "${IFM_MASTER:?the name of node 0}" "${SLURM_NNODES:?set by Slurm}" "${SLURM_NODEID:?set by srun}"
gpus=${IFM_GPUS:-${SLURM_GPUS_ON_NODE:-1}}
exec accelerate launch --config_file configs/accelerate/two-nodes.yaml \
    --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * gpus))" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$IFM_MASTER" --main_process_port "${IFM_PORT:-29500}" "$@"
