#!/usr/bin/env bash
# The benchmark, walking: synthetic raw volumes -> dataset -> training -> prediction -> scores -> a page to look at.
# Offline (but for the package registry), on two CPU cores, in under six minutes after installation. Safe to rerun.
#   bash scripts/demo.sh [FOLDER]      results go to FOLDER (default: the current folder)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_project ""
mkdir -p "${1:-.}"
cd "${1:-.}"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_XET=1

echo "1/6 build the dataset from the embedded source"
em-bench build --source phantom --out em-organelle-wild --overwrite

echo "2/6 load it with plain datasets"
python -c 'from datasets import load_dataset; print(load_dataset("em-organelle-wild"))'

echo "3/6 train a small U-Net"
em-bench train --model unet --preset quick --dataset em-organelle-wild --config wild --steps 900 --max-minutes 2 \
  --out demo/unet --overwrite

echo "4/6 predict whole images"
em-bench predict --checkpoint demo/unet --dataset em-organelle-wild --config wild --split test \
  --out demo/predictions --overwrite

echo "5/6 score"
em-bench score demo/predictions em-organelle-wild

echo "6/6 report"
em-bench report demo/predictions em-organelle-wild --out demo/report
