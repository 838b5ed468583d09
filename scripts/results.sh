#!/usr/bin/env bash
# The rows of docs/results.md: train each baseline on one source, predict the test split of all, score.
#   bash scripts/results.sh DATASET OUT [MODELS] [SOURCES] [SEEDS]
# DATASET: em-bench build --source lucchipp --source vnc_sstem --source hela_sbfsem --raw RAW --out DATASET
# What OUT already holds is not repeated; an interrupted training goes on. One row: one model, one source, one seed.
# PRESET and DEVICE_NOTE in the environment: another preset than quick, and what to call the machine in the table.
set -euo pipefail
dataset="$1" out="$2"
models="${3:-unet unet_r50 upernet transunet mask2former}"
sources="${4:-lucchipp vnc_sstem}"
seeds="${5:-0 1}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

for seed in $seeds; do
  for source in $sources; do
    for model in $models; do
      run="$out/$model-$source-$seed"
      em-bench train --model "$model" --preset "${PRESET:-quick}" --dataset "$dataset" --config wild \
        --source "$source" --seed "$seed" --out "$run/checkpoint" --resume
      if [ ! -f "$run/slice/score.json" ]; then
        case "$model" in *3d) config=volumes ;; *) config=wild ;; esac # a 3D model sees volumes, cut into rows afterwards
        em-bench predict --checkpoint "$run/checkpoint" --dataset "$dataset" --config "$config" --split test \
          --out "$run/volume"
        em-bench score "$run/volume" "$dataset" --config wild --split test
        mkdir -p "$run/slice"
        em-bench score "$run/volume" "$dataset" --config wild --split test --reference-ids slice \
          --out "$run/slice/score.json"
      fi
    done
  done
done
python "$here/results_table.py" "$out" --dataset "$dataset"
