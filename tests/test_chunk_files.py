"""Which chunks of an array are stored, by their files; and what a build makes of those that are not."""

from __future__ import annotations

import functools
import http.server
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore as ts
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder import chunk_files
from dataset_builder.chunk_files import Asked, NotStored, ask, not_stored
from dataset_builder.inspection import inspect_volume
from dataset_builder.instances import instances_of
from dataset_builder.sources.local import source_of
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Volume
from em_bench_eval.volume_io import open_volume

SHAPE, CHUNK = (9, 20, 14), (4, 6, 5)
GRAY = np.random.default_rng(5).integers(1, 256, SHAPE, dtype=np.uint8)  # nowhere 0, which is what readers fill in
BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
SHARDS = {"name": "sharding_indexed", "configuration": {"chunk_shape": [2, 3, 5], "codecs": [BYTES]}}


def zarr3(encoding: dict[str, Any], *codecs: dict[str, Any]) -> dict[str, Any]:
    regular = {"name": "regular", "configuration": {"chunk_shape": list(CHUNK)}}
    more = {"codecs": list(codecs)} if codecs else {}
    return {"driver": "zarr3", "metadata": {"chunk_grid": regular, "chunk_key_encoding": encoding, **more}}


FORMATS: dict[str, dict[str, Any]] = {
    "zarr v2": {"driver": "zarr", "metadata": {"chunks": list(CHUNK)}},
    "zarr v2, nested": {"driver": "zarr", "metadata": {"chunks": list(CHUNK), "dimension_separator": "/"}},
    "zarr v3": zarr3({"name": "default"}),
    "zarr v3, dots": zarr3({"name": "default", "configuration": {"separator": "."}}),
    "zarr v3, names of v2": zarr3({"name": "v2"}),
    "zarr v3 sharded": zarr3({"name": "default"}, SHARDS),
    "N5": {"driver": "n5", "metadata": {"blockSize": list(CHUNK[::-1]), "compression": {"type": "gzip"}}},
}
SPARSE = FORMATS["zarr v3"]  # chunks of 0 are left out
METADATA = (".zarray", "zarr.json", "attributes.json")


def write(path: Path, spec: dict[str, Any], voxels: np.ndarray = GRAY) -> Path:
    store = {"driver": "file", "path": f"{path}/"}
    order = voxels.T if spec["driver"] == "n5" else voxels
    options = {"create": True, "dtype": ts.dtype(voxels.dtype), "shape": order.shape}
    ts.open({**spec, "kvstore": store}, **options).result().write(order).result()
    return path


def chunks_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name not in METADATA)


def lose(path: Path, share: float, seed: int = 0) -> int:
    """Delete a share of the chunk files, one at least; return how many."""
    files = chunks_of(path)
    lost = np.random.default_rng(seed).permutation(len(files))[: max(1, round(share * len(files)))]
    for number in lost:
        files[number].unlink()
    return len(lost)


@pytest.mark.parametrize("name", FORMATS)
def test_the_mask_is_where_a_reader_fills_in(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "v", FORMATS[name])
    complete = not_stored(open_volume(path))
    assert complete is not None
    assert (complete.chunks, complete.missing) == (3 * 4 * 3, 0)
    assert not complete[:].any()
    lost = lose(path, 0.4)
    opened = open_volume(path)
    gaps = not_stored(opened)
    assert gaps is not None
    assert (gaps.chunks, gaps.missing, gaps.shape) == (36, lost, SHAPE)
    np.testing.assert_array_equal(gaps[:], opened[:] == 0)
    assert ask(opened) == Asked(36, 36, lost)
    travelled = pickle.loads(pickle.dumps(gaps))
    np.testing.assert_array_equal(travelled[2:7, ::-3, 5], (opened[:] == 0)[2:7, ::-3, 5])


@pytest.mark.parametrize("name", ["zarr v2", "N5", "zarr v3 sharded"])
def test_a_part_asks_for_its_own_chunks_only(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "v", FORMATS[name])
    lose(path, 0.5, seed=1)
    part = open_volume(path).crop((3, 9), (7, 12), (0, 6))
    gaps = not_stored(part)
    assert gaps is not None
    assert gaps.chunks == 3 * 1 * 2, "z 0 to 2, y 1, x 0 and 1"
    np.testing.assert_array_equal(gaps[:], part[:] == 0)


INDEX = st.one_of(st.integers(-4, 3), st.slices(4))


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 2**32),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.integers(0, 4)] * 3),
    st.tuples(*[INDEX] * 3),
)
def test_the_mask_equals_asking_for_every_voxel(seed: int, chunk: Any, start: Any, index: Any) -> None:
    start = tuple(at % edge for at, edge in zip(start, chunk, strict=True))
    grid = [-(-(at + 4) // edge) for at, edge in zip(start, chunk, strict=True)]
    absent = np.random.default_rng(seed).random(grid) < 0.5
    expected = np.zeros((4, 4, 4), bool)
    for z, y, x in np.ndindex(4, 4, 4):
        expected[z, y, x] = absent[tuple((v + at) // edge for v, at, edge in zip((z, y, x), start, chunk, strict=True))]
    np.testing.assert_array_equal(NotStored((4, 4, 4), absent, chunk, start)[index], expected[index])


def test_an_axis_of_length_one_and_other_files(tmp_path: Path) -> None:
    spec = {"driver": "zarr", "metadata": {"chunks": [1, *CHUNK]}}
    path = write(tmp_path / "v", spec, GRAY[np.newaxis])
    lose(path, 0.3)
    opened = open_volume(path)
    gaps = not_stored(opened)
    assert gaps is not None
    np.testing.assert_array_equal(gaps[:], opened[:] == 0)
    tifffile.imwrite(tmp_path / "v.tif", GRAY, photometric="minisblack")
    assert not_stored(open_volume(tmp_path / "v.tif")) is None
    assert ask(open_volume(tmp_path / "v.tif")) is None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()


def test_on_a_server(server: str, tmp_path: Path) -> None:
    lost = lose(write(tmp_path / "v.zarr", FORMATS["zarr v3"]), 0.2)
    opened = open_volume(f"{server}/v.zarr")
    gaps = not_stored(opened)
    assert gaps is not None
    assert gaps.missing == lost
    np.testing.assert_array_equal(gaps[:], opened[:] == 0)


def test_an_inspection_of_very_many_chunks_asks_for_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "v", FORMATS["zarr v2"])
    lose(path, 0.5)
    monkeypatch.setattr(chunk_files, "MOST_LOCAL", 10)
    asked = ask(open_volume(path))
    assert asked is not None
    assert (asked.chunks, asked.asked) == (36, 9)
    assert 0 < asked.missing < 9
    assert str(asked) == f"{asked.missing} of 9 chunks that were looked up, of 36, are not stored"


SPEC = """
source: {name: lab, title: Lab, licence: none stated, modality: FIB-SEM}
volumes:
  - id: a
    image: IMAGE
    specimen: s
    cell_type: c
    voxel_size_nm: [8, 8, 8]
    labels: {path: ids.zarr, instances: mito}
    annotated: {mito: manual}
"""
IDS = np.zeros(SHAPE, np.uint16)
IDS[5:, 10:, :6] = 3  # most chunks of the label array hold background only


@pytest.fixture
def lab(tmp_path: Path) -> Callable[[str], Volume]:
    write(tmp_path / "ids.zarr", SPARSE, IDS)
    write(tmp_path / "raw.zarr", FORMATS["zarr v2"])
    tifffile.imwrite(tmp_path / "mask.tif", (GRAY < 30).astype(np.uint8), photometric="minisblack")

    def volume(image: str = "raw.zarr", more: str = "") -> Volume:
        (tmp_path / "spec.yaml").write_text(SPEC.replace("IMAGE", image) + more)
        (only,) = source_of(tmp_path / "spec.yaml").volumes(None, {})
        return only

    return volume


def test_lost_chunks_of_an_image_are_ignored(
    lab: Callable[..., Volume], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(chunks_of(tmp_path / "ids.zarr")) < 36, "the writer left out background"
    complete = lab()
    assert complete.ignore is None, "labels may leave out background, and all of the image is there"
    assert "chunks_missing_in_image" not in complete.provenance
    assert "not stored" not in capsys.readouterr().err
    lost = lose(tmp_path / "raw.zarr", 0.2)
    volume = lab()
    assert volume.ignore is not None
    np.testing.assert_array_equal(np.asarray(volume.ignore[:]), np.asarray(volume.image[:]) == 0)
    assert volume.provenance["chunks_missing_in_image"] == f"{lost} of 36"
    assert f"lab-a: {lost} of 36 chunks of the image are not stored" in capsys.readouterr().err
    masked = lab(more="    ignore: mask.tif\n")
    assert masked.ignore is not None
    np.testing.assert_array_equal(np.asarray(masked.ignore[:]), (volume.image[:] == 0) | (GRAY < 30))
    ids, organelle_of = instances_of(volume)
    assert set(organelle_of) == {3}
    np.testing.assert_array_equal(np.asarray(ids[:]) > 0, IDS > 0)


def test_an_image_of_which_nothing_is_stored(lab: Callable[..., Volume], tmp_path: Path) -> None:
    lose(tmp_path / "raw.zarr", 1)
    with pytest.raises(InputError, match="none of its 36 chunks"):
        lab()


def test_an_inspection_tells_of_lost_chunks_of_images_only(tmp_path: Path) -> None:
    raw = write(tmp_path / "raw.zarr", FORMATS["zarr v3"])
    ids = write(tmp_path / "ids.zarr", SPARSE, IDS)
    assert inspect_volume(str(raw)).doubts == []
    assert inspect_volume(str(ids)).doubts == [], "no label chunk is missed"
    lost = lose(raw, 0.1)
    (doubt,) = inspect_volume(str(raw)).doubts
    assert doubt.startswith(f"{lost} of 36 chunks are not stored")
    assert "write_empty_chunks" in doubt


@pytest.mark.parametrize("answer", [403, 405])
def test_a_server_that_does_not_say_what_is_stored(
    answer: int, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "v.zarr", FORMATS["zarr v3"])
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "do_HEAD", lambda self: self.send_error(answer))
    found = inspect_volume(f"{server}/v.zarr")
    assert found.kind == "image"
    (doubt,) = found.doubts
    assert doubt.startswith("the server does not say whether all chunks are stored")
    write(tmp_path / "ids.zarr", SPARSE, IDS)
    (tmp_path / "spec.yaml").write_text(SPEC.replace("IMAGE", f"{server}/v.zarr"))
    with pytest.raises(InputError, match=r"HEAD requests|HTTP 405"):
        list(source_of(tmp_path / "spec.yaml").volumes(None, {}))
