#!/usr/bin/env bash
# Makes the environment of the extra `sam` and runs the tests that need it. Not part of .ci: it installs some 200
# packages (7 GB with the CUDA build of torch). Arguments go to pytest.
#   bash scripts/test_sam.sh [-k NAME ...]
#   EM_BENCH_SAM_VENV         where the environment goes (default: .venv-sam in the project)
#   EM_BENCH_SAM_CONSTRAINTS  versions to install (default: scripts/sam_constraints.txt, those the tests ran with, on
#                             Python 3.11; elsewhere none but those of torch and torchvision)
export EM_BENCH_VENV="${EM_BENCH_SAM_VENV:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv-sam}"
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
# torch and torchvision must come from the same build, or torchvision does not import. A local build such as
# 2.13.0+cpu satisfies ==2.13.0 and goes first, so torch is asked for by ===, which means this very string.
torch="torch===2.13.0" torchvision="torchvision===0.28.0"
python="$venv/bin/python"
if [ ! -x "$python" ]; then
  echo "making the environment in $venv"
  "$(find_python)" -m venv "$venv"
fi
versions=()
if "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || [ -n "${EM_BENCH_SAM_CONSTRAINTS:-}" ]; then
  versions=(--constraint "${EM_BENCH_SAM_CONSTRAINTS:-$project/scripts/sam_constraints.txt}")
fi
wanted="$(cat "$project/setup.cfg" "$project/scripts/sam_constraints.txt" "${BASH_SOURCE[0]}" | cksum) $project"
if [ "$(cat "$venv/.installed[sam]" 2>/dev/null)" != "$wanted" ]; then
  echo "installing (some minutes, 7 GB)"
  pip=("$python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" "$torch" "$torchvision"
  # build isolation is left on: setuptools>=77 comes from there
  "${pip[@]}" "${versions[@]}" "$torch" "$torchvision" --editable "$project[sam]" \
    hypothesis pytest pytest-timeout connected-components-3d
  "$python" -c 'import torchvision, segment_anything, micro_sam.instance_segmentation'
  printf '%s' "$wanted" >"$venv/.installed[sam]"
fi
cd "$project"
export OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen
exec "$python" -m pytest tests/test_sam_extra.py tests/test_micro_sam.py tests/test_sam.py tests/test_sam_grid.py tests/test_sam_weights.py "$@"
