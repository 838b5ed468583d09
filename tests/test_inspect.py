"""What em-bench inspect tells of files, folders and servers, and the spec that it drafts."""

from __future__ import annotations

import functools
import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import fake
import h5py
import numpy as np
import pytest
import tifffile
from scipy import ndimage

from dataset_builder.cli_inspect import inspect
from dataset_builder.inspection import bytes_of, inspect_path, inspect_volume
from dataset_builder.instances import instances_of
from dataset_builder.sources.local import source_of
from em_bench_eval.errors import InputError
from em_bench_eval.volume_tree import MOST, volumes_below

SHAPE = (12, 96, 80)
MASK = fake.blobs(SHAPE, 1, 0.1)
GRAY = fake.em_like(MASK, 1)
SEMANTIC = np.where(MASK, 1 + (fake.blobs(SHAPE, 2, 0.5)).astype(np.uint8) * 3, 0).astype(np.uint8)  # 0, 1, 4
IDS = ndimage.label(MASK)[0].astype(np.uint32)


def told(location: Path | str, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert inspect([str(location), *options]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("voxels", "kind"),
    [
        (GRAY, "image"),
        (GRAY.astype(np.uint16) * 37, "image"),
        ((GRAY / 255).astype(np.float32), "image"),
        (np.where(np.arange(80) < 50, 0, GRAY), "image"),  # padded with black
        (MASK, "semantic labels"),
        (MASK.astype(np.uint8) * 255, "semantic labels"),
        (SEMANTIC, "semantic labels"),
        (IDS, "instances"),
        (IDS.astype(np.float64), "instances"),
        (np.zeros(SHAPE, np.uint8), "one value"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value.dtype),
)
def test_what_a_volume_looks_like(voxels: np.ndarray, kind: str, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "v.tif", voxels, photometric="minisblack")
    assert inspect_volume(str(tmp_path / "v.tif")).kind == kind


def test_one_file_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("raw", data=GRAY, chunks=(2, 32, 40), compression="gzip")
        data.attrs["resolution"] = (8.0, 4.0, 4.0)
        data.attrs["offset"] = (16.0, 0.0, 0.0)
    text = told(path, capsys)
    for part in (
        "HDF5",
        "12 x 96 x 80 (z, y, x), uint8",
        "92.2 kB of voxels",
        "8 x 4 x 4 nm (z, y, x)",
        "2 x 32 x 40 voxels at once",
        f"{GRAY[[0, 3, 6, 8, 11]].min()} to {GRAY[[0, 3, 6, 8, 11]].max()} (middle of 5 planes)",
        "16, 0, 0 nm",
        "compression gzip",
        "looks like  image",
    ):
        assert part in text, text
    assert f"{path.stat().st_size / 1000:.3g} kB on disk" in text


def test_a_folder_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for z, (image, ids) in enumerate(zip(GRAY, IDS, strict=True)):
        fake.save(tmp_path / "raw" / f"{z}.png", image)
        fake.save(tmp_path / "mito" / f"{z}.png", ids.astype(np.uint16))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["a/raw"], file["a/labels"], file["table"] = GRAY, SEMANTIC, np.zeros((3, 2))
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    group = zarr.open_group(tmp_path / "z.zarr", mode="w")
    group.create_array("plain", data=GRAY)
    pyramid = group.create_group("em")
    for level in ("s0", "s1"):
        pyramid.create_array(level, data=GRAY)
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [8.0, 4.0, 4.0]}]
    levels = [{"path": level, "coordinateTransformations": scale} for level in ("s0", "s1")]
    pyramid.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": levels}]}
    (tmp_path / "notes.txt").write_text("nothing")
    (tmp_path / "broken.tif").write_bytes(b"II*\0oops")
    found, more = inspect_path(tmp_path)
    assert not more
    shown = {Path(one.location).relative_to(tmp_path).as_posix(): one.kind for one in found}
    assert shown == {
        "all.h5:/a/labels": "semantic labels",
        "all.h5:/a/raw": "image",
        "broken.tif": None,
        "mito": "instances",
        "raw": "image",
        "z.zarr/em": "image",
        "z.zarr/plain": "image",
    }
    text = told(tmp_path, capsys)
    assert "broken.tif" in text
    assert "cannot be opened" in text
    assert "8 4 4" in text
    assert len(text.splitlines()) == 1 + len(found)
    assert "percentiles" in told(tmp_path, capsys, "--details")
    assert "s0" not in text, "levels of a pyramid are one volume"


def test_what_cannot_be_inspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        inspect([str(tmp_path / "nothing")])
    with pytest.raises(InputError, match="an empty folder"):
        inspect([str(tmp_path)])
    (tmp_path / "broken.tif").write_bytes(b"II*\0oops")
    with pytest.raises(InputError, match="cannot be read"):
        inspect([str(tmp_path / "broken.tif")])


def test_very_many_volumes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for number in range(MOST + 1):
            file[f"a{number:03}"] = np.zeros((1, 2, 2), np.uint8)
    found, more = volumes_below(tmp_path / "v.h5")
    assert (len(found), more) == (MOST, True)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def list_directory(self, path: object) -> None:  # as plain web servers
            self.send_error(404)

    handler = functools.partial(Quiet, directory=str(tmp_path))
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


@pytest.mark.parametrize("version", [2, 3])
def test_a_server_that_cannot_list(
    version: int, server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    group = zarr.open_group(tmp_path / "cell.zarr", mode="w", zarr_format=version)
    image = group.create_group("em")
    image.create_array("s0", data=GRAY)
    image.create_group("labels").attrs["labels"] = ["mito"]
    image["labels"].create_array("mito", data=IDS)
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    scale = [{"type": "scale", "scale": [8.0, 4.0, 4.0]}]
    multiscales = [{"axes": axes, "datasets": [{"path": "s0", "coordinateTransformations": scale}]}]
    image.attrs.update({"ome": {"multiscales": multiscales}} if version == 3 else {"multiscales": multiscales})
    text = told(f"{server}/cell.zarr/em", capsys)
    assert re.search(r"/em +OME-Zarr \(zarr v\d\) +12 96 80 +uint8 +8 4 4 +image", text)
    assert re.search(r"/em/labels/mito +zarr v\d +12 96 80 +uint32 +- +instances", text)
    zarr.consolidate_metadata(tmp_path / "cell.zarr")
    found = volumes_below(f"{server}/cell.zarr")[0]
    assert sorted(found) == [f"{server}/cell.zarr/em", f"{server}/cell.zarr/em/labels/mito"]
    assert bytes_of(found[0]) is None
    assert "on a server" in told(found[0] + "/s0", capsys)


ANSWERS = {"licence": "CC0-1.0", "modality": "FIB-SEM", "title": "Ours"}


def fill(text: str) -> str:
    """Answer every gap of a draft, as a person would."""
    lines = []
    for line in text.splitlines():
        key = line.split(":")[0].strip()
        if line.strip().startswith("FILL_IN: FILL_IN"):
            line = "      mito: manual"
        elif key in ANSWERS:
            line = line.replace("FILL_IN", ANSWERS[key])
        elif key == "voxel_size_nm":
            line = line.replace("FILL_IN", "5")
        lines.append(line.replace("FILL_IN", "mito"))
    return "\n".join(lines)


@pytest.mark.parametrize("labels", ["semantic", "instances", "both"])
def test_a_draft_builds_once_its_gaps_are_filled(
    labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [tmp_path / "raw"]
    for z, image in enumerate(GRAY):
        fake.save(tmp_path / "raw" / f"{z}.png", image)
    for name, array in (("semantic", SEMANTIC), ("instances", IDS)):
        if labels in (name, "both"):
            tifffile.imwrite(tmp_path / f"{name} map.tif", array, photometric="minisblack")
            paths.append(tmp_path / f"{name} map.tif")
    spec = tmp_path / "spec.yaml"
    text = told(paths[0], capsys, *map(str, paths[1:]), "--draft", str(spec))
    assert f"em-bench build --spec {spec}" in text
    draft = spec.read_text()
    with pytest.raises(InputError, match="fill it in") as caught:
        source_of(spec)
    gaps = len(re.findall(r"FILL_IN", re.sub("#.*", "", draft)))
    # the three of the voxel size are told as one, and those of a line "organelle: how" too
    assert str(caught.value).count("fill it in") == gaps - 2 - 1
    assert str(tmp_path) not in draft, "paths are relative to the spec"
    spec.write_text(fill(draft))
    (volume,) = source_of(spec).volumes(None, {})
    np.testing.assert_array_equal(volume.image[:], GRAY)
    ids, organelle_of = instances_of(volume)
    np.testing.assert_array_equal(ids > 0, MASK)
    assert organelle_of
    with pytest.raises(InputError, match="exists"):
        inspect([str(paths[0]), "--draft", str(spec)])
    assert spec.read_text() == fill(draft), "never overwritten"
    assert not list(tmp_path.glob(".spec*"))


def test_a_draft_knows_the_voxel_size_and_proposes_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"axes": "ZYX", "spacing": 8, "unit": "nm"}
    deep = GRAY.astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "v.tif", deep, imagej=True, metadata=metadata, resolution=(0.25, 0.25))
    told(tmp_path / "v.tif", capsys, "--draft", str(tmp_path / "s.yaml"))
    draft = (tmp_path / "s.yaml").read_text()
    assert "voxel_size_nm: [8, 4, 4]" in draft
    found = re.search(r"window: \[(\d+)[\d.]*, (\d+)", draft)
    assert found is not None
    assert deep.min() <= int(found[1]) < int(found[2]) <= deep.max()
    assert "path: FILL_IN" in draft


def test_a_draft_names_the_labels_that_fit_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, voxels in (("raw", GRAY), ("ids", IDS), ("short", IDS[:7])):
        tifffile.imwrite(tmp_path / f"{name}.tif", voxels, photometric="minisblack")
    (tmp_path / "torn.tif").write_bytes((tmp_path / "raw.tif").read_bytes()[:100])
    told(tmp_path, capsys, "--draft", str(tmp_path / "s.yaml"))
    draft = (tmp_path / "s.yaml").read_text()
    assert "- path: ids.tif" in draft
    assert "- path: short.tif" not in draft
    assert "the images have 12 x 96 x 80:\n#   short.tif: instances, 7 x 96 x 80\n" in draft
    assert re.search(r"# what cannot be opened:\n#   torn.tif: .*torn.tif cannot be read", draft)
    with pytest.raises(InputError, match="fill it in"):  # it is still a spec
        source_of(tmp_path / "s.yaml")


def test_a_folder_of_slices_with_a_fault_is_one_volume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for z in range(8):
        fake.save(tmp_path / "colour" / f"{z}.png", np.stack([GRAY[z]] * 3, -1))
        fake.save(tmp_path / "whole" / f"{z}.png", GRAY[z])
        if z != 5:
            fake.save(tmp_path / "hole" / f"s_{z:03}.tif", GRAY[z])
            tifffile.imwrite(tmp_path / f"cell_{z}.tif", GRAY, photometric="minisblack")  # volumes, not slices
    with pytest.raises(InputError, match=r"between s_004.tif and s_006.tif"):
        inspect([str(tmp_path / "hole"), "--draft", str(tmp_path / "s.yaml")])
    assert not (tmp_path / "s.yaml").exists()
    with pytest.raises(InputError, match="mode RGB"):
        inspect([str(tmp_path / "colour")])
    text = told(tmp_path, capsys)
    assert len(text.splitlines()) == 1 + 7 + 3
    assert re.search(r"hole +cannot be opened: .* missing slices: 7 files; between s_004.tif and s_006.tif", text)
    assert re.search(r"colour +cannot be opened: .*0.png is not a gray image: mode RGB", text)


def test_doubts_are_told_of_one_volume_and_of_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = {"axes": "ZYX", "spacing": 40, "unit": "um"}
    tifffile.imwrite(tmp_path / "a.tif", GRAY, imagej=True, metadata=metadata, resolution=(0.25, 0.25))
    asked = "a voxel of 40 x 4 x 4 um is stated, which is large for electron microscopy: is the unit right?"
    assert f"note        {asked}" in told(tmp_path / "a.tif", capsys, "--draft", str(tmp_path / "s.yaml"))
    assert asked in (tmp_path / "s.yaml").read_text()
    tifffile.imwrite(tmp_path / "b.tif", GRAY, photometric="minisblack")
    assert f"\nnote: {tmp_path / 'a.tif'}: {asked}\n" in told(tmp_path, capsys)
    assert told(tmp_path, capsys, "--details").count(asked) == 1


@pytest.mark.parametrize("name", ["raw.zarr", "raw", "raw.tif", "all.h5:/a/raw"])
def test_paths_may_go_up(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    zarr = pytest.importorskip("zarr", minversion="3", reason="zarr 3 needs Python 3.11")
    zarr.create_array(tmp_path / "raw.zarr", data=GRAY)
    tifffile.imwrite(tmp_path / "raw.tif", GRAY, photometric="minisblack")
    for z in range(len(GRAY)):
        fake.save(tmp_path / "raw" / f"{z}.png", GRAY[z])
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["a/raw"] = GRAY
    zarr.create_array(tmp_path / "ids.zarr", data=IDS)
    (tmp_path / "specs").mkdir()
    monkeypatch.chdir(tmp_path / "specs")
    told(f"../{name}", capsys, "../specs/../ids.zarr", "--draft", "../specs/s.yaml")
    assert f"image: ../{name}" in Path("s.yaml").read_text()
    Path("s.yaml").write_text(fill(Path("s.yaml").read_text()))
    (volume,) = source_of(Path("../specs/s.yaml")).volumes(None, {})
    np.testing.assert_array_equal(volume.image[:], GRAY)
    assert (volume.provenance["raw"], volume.provenance["labels"]) == (f"../{name}", "../ids.zarr")


def test_nothing_to_draft_from(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "v.tif", np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match="no image and no labels"):
        inspect([str(tmp_path / "v.tif"), "--draft", str(tmp_path / "s.yaml")])
    assert not (tmp_path / "s.yaml").exists()


def test_help_answers_at_once() -> None:
    code = (
        "import sys, json\n"
        "from dataset_builder.cli_inspect import inspect\n"
        "try: inspect(['--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "em-bench inspect raw/ labels.tif --draft spec.yaml" in out
    assert not {"numpy", "tensorstore", "tifffile", "h5py", "torch"} & set(json.loads(out.splitlines()[-1]))


@pytest.mark.real_data
def test_real_data_is_told_apart(real_data: Path) -> None:
    kinds = {
        "lucchipp_fibsem_mito/train/raw": "image",
        "lucchipp_fibsem_mito/train/label": "semantic labels",
        "vnc_sstem/stack1/raw": "image",
        "vnc_sstem/stack1/labels": "semantic labels",
        "hela_sbfsem_mito2d/raw/z0001.png": "image",
        "hela_sbfsem_mito2d/mito_instance/z0001.png": "instances",
        "cebraem_mini3d/raw.h5": "image",
        "cebraem_mini3d/mito.h5": "semantic labels",
        "urocell_labels/mito/instance/fib1-3-3-0.nii.gz": "instances",
        "urocell_labels/lyso/binary/fib1-3-3-0.nii.gz": "semantic labels",
    }
    assert {name: inspect_volume(str(real_data / name)).kind for name in kinds} == kinds
