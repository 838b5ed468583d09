"""Registries without a list to edit: the file name is the key.

A source is ``dataset_builder/sources/<name>.py``, a baseline is ``baselines/models/<name>.py``. Listing names reads the
folder and imports nothing; loading imports exactly one file.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from em_bench_eval.errors import unknown_name


def names(package: str) -> list[str]:
    """List the entries of a registry package, sorted, without importing any of them."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"no package {package!r}")
    folders = [Path(location) for location in spec.submodule_search_locations]
    found = {path.stem for folder in folders for path in folder.glob("*.py") if not path.stem.startswith("_")}
    return sorted(found)


def load(package: str, name: str, kind: str) -> ModuleType:
    """Import one entry; a misspelt name raises ``InputError`` with the closest known one."""
    known = names(package)
    if name not in known:
        raise unknown_name(kind, name, known)
    return importlib.import_module(f"{package}.{name}")
