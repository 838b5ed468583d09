"""``em-bench label`` with what follows labelling: split, certificate, preview."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import lpa
from em_bench_eval.cli import main
from em_bench_eval.schema import Organelle
from em_bench_eval.volume_io import open_volume
from lpa.ome_zarr import create_labels

VOXEL_NM = (16.0, 16.0, 16.0)


def write(path: Path, array: np.ndarray, voxel_nm: tuple[float, float, float] | None = VOXEL_NM) -> Path:
    shape = (array.shape[0], array.shape[1], array.shape[2])
    create_labels(path, shape, array.dtype, voxel_nm, (32, 32, 32), (64, 64, 64)).write(array).result()
    return path


@pytest.fixture
def semantic(tmp_path: Path) -> Path:
    """Two mitochondria of 400 nm that touch at one voxel, a small one apart, and an ER sheet."""
    z, y, x = np.indices((64, 64, 96))
    volume = np.zeros((64, 64, 96), np.uint8)
    for centre, radius in (((32, 32, 24), 13), ((32, 32, 51), 13), ((32, 32, 80), 6)):
        ball = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2 <= radius**2
        volume[ball] = Organelle.MITO.label_id
    volume[:, 4:6, 4:90] = Organelle.ER.label_id
    volume[32, 32, 37] = volume[32, 32, 38] = Organelle.MITO.label_id
    return write(tmp_path / "semantic.zarr", volume)


def run(*arguments: object) -> int:
    return main(["label", *map(str, arguments)])


def test_everything_after_labelling(semantic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write(tmp_path / "image.zarr", np.random.default_rng(0).integers(0, 255, (64, 64, 96), dtype=np.uint8))
    options = ("--split", "--certificate", tmp_path / "quality", "--preview", tmp_path / "page.html", "--image", image)
    assert run(semantic, tmp_path / "out.zarr", *options) == 0
    printed = capsys.readouterr().out
    assert "1 of 3 instances cut, 4 now" in printed
    instances = open_volume(tmp_path / "out.zarr")
    volume = open_volume(semantic)[:]
    plain = lpa.label(volume, lpa.DEFAULT_CONNECTIVITY)
    np.testing.assert_array_equal(instances[:] > 0, plain > 0)
    assert len(np.unique(instances[:])) - 1 == 4
    assert instances[32, 32, 24] != instances[32, 32, 51]
    np.testing.assert_array_equal(instances[:][volume == 3], plain[volume == 3])  # the network is left alone
    assert tuple(instances.voxel_size_nm or ()) == VOXEL_NM
    about = instances.attributes["lpa"]
    assert about["split"] == "necks"
    assert about["instances_of_class"] == {"1": 3, "3": 1}
    certificate = json.loads((tmp_path / "quality" / "certificate.json").read_text())
    assert certificate
    with (tmp_path / "quality" / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(row["verdict"] == "" for row in rows)
    page = (tmp_path / "page.html").read_text()
    assert "Mitochondria" in page
    assert 'src="http' not in page
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_filled_audit_gives_an_error_rate(semantic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality = tmp_path / "quality"
    assert run(semantic, tmp_path / "out.zarr", "--certificate", quality) == 0
    assert "No error rate is known" in capsys.readouterr().out
    path = quality / "audit.csv"
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        columns, rows = list(reader.fieldnames or ()), list(reader)
    for row in rows:
        row["verdict"] = "ok"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    assert run(semantic, tmp_path / "out.zarr", "--certificate", quality, "--overwrite") == 0
    assert "No error rate is known" not in capsys.readouterr().out
    with path.open(newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["ok"] * len(rows), "verdicts are kept"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--voxel-size-nm", "5,5"], "three positive numbers Z,Y,X"),
        (["--voxel-size-nm", "5,5,-1"], "three positive numbers Z,Y,X"),
        (["--image", "nowhere.zarr", "--preview", "page.html"], "nowhere.zarr"),
    ],
)
def test_unusable_options(
    semantic: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(semantic, tmp_path / "out.zarr", *options) == 2
    assert message in capsys.readouterr().err


def test_what_cannot_be_judged_says_so_and_keeps_the_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = np.zeros((8, 8, 8), np.uint8)
    volume[2:4, 2:4, 2:4] = 1
    unsized = write(tmp_path / "unsized.zarr", volume, None)
    assert run(unsized, tmp_path / "a.zarr", "--certificate", tmp_path / "q") == 2
    assert "--voxel-size-nm Z,Y,X" in capsys.readouterr().err
    assert open_volume(tmp_path / "a.zarr").shape == (8, 8, 8)
    assert run(unsized, tmp_path / "b.zarr", "--certificate", tmp_path / "q", "--voxel-size-nm", "8,8,8") == 0
    strange = write(tmp_path / "strange.zarr", volume * 77)
    assert run(strange, tmp_path / "c.zarr", "--preview", tmp_path / "page.html") == 2
    assert "classes 77" in capsys.readouterr().err
