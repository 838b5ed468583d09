# Sourced by demo.sh and test.sh: makes the project's own environment, once, and puts it first on PATH.
#   EM_BENCH_VENV    where the environment goes (default: .venv in the project)
#   EM_BENCH_PYTHON  the Python to make it with (default: the first of python3, python3.11 ... that fits)
set -euo pipefail
project="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${EM_BENCH_VENV:-$project/.venv}"

fits() { "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${EM_BENCH_PYTHON:-python3 python3.11 python3.12 python3.13 python3.10}; do
    if fits "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "em-bench needs Python 3.10 to 3.13; set EM_BENCH_PYTHON to one" >&2
  return 1
}

install_project() {  # $1: extras, such as "[dev]"
  local wanted stamp="$venv/.installed$1"
  wanted="$(cat "$project/setup.cfg" "$project/pyproject.toml" "$project/constraints.txt" | cksum) $project"
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    if [ ! -x "$venv/bin/python" ]; then
      echo "making the environment in $venv"
      "$(find_python)" -m venv "$venv"
    fi
    echo "installing (some minutes the first time)"
    # torch by itself first: a CPU build that the machine offers must not be passed over for a newer one
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$project/constraints.txt" torch
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$project/constraints.txt" \
      --editable "$project$1"
    printf '%s' "$wanted" >"$stamp"
  fi
  export PATH="$venv/bin:$PATH"
}
