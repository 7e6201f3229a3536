#!/bin/bash
# Slurm: two nodes with eight GPUs each, one torchrun on each node, one process on each GPU.
#
#     sbatch docs/cluster/slurm.sh my.txt --tokenizer gpt2 --preset gpt2_small --batch-size 512 --precision bfloat16
#
# OUT must be a folder that all nodes see. A job that ends early, or is requeued, goes on where it was.
#SBATCH --job-name=gpt
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

exec srun torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc_per_node="${SLURM_GPUS_ON_NODE:-8}" \
    --max-restarts=3 \
    --rdzv_id="$SLURM_JOB_ID" \
    --rdzv_backend=c10d \
    --rdzv_endpoint="$first:${PORT:-29500}" \
    -m gpt train "$@" --out "${OUT:-runs/cluster}" --resume
