"""Specs over files with odd values: negative and huge ids, wrong headers, padding, NaN."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from dataset_builder.numbering import number_plane
from dataset_builder.sources.local import source_of
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Volume, VoxelSize

SHAPE = (5, 24, 30)
RNG = np.random.default_rng(5)
GRAY = RNG.integers(0, 256, SHAPE, dtype=np.uint8)
IDS = (np.arange(np.prod(SHAPE)).reshape(SHAPE) // 90 % 7).astype(np.int16)  # 0 to 6
SPEC = """
source: {name: our_lab, licence: CC-BY-4.0, modality: FIB-SEM}
volumes:
  - id: a
    image: gray.tif
    labels: {path: ids.tif, instances: mito}
    annotated: {mito: manual}
    voxel_size_nm: [8, 4, 4]
    specimen: mouse 7
    cell_type: liver
"""


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    tifffile.imwrite(tmp_path / "gray.tif", GRAY)
    tifffile.imwrite(tmp_path / "ids.tif", IDS)
    return tmp_path


def volume(lab: Path, *changes: tuple[str, str]) -> Volume:
    text = SPEC
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (lab / "spec.yaml").write_text(text)
    (only,) = source_of(lab / "spec.yaml").volumes(None, {})
    return only


def instances(meaning: str) -> tuple[str, str]:
    return "instances: mito", "instances: {" + meaning + "}"


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "float32"])
@pytest.mark.parametrize("meaning", ["ignore", "background"])
def test_negative_values_may_be_ignored(meaning: str, dtype: str, lab: Path) -> None:
    labels = np.where(IDS == 3, -1, IDS)
    tifffile.imwrite(lab / "ids.tif", labels.astype(dtype))
    found = volume(lab, instances(f"-1: {meaning}, 1-6: mito"))
    np.testing.assert_array_equal(found.instances[:], np.where(IDS == 3, 0, IDS))
    assert found.organelle_of == dict.fromkeys((1, 2, 4, 5, 6), Organelle.MITO)
    if meaning == "ignore":
        np.testing.assert_array_equal(found.ignore[:], IDS == 3)
    else:
        assert found.ignore is None


@pytest.mark.parametrize("change", [("mito}", "mito}"), instances("-1: mito, 1-6: mito"), instances("1-6: mito")])
def test_negative_ids_are_refused_with_the_way_out(change: tuple[str, str], lab: Path) -> None:
    tifffile.imwrite(lab / "ids.tif", np.where(IDS == 3, -1, IDS).astype(np.int16))
    with pytest.raises(InputError, match="negative ids") as caught:
        volume(lab, change)
    assert "found: -1" in str(caught.value)
    assert "{-1: ignore, rest: mito}" in str(caught.value)


def test_ids_that_no_table_holds_are_refused_unless_they_are_none(lab: Path) -> None:
    fill = 2**64 - 1
    tifffile.imwrite(lab / "ids.tif", np.where(IDS == 3, np.uint64(fill), IDS.astype(np.uint64)))
    with pytest.raises(InputError, match="too large") as caught:
        volume(lab)
    assert f"{{{fill}: ignore, rest: mito}}" in str(caught.value)
    found = volume(lab, instances(f"{fill}: ignore, rest: mito"))
    np.testing.assert_array_equal(found.instances[:], np.where(IDS == 3, 0, IDS))
    np.testing.assert_array_equal(found.ignore[:], IDS == 3)
    largest = np.where(IDS == 3, np.uint64(2**63 - 1), np.uint64(0))
    tifffile.imwrite(lab / "ids.tif", largest)
    np.testing.assert_array_equal(volume(lab).instances[:], largest)


def test_no_source_publishes_ids_that_its_tables_cannot_hold() -> None:
    plane = np.array([[0, 2**63 - 1]], np.uint64)
    classes = np.array([[0, 1]], np.uint8)
    assert number_plane(plane, classes, "x").instance_ids.tolist() == [2**63 - 1]
    with pytest.raises(InputError, match="too large for the tables"):
        number_plane(plane + np.array([[0, 1]], np.uint64), classes, "x")


def test_a_wrong_header_is_overridden_by_a_key_and_on_record(lab: Path) -> None:
    metadata = {"axes": "ZYX", "spacing": 1000, "unit": "nm"}
    tifffile.imwrite(lab / "gray.tif", GRAY, imagej=True, metadata=metadata, resolution=(0.001, 0.001))
    with pytest.raises(InputError, match="header_voxel_size: ignore beside voxel_size_nm"):
        volume(lab)
    key = ("    specimen", "    header_voxel_size: {}\n    specimen")
    found = volume(lab, (key[0], key[1].format("ignore")))
    assert found.voxel_size == VoxelSize(8, 4, 4)
    assert found.provenance["header_voxel_size"] == "ignored: gray.tif states 1000, 1000, 1000 nm (z, y, x)"
    with pytest.raises(InputError, match="the same within 1%"):
        volume(lab, (key[0], key[1].format("check")))
    with pytest.raises(InputError, match="one of check, ignore"):
        volume(lab, (key[0], key[1].format("yes")))
    with pytest.raises(InputError, match="ignore, and no voxel_size_nm"):
        volume(lab, (key[0], key[1].format("ignore")), ("    voxel_size_nm: [8, 4, 4]\n", ""))


def test_a_position_in_a_wrong_header_is_not_believed(lab: Path) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    group = zarr.open_group(str(lab / "gray.zarr"), mode="w", zarr_format=2)
    group.create_array("0", shape=SHAPE, chunks=SHAPE, dtype="u1")[:] = GRAY
    steps = [{"type": "scale", "scale": [8e3] * 3}, {"type": "translation", "translation": [4e3] * 3}]
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    pyramid = {"version": "0.4", "axes": axes, "datasets": [{"path": "0", "coordinateTransformations": steps}]}
    group.attrs["multiscales"] = [pyramid]
    framed = ("gray.tif", "gray.zarr\n    frame: block\n    header_voxel_size: ignore")
    with pytest.raises(InputError, match="the frame block, and no position"):
        volume(lab, framed)
    found = volume(lab, framed, ("    specimen", "    origin_nm: [0, 40, 80]\n    specimen"))
    assert found.origin_nm == (0, 40, 80)


def test_padding_is_left_out_of_percentiles(lab: Path) -> None:
    tissue = GRAY.astype(np.uint16) * 20 + 20000
    padded = tissue.copy()
    padded[:, :8] = 0
    tifffile.imwrite(lab / "gray.tif", padded)
    found = volume(lab, ("gray.tif", "gray.tif\n    intensity: {percentiles: [1, 99]}"))
    record = json.loads(found.provenance["intensity_window"])
    assert [record["low"], record["high"]] == np.percentile(tissue[:, 8:], [1, 99]).tolist()


@pytest.mark.parametrize("intensity", ["", "percentiles: [1, 99]", "window: [0, 200], invert: true"])
def test_nan_pixels_are_ignored_however_the_window_is_made(intensity: str, lab: Path) -> None:
    wrong = np.zeros(SHAPE, bool)
    wrong[2, 3:9, 4:8] = True
    tifffile.imwrite(lab / "gray.tif", np.where(wrong, np.nan, GRAY).astype(np.float32))
    found = volume(lab, ("gray.tif", f"gray.tif\n    intensity: {{{intensity}}}"))
    np.testing.assert_array_equal(found.ignore[:], wrong)
    assert found.provenance["not_finite_pixels"] == "24"
    if intensity:
        assert not found.image[:][wrong].any()
    tifffile.imwrite(lab / "gray.tif", np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(InputError, match="the image is empty"):
        volume(lab, ("gray.tif", f"gray.tif\n    intensity: {{{intensity}}}"))
