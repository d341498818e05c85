#!/usr/bin/env bash
# Extraction as a SLURM array: one shard for each task, and then one job that joins them.
#
#   export VIDEOS=/data/vggsound DATA=/data/vggsound-features
#   export CLIP=openai/clip-vit-base-patch32
#   export BEATS=/data/BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt
#   job=$(sbatch --parsable --array=0-7 scripts/slurm_extract.sh)
#   sbatch --dependency=afterok:$job --gpus=0 --export=ALL,MERGE=8 scripts/slurm_extract.sh
#
# A task that was killed, or ran out of time, goes on where it stopped when it is submitted again:
# sbatch --array=3 --export=ALL,SHARDS=8 scripts/slurm_extract.sh
#SBATCH --job-name=scav_extract
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-task=1
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --requeue
set -eu
what=(--videos "$VIDEOS" --out "$DATA")
if [ -n "${MERGE:-}" ]; then
    exec python -m scav_jax.extract "${what[@]}" --num-shards "$MERGE" --merge "$@"
fi
exec srun python -m scav_jax.extract "${what[@]}" \
    --backbone clip_beats --weights "clip=$CLIP" --weights "beats=$BEATS" --option dtype=bfloat16 \
    --num-shards "${SHARDS:-$SLURM_ARRAY_TASK_COUNT}" --shard-index "$SLURM_ARRAY_TASK_ID" "$@"
