#!/usr/bin/env bash
# Makes the environment and runs every check: formatting, types, tests. Arguments go to pytest.
#   bash scripts/test.sh [-k NAME ...]
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
install_project "[dev]"
cd "$project"
export OMP_NUM_THREADS=1
ruff check .
ruff format --check .
mypy
python -m pytest "$@"
