#!/usr/bin/env bash
#SBATCH --job-name=taskpgm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=08:00:00
#SBATCH --requeue
# Starts Ray on the nodes of the allocation, runs TaskPGM on it from the first node, and ends both.
#     sbatch examples/cluster/slurm.sh mix.yaml runs/first
# mix.yaml has `workers: {backend: ray}`. A requeued job goes on where it was: --out is on storage that all nodes see
# or on the first node's own disk if that is kept.
set -euo pipefail
config=$1 out=$2 port=${RAY_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
export RAY_ADDRESS=$address:$port RAY_USAGE_STATS_ENABLED=0

srun --nodes=1 --ntasks=1 -w "$head" ray start --head --node-ip-address="$address" --port="$port" \
    --num-cpus="$cpus" --num-gpus="$gpus" --include-dashboard=false --disable-usage-stats --block &
workers=$((SLURM_JOB_NUM_NODES - 1))
for _ in $(seq 60); do
    if ray status --address "$RAY_ADDRESS" > /dev/null 2>&1; then break; fi
    sleep 1
done
if ((workers > 0)); then
    srun --nodes="$workers" --ntasks="$workers" --exclude="$head" ray start --address="$RAY_ADDRESS" \
        --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block &
fi
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
taskpgm run "$config" --out "$out"
