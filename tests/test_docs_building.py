"""docs/building.md: its commands, spec and Python run as written, and it says something about every key and option."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path
from typing import get_args

import fake
import h5py
import numpy as np
import pytest
import tifffile
import yaml
from scipy import ndimage

from dataset_builder.label_values import TARGETS
from dataset_builder.quality_checks import CHECKS
from dataset_builder.spec import SOURCE_KEYS, VOLUME_KEYS, Intensity
from em_bench_eval.cli import main
from em_bench_eval.schema import AnnotationType

LABEL_KEYS = ("path", "box", "values", "instances", "rest")
SHAPES = {"mouse1": (64, 80, 80), "mouse2": (64, 128, 64), "mouse3": (24, 80, 80)}  # voxels (z, y, x)


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return (project / "docs" / "building.md").read_text()


def block(text: str, language: str) -> str:
    (only,) = re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)
    return str(only)


def cell(shape: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids 1, 2, ... of scattered balls, uint16, and a gray image in which they are dark, uint8."""
    rng = np.random.default_rng(seed)
    centres = np.ones(shape, bool)
    for centre in itertools.product(*(range(min(12, edge // 2), edge, 22) for edge in shape)):
        centres[tuple(np.add(centre, rng.integers(-2, 3, 3)).clip(0, np.array(shape) - 1))] = False
    inside = ndimage.distance_transform_edt(centres) < 8
    ids = ndimage.label(inside)[0].astype(np.uint16)
    return ids, (170 - 70.0 * inside + rng.normal(0, 12, shape)).clip(0, 255).astype(np.uint8)


def write_files_of_the_spec(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write what the spec of the page names; return ids and gray image of each file."""
    made = {name: cell(shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    (folder / "mouse1" / "raw").mkdir(parents=True)
    ids, gray = made["mouse1"]
    for z, plane in enumerate(gray):
        tifffile.imwrite(folder / "mouse1" / "raw" / f"{z:04d}.tif", plane)
    tifffile.imwrite(folder / "mouse1" / "mito.tif", np.where(ids <= 20, ids, 0))
    # 1 and 20 are mitochondria in mito.tif too, which comes first
    classes = np.select([(ids > 24) | (ids == 1), ids >= 20], [1, 4], 0).astype(np.uint8)
    classes[:, :, 76:] = 255
    tifffile.imwrite(folder / "mouse1" / "classes.tif", classes)
    ids, gray = made["mouse2"]
    with h5py.File(folder / "mouse2.h5", "w") as file:
        file["image"] = 5000 - np.round(gray * (4000 / 255)).astype(np.uint16)
        file["ids"] = ids
    means = {int(id_): "other:peroxisomes" if id_ % 5 == 0 else "mito" for id_ in np.unique(ids[ids > 0])}
    (folder / "ids.csv").write_text("id,organelle\n" + "".join(f"{id_},{what}\n" for id_, what in means.items()))
    ids, gray = made["mouse3"]
    tifffile.imwrite(folder / "mouse3.tif", gray)
    tifffile.imwrite(folder / "mouse3-classes.tif", np.where(ids == 3, 3, ids > 0).astype(np.uint8))
    seen = np.ones(gray.shape, np.uint8)
    seen[:, :, :8] = 0
    tifffile.imwrite(folder / "mouse3-mask.tif", seen)
    return made


def test_the_page_runs_as_written_and_the_spec_gives_what_it_says(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets import load_dataset

    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    monkeypatch.chdir(tmp_path)
    made = write_files_of_the_spec(tmp_path)
    fake.lucchipp(Path("raw"))
    Path("spec.yaml").write_text(block(page, "yaml"))
    commands = [shlex.split(line, comments=True) for line in block(page, "bash").splitlines()]
    assert all(words[0] == "em-bench" for words in commands)
    for words in commands:
        assert main(words[1:]) == 0, words
    assert "FILL_IN" in Path("draft.yaml").read_text()
    assert Path("our-data/quality.html").is_file()

    listed = {row["volume_id"]: row for row in load_dataset("our-data", "volumes", split="volumes")}
    ours = {name.removeprefix("our_lab-"): row for name, row in listed.items() if row["source"] == "our_lab"}
    assert {name: row["extras"] for name, row in ours.items()} == {
        "mouse1": ["lysosomes"],
        "mouse2-a": ["peroxisomes"],
        "mouse2-b": ["peroxisomes"],
        "mouse3": ["vesicles"],
    }
    stored = {name: zarr.open(f"our-data/{row['zarr']}", mode="r") for name, row in ours.items()}
    ids, gray = made["mouse1"]
    np.testing.assert_array_equal(stored["mouse1"]["s0"][:], gray)
    np.testing.assert_array_equal(stored["mouse1"]["labels/semantic/s0"][:] == 1, (ids > 0) & (ids <= 20))
    seen = np.arange(80) < 76
    np.testing.assert_array_equal(stored["mouse1"]["labels/semantic/s0"][:] == 2, (ids > 24) & seen)
    np.testing.assert_array_equal(
        stored["mouse1"]["labels/extra/lysosomes/s0"][:] > 0, (ids >= 20) & (ids <= 24) & seen
    )
    ids, gray = (array[24:64, 64:128] for array in made["mouse2"])
    np.testing.assert_allclose(stored["mouse2-b"]["s0"][:], gray, atol=1)
    np.testing.assert_array_equal(stored["mouse2-b"]["labels/instances/s0"][:], np.where(ids % 5 == 0, 0, ids))
    assert json.loads(ours["mouse3"]["instances"])["mito"] == made["mouse3"][0].max() - 1, "one is a vesicle"
    splits = json.loads(Path("our-data/splits.json").read_text())["volumes"]
    folds = {name: {slab[0] for slab in splits[f"our_lab-{name}"]["slabs"]} for name in ours}
    assert folds == {
        "mouse1": {"train", "validation", "test"},
        "mouse2-a": {"train", "validation"},
        "mouse2-b": {"train", "validation", "test"},
        "mouse3": {"test"},
    }
    assert {name: splits[f"our_lab-{name}"]["part"] for name in ours} == {
        "mouse1": "heterogeneous",  # it has an ignore region
        "mouse2-a": "homogeneous",
        "mouse2-b": "homogeneous",
        "mouse3": "heterogeneous",
    }
    for part in sorted(Path("our-data/data").glob("*/*.parquet")):
        assert (Path("rebuilt") / part.relative_to("our-data")).read_bytes() == part.read_bytes()

    capsys.readouterr()
    exec(compile(block(page, "python"), "building.md", "exec"), {})
    assert capsys.readouterr().out == "(100, 100) uint16 [8.0, 8.0]\n"


def test_the_page_says_something_about_every_key_word_option_and_check(
    page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    options = set(re.findall(r"--[a-z][a-z0-9-]+", capsys.readouterr().out.split("examples:")[0])) - {"--help"}
    words = {*SOURCE_KEYS, *VOLUME_KEYS, *LABEL_KEYS, *vars(Intensity()), *(check.name for check in CHECKS)}
    words |= {target.lower() for target in TARGETS if ":" not in target} | {*get_args(AnnotationType)}
    quoted = set(re.findall(r"[\w+-]+", " ".join(re.findall(r"`([^`\n]+)`", page))))
    assert (options | words) - quoted == set()


def test_the_spec_of_the_page_shows_every_key_that_is_not_rare(page: str) -> None:
    spec = yaml.safe_load(block(page, "yaml"))
    used = {*spec["defaults"], *(key for volume in spec["volumes"] for key in volume)}
    assert set(VOLUME_KEYS) - used == {"fold", "header_voxel_size"}


def test_the_readme_links_the_page(project: Path) -> None:
    assert "(docs/building.md)" in (project / "README.md").read_text()
