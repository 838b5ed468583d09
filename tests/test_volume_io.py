"""Every format is told apart, read in the order (z, y, x) and knows its voxel size; local, over HTTP and on S3."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts

from em_bench_eval.errors import InputError
from em_bench_eval.schema import VoxelSize
from em_bench_eval.volume_io import open_volume
from lpa.ome_zarr import array_metadata, create_labels, write_group

SHAPE = (5, 6, 7)
VOXELS = np.arange(5 * 6 * 7, dtype=np.uint16).reshape(SHAPE)
NM = VoxelSize(8.0, 4.0, 3.24)


def save(path: Path, driver: str, array: np.ndarray, **metadata: Any) -> Path:
    spec = {"driver": driver, "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    ts.open(spec, create=True, dtype=array.dtype, shape=array.shape).result().write(array).result()
    return path


def save_n5(path: Path, array: np.ndarray = VOXELS, **attributes: Any) -> Path:
    save(path, "n5", array.T, blockSize=[3, 4, 2], compression={"type": "gzip"})
    known = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(known | attributes))
    return path


def pyramid(scale: list[float], unit: str | None = "nanometer", axes: str = "zyx", **more: Any) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    described = [
        {"name": a, "type": kinds.get(a, "space")} | ({"unit": unit} if unit and a in "zyx" else {}) for a in axes
    ]
    datasets = [{"path": "s0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]
    return {"multiscales": [{"axes": described, "datasets": datasets, **more}]}


def ome_04(path: Path, array: np.ndarray, attributes: dict[str, Any]) -> Path:
    save(path / "s0", "zarr", array, dimension_separator="/")
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps(attributes))
    return path


def ome_05(path: Path, array: np.ndarray, attributes: dict[str, Any]) -> Path:
    write_group(path, {"ome": {"version": "0.5", **attributes}})
    save(path / "s0", "zarr3", array)
    return path


WRITERS = {
    "zarr v2": lambda path: save(path, "zarr", VOXELS, chunks=[2, 3, 4]),
    "zarr v2 in Fortran order": lambda path: save(path, "zarr", VOXELS, chunks=[2, 3, 4], order="F"),
    "zarr v3": lambda path: save(path, "zarr3", VOXELS),
    "zarr v3 sharded": lambda path: save(
        path, "zarr3", VOXELS, **array_metadata(SHAPE, "uint16", (2, 3, 4), (4, 6, 8), 1)
    ),
    "N5": save_n5,
    "OME-Zarr 0.4": lambda path: ome_04(path, VOXELS, pyramid([8, 4, 3.24])),
    "OME-Zarr 0.5": lambda path: ome_05(path, VOXELS, pyramid([8, 4, 3.24])),
    "OME-Zarr 0.4 with time and channel": lambda path: ome_04(
        path, VOXELS[None, None], pyramid([1, 1, 8, 4, 3.24], axes="tczyx")
    ),
    "OME-Zarr 0.5 in the order x, y, z": lambda path: ome_05(path, VOXELS.T, pyramid([3.24, 4, 8], axes="xyz")),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_reads_the_same_voxels(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / "volume")
    opened = open_volume(path)
    stored = "N5" if name == "N5" else "zarr v2" if "v2" in name or "0.4" in name else "zarr v3"
    ome = "OME-Zarr 0.5" if "0.5" in name else "OME-Zarr"  # our 0.4 states no version
    assert opened.format == (f"{ome} ({stored})" if "OME" in name else stored)
    assert (opened.shape, opened.dtype) == (SHAPE, np.uint16)
    np.testing.assert_array_equal(opened[:], VOXELS)
    np.testing.assert_array_equal(opened[1:3, 2, 3:], VOXELS[1:3, 2, 3:])
    assert opened.voxel_size_nm == (NM if "OME" in name else None)
    assert open_volume(f"file://{path}/").shape == SHAPE


def test_chunks_are_reported_in_the_order_of_the_axes(tmp_path: Path) -> None:
    assert open_volume(save_n5(tmp_path / "n5")).chunk_shape == (2, 4, 3)
    assert open_volume(WRITERS["zarr v3 sharded"](tmp_path / "v3")).chunk_shape == (2, 3, 4)


@pytest.mark.parametrize("version", [2, 3])
def test_what_zarr_python_writes_is_read(version: int, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(tmp_path / "a.zarr", shape=SHAPE, dtype="uint16", chunks=(2, 3, 4), zarr_format=version)
    array[:] = VOXELS
    np.testing.assert_array_equal(open_volume(tmp_path / "a.zarr")[:], VOXELS)


N5_ATTRIBUTES = {
    "Paintera": {"resolution": [3.24, 4.0, 8.0], "offset": [30.0, 20.0, 10.0]},
    "n5-viewer": {"pixelResolution": {"dimensions": [0.00324, 0.004, 0.008], "unit": "um"}},
    "n5-viewer, old": {"pixelResolution": [3.24, 4.0, 8.0]},
    "OpenOrganelle": {
        "transform": {
            "axes": ["z", "y", "x"],
            "scale": [8.0, 4.0, 3.24],
            "translate": [10.0, 20.0, 30.0],
            "units": ["nm"] * 3,
        }
    },
}


@pytest.mark.parametrize("tool", N5_ATTRIBUTES)
def test_n5_voxel_sizes(tool: str, tmp_path: Path) -> None:
    opened = open_volume(save_n5(tmp_path / "n5", **N5_ATTRIBUTES[tool]))
    assert opened.voxel_size_nm is not None
    np.testing.assert_allclose(tuple(opened.voxel_size_nm), tuple(NM))
    assert opened.translation_nm == ((0, 0, 0) if "viewer" in tool else (10, 20, 30))


def test_n5_groups_open_their_finest_level(tmp_path: Path) -> None:
    save_n5(tmp_path / "em" / "s0")
    levels = [{"path": "s0", "transform": N5_ATTRIBUTES["OpenOrganelle"]["transform"]}]
    (tmp_path / "em" / "attributes.json").write_text(json.dumps({"multiscales": [{"datasets": levels}]}))
    assert open_volume(tmp_path / "em").voxel_size_nm == NM

    save_n5(tmp_path / "paintera" / "s0")  # declares nothing but a resolution
    (tmp_path / "paintera" / "attributes.json").write_text(json.dumps(N5_ATTRIBUTES["Paintera"]))
    opened = open_volume(tmp_path / "paintera")
    np.testing.assert_array_equal(opened[:], VOXELS)
    assert opened.voxel_size_nm == NM


@pytest.mark.parametrize(("unit", "factor"), [("nanometer", 1), ("micrometer", 1000), ("angstrom", 0.1), (None, None)])
def test_scales_become_nanometres(unit: str | None, factor: float | None, tmp_path: Path) -> None:
    opened = open_volume(ome_05(tmp_path / "v", VOXELS, pyramid([3.0, 2.0, 1.0], unit)))
    if factor is None:
        assert opened.voxel_size_nm is None
    else:
        assert opened.voxel_size_nm == VoxelSize(3 * factor, 2 * factor, 1 * factor)


def test_transformations_of_level_and_pyramid_are_combined(tmp_path: Path) -> None:
    attributes = pyramid([2.0, 1.0, 1.0], coordinateTransformations=[{"type": "scale", "scale": [4.0, 4.0, 3.24]}])
    level = attributes["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    level.append({"type": "translation", "translation": [5.0, 0.0, 0.0]})
    opened = open_volume(ome_05(tmp_path / "v", VOXELS, attributes))
    assert opened.voxel_size_nm == NM
    assert opened.translation_nm == (20.0, 0.0, 0.0)


def test_an_array_inside_a_pyramid_knows_its_level(tmp_path: Path) -> None:
    assert open_volume(WRITERS["OME-Zarr 0.5"](tmp_path / "v") / "s0").voxel_size_nm == NM


@pytest.mark.parametrize("nm", [(8.0, 4.0, 3.24), None])
def test_labels_that_we_create(nm: tuple[float, ...] | None, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    path = tmp_path / "labels"
    where = (1.0, 2.0, 3.0) if nm else None
    array = create_labels(path, SHAPE, "uint64", nm, (2, 3, 4), (4, 6, 8), translation_nm=where, attributes={"a": 1})
    array.write(VOXELS.astype("uint64")).result()
    opened = open_volume(path)
    assert opened.voxel_size_nm == (VoxelSize(*nm) if nm else None)
    assert opened.translation_nm == where
    assert opened.attributes["a"] == 1
    group = zarr.open_group(path, mode="r")
    assert group.attrs["ome"]["version"] == "0.5"
    assert "image-label" in group.attrs["ome"]
    assert (group["s0"].chunks, group["s0"].shards) == ((2, 3, 4), (4, 6, 8))
    np.testing.assert_array_equal(group["s0"][:], VOXELS)
    assert len(list((path / "s0" / "c").rglob("*/*/*"))) == 2, "one file a shard"


def message(location: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        open_volume(location)
    return str(caught.value)


def test_what_cannot_be_opened_says_what_was_found(tmp_path: Path) -> None:
    assert "no such file or folder" in message(tmp_path / "nothing")
    assert "an empty folder" in message(tmp_path)
    (tmp_path / "a.tif").write_bytes(b"II")
    assert "2 bytes" in message(tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.txt")
    assert "a file" in message(tmp_path / "a.txt")
    assert "a folder with a.txt" in message(tmp_path)
    assert "gs://" in message("gs://bucket/volume")


def test_a_group_without_an_image_names_what_is_inside(tmp_path: Path) -> None:
    write_group(tmp_path / "v", {})
    save(tmp_path / "v" / "mito", "zarr3", VOXELS)
    text = message(tmp_path / "v")
    assert "no multiscales" in text
    assert f"{tmp_path}/v/mito" in text

    write_group(tmp_path / "w", {"ome": {"version": "0.5", **pyramid([1, 1, 1])}})
    assert "no array at its finest level, s0" in message(tmp_path / "w")


def test_other_than_three_axes(tmp_path: Path) -> None:
    assert "shape (6, 7)" in message(save(tmp_path / "2d", "zarr3", VOXELS[0]))
    assert "shape (2, 5, 6, 7)" in message(save(tmp_path / "4d", "zarr", np.stack([VOXELS] * 2)))
    two = np.stack([VOXELS] * 2)
    assert "axes c, z, y, x" in message(ome_05(tmp_path / "c", two, pyramid([1, 1, 1, 1], axes="czyx")))


def test_broken_metadata(tmp_path: Path) -> None:
    path = save(tmp_path / "v", "zarr3", VOXELS)
    (path / "zarr.json").write_text("{")
    assert "JSON" in message(path)
    save_n5(tmp_path / "n5", compression={"type": "unheard-of"})
    assert "unheard-of" in message(tmp_path / "n5")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["zarr v2", "zarr v3", "N5", "OME-Zarr 0.4", "OME-Zarr 0.5"])
def test_over_http(name: str, tmp_path: Path, web: str) -> None:
    WRITERS[name](tmp_path / "a volume")
    opened = open_volume(f"{web}/a%20volume/")
    np.testing.assert_array_equal(opened[1:, :4, 2:], VOXELS[1:, :4, 2:])
    assert opened.voxel_size_nm == (NM if "OME" in name else None)


def test_nothing_over_http(web: str) -> None:
    assert "none of zarr.json" in message(f"{web}/missing.zarr")


@pytest.mark.parametrize("name", ["zarr v3 sharded", "N5", "OME-Zarr 0.5"])
def test_on_s3(name: str, tmp_path: Path, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client, endpoint = s3
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    WRITERS[name](tmp_path / "volume")
    for file in (tmp_path / "volume").rglob("*"):
        if file.is_file():
            client.upload_file(str(file), "bucket", f"some/{file.relative_to(tmp_path).as_posix()}")
    opened = open_volume("s3://bucket/some/volume")
    np.testing.assert_array_equal(opened[:], VOXELS)
    assert opened.voxel_size_nm == (NM if "OME" in name else None)
    assert "none of zarr.json" in message("s3://bucket/some/other")


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    boto3 = pytest.importorskip("boto3")
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    secrets = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    client = boto3.client("s3", endpoint_url=endpoint, **secrets)
    client.create_bucket(Bucket="bucket", ACL="public-read-write")
    yield client, endpoint
    server.stop()


def test_what_lies_above_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_n5(tmp_path / "data" / "n5")
    (tmp_path / "data" / "sub").mkdir()
    (tmp_path / "other" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "named").symlink_to(tmp_path / "data" / "n5")
    WRITERS["zarr v3"](tmp_path / "other" / "a.zarr")
    monkeypatch.chdir(tmp_path / "data" / "sub")
    np.testing.assert_array_equal(open_volume("../n5")[:], VOXELS)
    assert open_volume("../../named").array.location == str(tmp_path / "named"), "a symbolic link stays as it is"
    np.testing.assert_array_equal(open_volume(tmp_path / "link" / ".." / "a.zarr")[:], VOXELS)  # not tmp_path/a.zarr
    copy = pickle.loads(pickle.dumps(open_volume("../n5")))
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(copy[:], VOXELS)


@pytest.mark.parametrize(
    ("unit", "says"),
    [(None, "is stated without a unit"), ("pixel", "is stated in pixel, which is no known unit of length")],
)
def test_a_voxel_size_without_a_unit_is_told(unit: str | None, says: str, tmp_path: Path) -> None:
    opened = open_volume(ome_04(tmp_path / "a", VOXELS, pyramid([8.0, 4.0, 3.24], unit, version="0.4")))
    assert opened.format == "OME-Zarr 0.4 (zarr v2)"
    assert opened.voxel_size_nm is None
    assert opened.notes == (f"a voxel of 8 x 4 x 3.24 (z, y, x) {says}",)
    assert open_volume(ome_04(tmp_path / "b", VOXELS, pyramid([1.0, 1.0, 1.0], unit))).notes == ()
    assert open_volume(ome_04(tmp_path / "c", VOXELS, pyramid([8.0, 4.0, 3.24]))).notes == ()
