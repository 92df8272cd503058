#!/usr/bin/env bash
# One study on a Slurm cluster: a Ray head and its workers on the nodes of this job, the study on the head's.
#   sbatch --nodes=4 --gpus-per-node=8 slurm.sh runs/paper-1b.yaml --root /shared/store [options of infini-study run]
# Submitted again it goes on where it stopped. The package is installed where infini-study is found on every node, and
# --root is on storage that all of them share.
#SBATCH --job-name=infini-study
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --exclusive
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
set -euo pipefail

if [ $# -lt 1 ]; then
  echo "usage: sbatch slurm.sh STUDY [options of infini-study run]" >&2
  exit 2
fi
study=$1
shift

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))
scratch=${INFINI_STUDY_SLURM_DIR:-$HOME/.infini-study}/$SLURM_JOB_ID # shared by the nodes
umask 077                                                           # the token is for this user alone
mkdir -p "$scratch"
trap 'rm -rf "$scratch"; jobs -p | xargs -r kill 2>/dev/null || true' EXIT

head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' >"$scratch/token"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$scratch/token RAY_USAGE_STATS_ENABLED=0
export RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
gpus=${SLURM_GPUS_ON_NODE:-0}

# Each node's share of the job, as Ray's own resources; /tmp is the node's, its path short enough for Ray's sockets.
common=(--block "--num-cpus=$SLURM_CPUS_PER_TASK" "--num-gpus=$gpus" --disable-usage-stats)
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  ray start --head "--node-ip-address=$address" "--port=$port" "--temp-dir=/tmp/ray$SLURM_JOB_ID" "${common[@]}" &
others=$((${#nodes[@]} - 1))
if [ "$others" -gt 0 ]; then
  sleep 15 # the head's port must answer first
  srun --overlap "--nodes=$others" "--ntasks=$others" --ntasks-per-node=1 --exclude="$head" \
    ray start "--address=$address:$port" "${common[@]}" &
fi

# In the background, so that Slurm's notice (TERM, two minutes before the end) reaches the study and it can stop well.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
  infini-study run "$study" --address "$address:$port" --no-progress "$@" &
run=$!
trap 'kill -TERM "$run"' TERM
code=0
wait "$run" || code=$?
while kill -0 "$run" 2>/dev/null; do # a notice interrupts the wait; the study still ends by itself
  code=0
  wait "$run" || code=$?
done
exit "$code"
