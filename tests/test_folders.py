"""Who may import whom (the table of the design), held by reading the imports."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGES = ("baselines", "dataset_builder", "em_bench_eval", "lpa")
ALLOWED = {
    "em_bench_eval": set(),
    "lpa": {"em_bench_eval"},
    "dataset_builder": {"em_bench_eval", "lpa"},
    "baselines": {"em_bench_eval", "lpa"},
}
LPA_SEES = {f"em_bench_eval.{name}" for name in ("schema", "errors", "volume_io", "alone", "whole_file")}
# em_bench_eval computes with these; files that read or write rows, pages or the evaluate module import more, and only
# inside functions (the evaluate module itself excepted: evaluate copies it out of the package)
LIGHT = {"numpy", "scipy"}
EVALUATE_MODULE = "em_bench_eval/em_bench_eval.py"
HEAVY = {"torch", "transformers", "accelerate", "datasets", "evaluate", "dask", "neuroglancer", "skimage", "zarr"}
COMMAND_FILES = (
    "baselines/cli_train.py",
    "baselines/cli_export.py",
    "baselines/cli_import.py",
    "baselines/cli_mismatch.py",
    "baselines/cli_predict.py",
    "baselines/cli_pretrain.py",
    "baselines/cli_sam.py",
    "lpa/cli.py",
    "dataset_builder/cli.py",
    "dataset_builder/cli_check.py",
    "dataset_builder/cli_cite.py",
    "dataset_builder/cli_fetch.py",
    "dataset_builder/cli_inspect.py",
    "dataset_builder/cli_publish.py",
    "em_bench_eval/cli.py",
    "em_bench_eval/cli_explain.py",
    "em_bench_eval/cli_leaderboard.py",
    "em_bench_eval/cli_push.py",
    "em_bench_eval/cli_submit.py",
    "em_bench_eval/cli_table.py",
    "em_bench_eval/cli_score.py",
    "em_bench_eval/cli_validate.py",
)


def imports(path: Path, *, top_level_only: bool) -> set[str]:
    tree = ast.parse(path.read_text())
    skipped: set[ast.AST] = set()
    if top_level_only:
        for node in ast.walk(tree):
            type_checking = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if type_checking or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                skipped.update(ast.walk(node))
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parent.name if node.level else ""
            found.add(".".join(part for part in (package, node.module) if part))
    return found


def modules(project: Path, package: str) -> list[Path]:
    return sorted((project / package).rglob("*.py"))


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_the_design_allows(project: Path, package: str) -> None:
    for path in modules(project, package):
        for name in imports(path, top_level_only=False):
            top = name.split(".")[0]
            if top in PACKAGES and top != package:
                assert top in ALLOWED[package], f"{path.relative_to(project)} imports {name}"
                assert package != "lpa" or name in LPA_SEES, f"{path.relative_to(project)} imports {name}"


def test_the_metric_computes_with_numpy_and_scipy_only(project: Path) -> None:
    for path in modules(project, "em_bench_eval"):
        if str(path.relative_to(project)) == EVALUATE_MODULE:
            continue
        tops = {name.split(".")[0] for name in imports(path, top_level_only=True)}
        compiled = {"numba"} if path.stem.endswith("_compiled") else set()  # imported only where numba is installed
        foreign = tops - set(sys.stdlib_module_names) - LIGHT - compiled - {"em_bench_eval"}
        assert not foreign, f"{path.relative_to(project)} imports {foreign} at its top"


@pytest.mark.parametrize("name", COMMAND_FILES)
def test_help_needs_no_heavy_library(project: Path, name: str) -> None:
    assert not {top.split(".")[0] for top in imports(project / name, top_level_only=True)} & HEAVY


def test_no_module_is_called_utils_or_types_and_none_is_huge(project: Path) -> None:
    for package in PACKAGES:
        for path in modules(project, package):
            assert path.stem not in ("utils", "types", "helpers", "common"), path
            assert len(path.read_text().splitlines()) <= 400, f"{path} is over 400 lines: find a seam"


def test_tests_and_scripts_are_no_packages(project: Path) -> None:
    assert not list((project / "tests").rglob("__init__.py"))
    assert not list((project / "scripts").rglob("__init__.py"))
