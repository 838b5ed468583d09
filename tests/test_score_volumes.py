"""``em-bench score`` on volumes: every form of input, blocks against the whole, a row per instance, faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage

from em_bench_eval import Settings, score
from em_bench_eval.cli import main
from em_bench_eval.errors import InputError
from em_bench_eval.per_instance import COLUMNS
from em_bench_eval.score_volumes import open_labels, score_volumes
from lpa.ome_zarr import create_labels

NM = (15.0, 16.0, 16.0)


@pytest.fixture(scope="module")
def pair() -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    rng = np.random.default_rng(5)
    field = ndimage.gaussian_filter(rng.normal(size=(20, 36, 40)), 2)
    noise = ndimage.gaussian_filter(rng.normal(size=field.shape), 1)
    labels = [ndimage.label(f > 0.07)[0].astype(np.uint32) for f in (field + 0.05 * noise, field)]
    return labels[0], labels[1]


def write_zarr(path: Path, labels: npt.NDArray[Any], nm: tuple[float, float, float] | None = NM) -> Path:
    import tensorstore as ts

    create_labels(path, labels.shape, labels.dtype, nm, (8, 8, 8), (16, 16, 16))
    array = next(p for p in path.rglob("zarr.json") if json.loads(p.read_text())["node_type"] == "array").parent
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(array)}}
    ts.open(spec, write=True).result().write(labels).result()
    return path


def write_nifti(path: Path, labels: npt.NDArray[Any]) -> Path:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(labels.T.astype(np.float32), np.diag([*(nm * 1e-6 for nm in NM[::-1]), 1]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def write_tiff(path: Path, labels: npt.NDArray[Any]) -> Path:
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, labels)
    return path


@pytest.mark.parametrize(("prediction", "reference"), [("zarr", "zarr"), ("nii.gz", "zarr"), ("zarr", "tif")])
def test_any_formats_give_the_direct_score(
    pair: Any, tmp_path: Path, prediction: str, reference: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write = {"zarr": write_zarr, "nii.gz": write_nifti, "tif": write_tiff}
    paths = [
        write[kind](tmp_path / f"{name}.{kind}", labels)
        for name, kind, labels in zip(("p", "r"), (prediction, reference), pair, strict=True)
    ]
    out = tmp_path / "out.json"
    assert main(["score", *map(str, paths), "--organelle", "er", "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    expected = score({"er": pair[0]}, {"er": pair[1]}, voxel_size_nm=NM, annotated=["er"])
    assert {key: value for key, value in printed["scores"].items() if value is not None} == {
        key: value for key, value in expected.items() if value is not None
    }
    assert printed["voxel_size_nm"] == pytest.approx(NM)


def test_blocks_of_any_size_and_the_whole_agree(pair: Any, tmp_path: Path) -> None:
    sides = [open_labels(write_zarr(tmp_path / f"{k}.zarr", labels), "mito") for k, labels in enumerate(pair)]
    results = [score_volumes(*sides, block_voxels=voxels).compute() for voxels in (1, 4000, 1 << 25)]
    assert results[0] == results[1] == results[2]
    assert results[0]["mito/n_matched"] > 5


def test_a_folder_with_a_label_map_per_organelle(pair: Any, tmp_path: Path) -> None:
    folders = [tmp_path / "p", tmp_path / "r"]
    for folder, labels in zip(folders, pair, strict=True):
        folder.mkdir()
        write_zarr(folder / "mito.zarr", np.where(labels % 2, labels, 0).astype(np.uint32))
        write_zarr(folder / "er.zarr", np.where(labels % 2, 0, labels).astype(np.uint32))
        (folder / "notes.txt").write_text("nothing to score")
    rows = tmp_path / "rows.parquet"
    assert main(["score", *map(str, folders), "--per-instance", str(rows), "--out", str(tmp_path / "s.json")]) == 0
    result = json.loads((tmp_path / "s.json").read_text())["scores"]
    odd, even = ([np.where(labels % 2 == k, labels, 0) for labels in pair] for k in (1, 0))
    expected = score({"mito": odd[0], "er": even[0]}, {"mito": odd[1], "er": even[1]}, voxel_size_nm=NM)
    assert result["macro/dice__instance"] == expected["macro/dice__instance"]
    check_rows(rows, result)


def check_rows(path: Path, result: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    assert table.column_names == list(COLUMNS)
    rows = table.to_pylist()
    for organelle in ("mito", "er"):
        of = {
            side: [row for row in rows if (row["organelle"], row["side"]) == (organelle, side)]
            for side in ("reference", "prediction")
        }
        assert len(of["reference"]) == result[f"{organelle}/n_reference"]
        assert len(of["prediction"]) == result[f"{organelle}/n_prediction"]
        matched = [row for row in of["reference"] if row["matched_id"] is not None]
        assert len(matched) == result[f"{organelle}/n_matched"]
        union = len(of["reference"]) + len(of["prediction"]) - len(matched)
        assert sum(row["dice"] for row in matched) / union == pytest.approx(result[f"{organelle}/dice__instance"])
        back = {row["id"]: row["matched_id"] for row in of["prediction"]}
        assert all(back[row["matched_id"]] == row["id"] for row in matched)
        assert {row["verdict"] for row in rows} <= {"hit", "weak", "missed", "invented"}
        assert all(row["best_iou"] <= 1 and row["n_overlapping"] >= (row["best_id"] is not None) for row in rows)


def test_a_volume_of_a_dataset_says_what_it_holds(tiny_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    volume = sorted((tiny_dataset / "volumes").glob("*.zarr"))[0]
    assert main(["score", str(volume), str(volume), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["scores"]
    defined = [key for key, value in scores.items() if key.endswith("/dice__instance") and value is not None]
    assert defined
    assert all(scores[key] == 1.0 for key in defined)


def test_a_volume_with_too_many_instances_for_its_attributes(tiny_dataset: Path, tmp_path: Path) -> None:
    """Then the dataset's table says what each id is."""
    import shutil

    copy = tmp_path / "em-organelle-wild"
    shutil.copytree(tiny_dataset, copy)
    volume = sorted((copy / "volumes").glob("*.zarr"))[0]
    expected = open_labels(volume).organelle_of
    attributes = json.loads((volume / "zarr.json").read_text())
    del attributes["attributes"]["em_organelle_wild"]["organelle_of"]
    (volume / "zarr.json").write_text(json.dumps(attributes))
    assert expected
    assert open_labels(volume).organelle_of == expected
    (copy / "instances.parquet").unlink()
    with pytest.raises(InputError, match="nothing says of which organelle"):
        open_labels(volume)


def test_the_ignored_region_of_a_file(pair: Any, tmp_path: Path) -> None:
    mask = np.zeros(pair[0].shape, np.uint8)
    mask[:, :20] = 1
    paths = [write_zarr(tmp_path / f"{k}.zarr", labels) for k, labels in enumerate((*pair, mask))]
    out = tmp_path / "s.json"
    arguments = ["--organelle", "er", "--ignore", str(paths[2]), "--out", str(out)]
    assert main(["score", str(paths[0]), str(paths[1]), *arguments]) == 0
    expected = score({"er": pair[0]}, {"er": pair[1]}, voxel_size_nm=NM, ignore=mask)
    assert json.loads(out.read_text())["scores"]["er/pq"] == expected["er/pq"]


def test_faults(pair: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_zarr(tmp_path / "good.zarr", pair[1])
    small = write_zarr(tmp_path / "small.zarr", pair[1][:10])
    coarse = write_zarr(tmp_path / "coarse.zarr", pair[1], (30.0, 16.0, 16.0))
    unknown = write_zarr(tmp_path / "unknown.zarr", pair[1], None)
    cases = [
        ([small, good, "--organelle", "er"], "differ in shape"),
        ([coarse, good, "--organelle", "er"], "differ in voxel size"),
        ([unknown, unknown, "--organelle", "er"], "--voxel-size-nm Z,Y,X"),
        ([good, good, "--organelle", "ers"], "did you mean 'er'"),
        ([good, good], "nothing says of which organelle"),
        ([tmp_path / "nothing.zarr", good, "--organelle", "er"], "no volume at"),
        ([good, good, "--organelle", "er", "--split", "test"], "belongs to a dataset"),
    ]
    for arguments, message in cases:
        assert main(["score", *map(str, arguments)]) == 2, message
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["score", str(good), str(good), "--organelle", "er", "--voxel-size-nm", "8,8"])
    assert "three positive numbers" in capsys.readouterr().err
    twice = tmp_path / "twice"
    twice.mkdir()
    for name in ("mito.tif", "mito.png"):
        (twice / name).touch()
    with pytest.raises(InputError, match="two label maps of mito"):
        open_labels(twice)
    probabilities = write_tiff(tmp_path / "p.tif", pair[0].astype(np.float32) / 7)
    assert main(["score", str(probabilities), str(good), "--organelle", "er"]) == 2
    assert "whole numbers (floats too" in capsys.readouterr().err


def test_settings_change_what_is_judged(pair: Any, tmp_path: Path) -> None:
    sides = [open_labels(write_zarr(tmp_path / f"{k}.zarr", labels), "mito") for k, labels in enumerate(pair)]
    chosen = Settings(border="ignore", min_size_nm=20 * 15.0 * 16 * 16)
    expected = score({"mito": pair[0]}, {"mito": pair[1]}, voxel_size_nm=NM, annotated=["mito"], settings=chosen)
    assert score_volumes(*sides, settings=chosen, block_voxels=1).compute() == expected


def test_a_box_cuts_both_sides_and_a_prediction_says_its_own(tmp_path: Path) -> None:
    from baselines.aggregation.aggregation_write import write_level

    semantic = np.zeros((8, 16, 16), np.uint8)
    semantic[1:7, 2:8, 2:8] = 1
    semantic[2:4, 10:14, 10:14] = 1
    write_level(semantic, "L5", tmp_path / "whole.zarr", (8.0, 8.0, 8.0), annotated=["mito"])
    box = ((2, 6), (0, 16), (0, 16))
    part = semantic[2:6].copy()
    part[:, 10:14, 10:14] = 0
    write_level(part, "L5", tmp_path / "part.zarr", (8.0, 8.0, 8.0), annotated=["mito"], predicted_box=box)
    reference = open_labels(tmp_path / "whole.zarr")
    own = score_volumes(open_labels(tmp_path / "part.zarr"), reference).compute()
    assert (own["mito/n_reference"], own["mito/n_matched"]) == (2, 1)
    assert own["mito/dice__matched"] == 1.0
    given = score_volumes(reference, reference, box=((0, 2), (0, 16), (0, 16))).compute()
    assert (given["mito/n_reference"], given["mito/dice__instance"]) == (1, 1.0)
    with pytest.raises(InputError, match="no such box"):
        score_volumes(reference, reference, box=((0, 9), (0, 16), (0, 16)))
