"""The wheel holds exactly the four packages, complete."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PACKAGES = {"baselines", "dataset_builder", "em_bench_eval", "lpa"}


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Build from a copy of the tracked kinds of files, without network: setuptools comes from this environment."""
    copy = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "scripts", "tests"):
        shutil.copytree(project / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = out.iterdir()
    return zipfile.ZipFile(path)


def test_top_level_names_are_the_four_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_every_module_and_data_file_is_in_the_wheel(wheel: zipfile.ZipFile, project: Path) -> None:
    kinds = (".py", ".html", ".md", ".typed", ".txt", ".json")
    expected = {
        str(path.relative_to(project))
        for package in PACKAGES
        for path in (project / package).rglob("*")
        if path.suffix in kinds and "__pycache__" not in path.parts
    } | {f"{package}/py.typed" for package in PACKAGES}
    assert expected <= set(wheel.namelist()), sorted(expected - set(wheel.namelist()))


def test_the_command_is_declared(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    points = configparser.ConfigParser()
    points.read_string(wheel.read(name).decode())
    assert points["console_scripts"]["em-bench"] == "em_bench_eval.cli:main"


def test_licence_travels(wheel: zipfile.ZipFile) -> None:
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
