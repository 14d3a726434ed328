#!/bin/sh
#SBATCH --job-name=ucdr-bench
#SBATCH --array=1-16
#SBATCH --cpus-per-task=4
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --output=ucdr-bench-%A-%a.log
# sbatch docs/examples/slurm_array.sh [OPTIONS OF benchmarks.run]
# Each task runs one shard of the same plan into the same results folder, on a file system that all machines share. A task
# that is sent again repeats nothing that is done. For a GPU each: sbatch --gres=gpu:1 docs/examples/slurm_array.sh
exec python -m benchmarks.run --methods all --protocols all --seeds 0,1,2 --preset standard --out results/sweep \
    --jobs 1 --threads "${SLURM_CPUS_PER_TASK:-1}" "$@" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
