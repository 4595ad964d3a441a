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
# mix.yaml has `workers: {backend: ray}`. A job that is started again goes on where it was: --out is on storage that all
# nodes see, or on the first node's own disk if that is kept.
set -euo pipefail
config=$1 out=$2 port=${RAY_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1} gpus=${SLURM_GPUS_ON_NODE:-0}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
on_first=(srun --nodes=1 --ntasks=1 --nodelist="$first" --cpus-per-task="$cpus")
# As Ray sees it: the name of a node is often a loopback address there.
address=$("${on_first[@]}" python -c 'import ray; print(ray.util.get_node_ip_address())')
export RAY_ADDRESS=$address:$port RAY_USAGE_STATS_ENABLED=0
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN # of this job alone; nodes share no file that has it
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')

ray_node=(ray start --num-cpus="$cpus" --num-gpus="$gpus" --disable-usage-stats --block)
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
"${on_first[@]}" env -u RAY_ADDRESS "${ray_node[@]}" \
    --head --node-ip-address="$address" --port="$port" --include-dashboard=false &
tries=0
until timeout 20 ray health-check --address "$RAY_ADDRESS" > /dev/null 2>&1; do
    if ((++tries == 60)); then
        echo "Ray's head on $first does not answer at $RAY_ADDRESS; set RAY_PORT if another job has the port." >&2
        exit 1
    fi
    sleep 1
done
others=$((SLURM_JOB_NUM_NODES - 1))
if ((others > 0)); then
    srun --nodes="$others" --ntasks="$others" --exclude="$first" --cpus-per-task="$cpus" \
        "${ray_node[@]}" --address="$RAY_ADDRESS" &
fi
taskpgm run "$config" --out "$out"
