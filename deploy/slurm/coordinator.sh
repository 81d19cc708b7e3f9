#!/bin/bash
# Coordinates a job's run: sbatch coordinator.sh JOB.toml [RUN]. It needs a core until the run has ended; workers are jobs
# of their own, by [workers] fleet = "slurm" in the job file.
#SBATCH --job-name=forebay
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --open-mode=append
# If its node is lost it is begun again, and goes on with the run of the same name.
#SBATCH --requeue
set -eu

job=$1
run=${2:-$(basename "$job" .toml)-$(date +%F)}
export FOREBAY_VOLUME="${FOREBAY_VOLUME:-/shared/forebay/volume}"
# In place of the shell, which would not hand on signals.
exec "${FOREBAY:-/shared/forebay/forebay}" run --id "$run" "$job"
