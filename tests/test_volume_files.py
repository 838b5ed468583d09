"""Every file format, written by its library: same voxels, voxel size, only what a box needs is read; every fault."""

from __future__ import annotations

import gzip
import math
import os
import pickle
import re
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import mrcfile
import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from em_bench_eval import spacing
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Mapped, Opened
from em_bench_eval.schema import VoxelSize
from em_bench_eval.volume_files import FORMATS
from em_bench_eval.volume_io import open_volume
from em_bench_eval.volume_tree import volumes_below

SHAPE = (6, 40, 52)
VOXELS = np.random.default_rng(0).integers(0, 2**16, SHAPE, dtype=np.uint16)
NM = VoxelSize(8.0, 4.0, 3.25)
IMAGEJ = {"axes": "ZYX", "spacing": 0.008, "unit": "um"}
OME = {"axes": "ZYX", "PhysicalSizeX": 3.25, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.004, "PhysicalSizeZ": 80}
OME |= {"PhysicalSizeZUnit": "Å"}  # Y has no unit: that means micrometres


def tiff(path: Path, voxels: np.ndarray = VOXELS, **options: Any) -> Path:
    path = path.with_suffix(".tif")
    tifffile.imwrite(path, voxels, **options)
    return path


def pages(path: Path, voxels: np.ndarray = VOXELS) -> Path:
    path = path.with_suffix(".tif")
    with tifffile.TiffWriter(path) as writer:
        for plane in voxels:
            writer.write(plane, contiguous=False, metadata=None)
    return path


def folder(path: Path, voxels: np.ndarray = VOXELS, suffix: str = ".png", name: str = "slice_{}") -> Path:
    path.mkdir()
    for z, plane in enumerate(voxels):
        file = path / f"{name.format(z + 7)}{suffix}"
        Image.fromarray(plane).save(file) if suffix == ".png" else tifffile.imwrite(file, plane, compression="lzw")
    return path


def hdf5(path: Path, voxels: np.ndarray = VOXELS, **options: Any) -> Path:
    with h5py.File(path.with_suffix(".h5"), "w") as file:
        data = file.create_dataset("volumes/raw", data=voxels, **options)
        data.attrs["resolution"] = tuple(NM)
        data.attrs["offset"] = (80.0, 0.0, 0.0)
    return path.with_suffix(".h5")


def nifti(path: Path, voxels: np.ndarray = VOXELS, suffix: str = ".nii", kind: Any = nibabel.Nifti1Image) -> Path:
    image = kind(voxels.T, np.diag([0.00325, 0.004, 0.008, 1]), dtype=voxels.dtype)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path.with_suffix(suffix))
    return path.with_suffix(suffix)


def mrc(path: Path, voxels: np.ndarray = VOXELS, nm: VoxelSize | None = NM) -> Path:
    with mrcfile.new(path.with_suffix(".mrc"), voxels, overwrite=True) as file:
        if nm is not None:
            file.voxel_size = (nm.x * 10, nm.y * 10, nm.z * 10)
    return path.with_suffix(".mrc")


def big_endian_mrc(path: Path) -> Path:
    path = mrc(path)
    whole = path.read_bytes()
    header = np.frombuffer(whole[:1024], mrcfile.dtypes.HEADER_DTYPE).copy()
    swapped = header.astype(header.dtype.newbyteorder(">"))
    swapped["machst"] = (0x11, 0x11, 0, 0)
    path.write_bytes(swapped.tobytes() + VOXELS.astype(">u2").tobytes())
    return path


# name -> (what writes it, format as told, voxel size)
WRITERS: dict[str, tuple[Callable[[Path], Path], str, VoxelSize | None]] = {
    "one page after the other": (lambda p: tiff(p), "TIFF", None),
    "pages that lie anywhere": (lambda p: pages(p), "TIFF", None),
    "big-endian": (lambda p: tiff(p, byteorder=">"), "TIFF", None),
    "big-endian, compressed": (lambda p: tiff(p, byteorder=">", compression="zlib", predictor=True), "TIFF", None),
    "LZW in strips of 7 rows": (lambda p: tiff(p, compression="lzw", rowsperstrip=7), "TIFF", None),
    "tiled, zstd": (lambda p: tiff(p, tile=(16, 32), compression="zstd"), "TIFF", None),
    "BigTIFF": (lambda p: tiff(p, bigtiff=True, compression="zlib"), "BigTIFF", None),
    "ImageJ": (
        lambda p: tiff(p, imagej=True, metadata=IMAGEJ, resolution=(1 / 0.00325, 250)),
        "ImageJ TIFF",
        NM,
    ),
    "OME": (lambda p: tiff(p, ome=True, metadata=OME), "OME-TIFF", NM),
    "OME with a pyramid": (lambda p: ome_pyramid(p), "OME-TIFF", None),
    "folder of PNG": (lambda p: folder(p), "PNG files", None),
    "folder of TIFF": (lambda p: folder(p, suffix=".tif"), "TIFF files", None),
    "HDF5, chunked": (lambda p: hdf5(p, chunks=(2, 8, 16), compression="gzip"), "HDF5", NM),
    "HDF5, big-endian": (lambda p: hdf5(p, VOXELS.astype(">u2")), "HDF5", NM),
    "NIfTI": (lambda p: nifti(p), "NIfTI", NM),
    "NIfTI-2": (lambda p: nifti(p, kind=nibabel.Nifti2Image), "NIfTI", NM),
    "NIfTI, gzip": (lambda p: nifti(p, suffix=".nii.gz"), "NIfTI", NM),
    "MRC": (lambda p: mrc(p), "MRC", NM),
    "MRC, big-endian": (big_endian_mrc, "MRC", NM),
}


def ome_pyramid(path: Path) -> Path:
    path = path.with_suffix(".ome.tif")
    with tifffile.TiffWriter(path) as writer:
        writer.write(VOXELS, subifds=1, metadata={"axes": "ZYX"}, tile=(16, 16))
        writer.write(VOXELS[:, ::2, ::2], subfiletype=1, tile=(16, 16))
    return path


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_voxels_and_its_voxel_size(name: str, tmp_path: Path) -> None:
    write, told, nm = WRITERS[name]
    path = write(tmp_path / "v")
    opened = open_volume(path)
    assert (opened.format, opened.shape, opened.dtype) == (told, SHAPE, np.dtype(np.uint16))
    assert opened.dtype.isnative
    whole = opened[:]
    np.testing.assert_array_equal(whole, VOXELS)
    assert whole.dtype.isnative
    np.testing.assert_array_equal(opened[1:5, 9:23, 3:50], VOXELS[1:5, 9:23, 3:50])
    assert all(1 <= chunk <= size for chunk, size in zip(opened.chunk_shape, SHAPE, strict=True))
    if nm is None:
        assert opened.voxel_size_nm is None
    else:
        assert opened.voxel_size_nm is not None
        np.testing.assert_allclose(tuple(opened.voxel_size_nm), tuple(nm), rtol=1e-6)
    np.testing.assert_array_equal(open_volume(f"file://{path}")[2], VOXELS[2])


@pytest.mark.parametrize("name", WRITERS)
def test_threads_share_one_and_other_processes_open_their_own(name: str, tmp_path: Path) -> None:
    opened = open_volume(WRITERS[name][0](tmp_path / "v"))
    boxes = [(slice(z, z + 2), slice(y, y + 11), slice(3, 40)) for z in range(5) for y in (0, 13, 29)] * 3
    with ThreadPoolExecutor(4) as pool:
        for box, found in zip(boxes, pool.map(opened.__getitem__, boxes), strict=True):
            np.testing.assert_array_equal(found, VOXELS[box])
    part = opened.crop((1, 5), (2, 30), (4, 44))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(part))[1:3, ::3], VOXELS[1:5, 2:30, 4:44][1:3, ::3])
    assert len(pickle.dumps(part)) < 1000, "voxels do not travel"


INDEX = st.one_of(
    st.integers(-5, 4),
    st.slices(5),
    st.builds(
        slice, st.none() | st.integers(-9, 9), st.none() | st.integers(-9, 9), st.sampled_from([1, 2, 3, -1, -2])
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(INDEX, st.tuples(INDEX), st.tuples(INDEX, INDEX), st.tuples(INDEX, INDEX, INDEX)), st.booleans())
def test_an_index_means_what_it_means_for_numpy(index: Any, cropped: bool) -> None:
    array = np.arange(7 * 8 * 9).reshape(7, 8, 9)
    opened = Opened("", "", Mapped(array), None, None).crop((1, 6), (2, 7), (3, 8))
    array = array[1:6, 2:7, 3:8]
    if cropped:
        opened, array = opened.crop((0, 5), (0, 5), (0, 5)), array
    np.testing.assert_array_equal(opened[index], array[index])
    assert opened[index].shape == array[index].shape


def test_what_is_no_index_of_a_volume() -> None:
    opened = Opened("v", "", Mapped(np.zeros((3, 4, 5))), None, None)
    assert opened[..., 0].shape == (3, 4)
    assert opened[1, ..., 2:].shape == (4, 3)
    assert np.asarray(opened).shape == (3, 4, 5)
    for index in (3, (0, -5), (0, 0, 0, 0)):
        with pytest.raises(IndexError):
            opened[index]
    with pytest.raises(InputError, match="no such box"):
        opened.crop((0, 3), (0, 5), (0, 5))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_of_strips_and_tiles(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from([{"rowsperstrip": 7}, {"tile": (16, 16)}, {"tile": (16, 48)}, {}]))
    ends = [sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE]
    box = tuple(slice(low, high, data.draw(st.integers(1, 4))) for low, high in ends)
    path = tmp_path_factory.getbasetemp() / f"boxes-{'-'.join(map(str, layout.items()))}.tif".replace("/", "")
    if not path.exists():
        tiff(path, compression="zlib", **layout)
    np.testing.assert_array_equal(open_volume(path)[box], VOXELS[box])


def bytes_read(action: Callable[[], object]) -> int:
    """Count what this process reads from files meanwhile (not from maps)."""

    def total() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = total()
    action()
    return total() - before


LARGE = np.random.default_rng(1).integers(0, 255, (16, 512, 512), dtype=np.uint8)  # 4 MB, does not compress
LAZY = {
    "tiled TIFF": (lambda p: tiff(p, LARGE, tile=(64, 64), compression="zlib"), 64 * 64),
    "TIFF in strips": (lambda p: tiff(p, LARGE, rowsperstrip=32, compression="zlib"), 32 * 512),
    "TIFF files": (lambda p: folder(p, LARGE, ".tif"), 512 * 512),
    "PNG files": (lambda p: folder(p, LARGE), 512 * 512),
    "HDF5": (lambda p: hdf5(p, LARGE, chunks=(1, 64, 64)), 64 * 64),
    "NIfTI": (lambda p: nifti(p, LARGE), 10 * 512),
}


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes by /proc/self/io")
@pytest.mark.parametrize("name", LAZY)
def test_a_small_box_reads_little(name: str, tmp_path: Path) -> None:
    write, piece = LAZY[name]
    opened = open_volume(write(tmp_path / "v"))
    opened[0, :10, :10]  # libraries load what they need
    count = bytes_read(lambda: opened[7, 65:75, 130:140])
    assert count < 2 * piece + 60_000, f"{count} bytes for a piece of {piece}"


@pytest.mark.parametrize("name", ["TIFF", "MRC"])
def test_uncompressed_files_are_mapped(name: str, tmp_path: Path) -> None:
    opened = open_volume({"TIFF": tiff, "MRC": mrc}[name](tmp_path / "v"))
    assert isinstance(opened.array, Mapped)
    assert isinstance(opened.array.values, np.memmap)
    box = opened[1:3, 4:6, 7:9]
    assert not isinstance(box, np.memmap), "what is read does not depend on the file any more"
    box += 1
    np.testing.assert_array_equal(opened[:], VOXELS)


def test_packed_nifti_is_unpacked_once_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = nifti(tmp_path / "v", suffix=".nii.gz")
    opened = open_volume(path)
    assert any("unpacks all of it" in note for note in opened.notes)
    times = []
    real = gzip.open
    monkeypatch.setattr(gzip, "open", lambda *a, **k: times.append(a) or real(*a, **k))
    for z in range(6):
        np.testing.assert_array_equal(opened[z], VOXELS[z])
    assert len(times) == 1


def other_voxels(path: Path, change: Callable[[bytes], bytes]) -> Path:
    """A packed NIfTI file whose stream is sound and does not hold what its header promises."""
    path = nifti(path, suffix=".nii.gz")
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))
    return path


PROMISED = 352 + VOXELS.nbytes


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda stream: stream[:-1], f"{PROMISED - 1:,} bytes"),
        (lambda stream: stream[:352], "352 bytes"),
        (lambda stream: stream + b"\0", f"more than {PROMISED:,} bytes"),
    ],
)
def test_a_packed_nifti_holds_what_its_header_promises(change: Any, found: str, tmp_path: Path) -> None:
    opened = open_volume(other_voxels(tmp_path / "v", change))
    expected = rf"expected: {PROMISED:,} bytes: 352, then 52 x 40 x 6 voxels \(x, y, z\) of uint16"
    with pytest.raises(InputError, match=rf"v\.nii\.gz does not unpack to what .*\n  found: {found}\n  {expected}"):
        opened[0]


def test_a_packed_nifti_is_not_unpacked_beyond_its_promise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = other_voxels(tmp_path / "v", lambda stream: stream + bytes(2**26))
    assert bomb.stat().st_size < 2**17
    files = []
    real = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: files.append(real()) or files[-1])
    with pytest.raises(InputError, match="found: more than"):
        open_volume(bomb)[0]
    assert files[0].tell() == PROMISED + 1


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_a_packed_nifti_that_was_cut_off_says_how_far_it_goes(share: float, tmp_path: Path) -> None:
    path = cut(nifti(tmp_path / "v", suffix=".nii.gz"), share)
    assert re.search(rf"found: [\d,]+ bytes, then: .*\n  expected: {PROMISED:,} bytes", message(path))


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64", "uint64"]
HOLDS = {
    "TIFF": (tiff, DTYPES),
    "HDF5": (hdf5, DTYPES),
    "NIfTI": (nifti, DTYPES),
    "MRC": (mrc, ["int8", "int16", "uint16", "float32"]),
}


@pytest.mark.parametrize("name", HOLDS)
def test_every_type_that_a_format_holds(name: str, tmp_path: Path) -> None:
    write, dtypes = HOLDS[name]
    for dtype in dtypes:
        voxels = VOXELS.astype(dtype) if np.dtype(dtype).kind != "f" else VOXELS / np.dtype(dtype).type(7)
        opened = open_volume(write(tmp_path / dtype, voxels.astype(dtype)))
        assert opened.dtype == dtype
        np.testing.assert_array_equal(opened[:], voxels.astype(dtype))


def png_bytes(plane: np.ndarray, bits: int) -> bytes:
    """A gray PNG of 1, 2 or 4 bits a pixel, which Pillow does not write."""
    per_byte = 8 // bits
    rows = b""
    for row in plane:
        padded = np.zeros(-(-len(row) // per_byte) * per_byte, np.uint8)
        padded[: len(row)] = row
        packed = sum(padded[i::per_byte].astype(int) << (8 - bits * (i + 1)) for i in range(per_byte))
        rows += b"\0" + packed.astype(np.uint8).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", plane.shape[1], plane.shape[0], bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_keep_their_values(bits: int, tmp_path: Path) -> None:
    plane = np.random.default_rng(bits).integers(0, 2**bits, (9, 13), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(png_bytes(plane, bits))
    opened = open_volume(tmp_path / "a.png")
    assert opened.dtype == (bool if bits == 1 else np.uint8)
    np.testing.assert_array_equal(opened[0], plane)


def test_one_bit_tiff_and_white_is_zero(tmp_path: Path) -> None:
    mask = VOXELS[:, :, :] % 2 == 1
    opened = open_volume(tiff(tmp_path / "m", mask, photometric="miniswhite"))
    np.testing.assert_array_equal(opened[:], mask)
    assert any("white is zero" in note for note in opened.notes)


def test_a_colour_table_is_told_and_ids_are_kept(tmp_path: Path) -> None:
    ids = (VOXELS[0] % 200).astype(np.uint8)
    image = Image.fromarray(ids)
    image.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "p.png")
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "p.tif", ids, photometric="palette", colormap=colours)
    for name in ("p.png", "p.tif"):
        opened = open_volume(tmp_path / name)
        assert opened.attributes["palette"]
        assert any("colour table" in note for note in opened.notes)
        np.testing.assert_array_equal(opened[0], ids)


def test_huge_mosaics_are_no_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.fromarray(VOXELS[0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_volume(tmp_path / "a.png")[0], VOXELS[0])


def test_natural_order_and_what_is_no_slice(tmp_path: Path) -> None:
    path = folder(tmp_path / "s", np.repeat(VOXELS, 3, axis=0)[:15], name="cell2_{}")  # 7..21: 10 sorts before 7
    for name in ("Thumbs.db", ".DS_Store", "._cell2_8.png", "notes.txt"):
        (path / name).write_text("no image")
    np.testing.assert_array_equal(open_volume(path)[:], np.repeat(VOXELS, 3, axis=0)[:15])


def test_names_with_times_are_taken_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.mkdir()
    for z, time in enumerate((100300, 114000, 114101, 225900, 226040)):
        Image.fromarray(VOXELS[z]).save(path / f"scan_{time}.png")
    np.testing.assert_array_equal(open_volume(path)[:], VOXELS[:5])
    other = tmp_path / "t"
    other.mkdir()
    for z, time in enumerate((100300, 114000, 114101, 225900, 226040)):  # two numbers, one of which counts
        Image.fromarray(VOXELS[z]).save(other / f"s{z:04d}_{time}.png")
    assert open_volume(other).shape[0] == 5


def test_stacks_saved_with_another_name_for_z(tmp_path: Path) -> None:
    opened = open_volume(tiff(tmp_path / "t", imagej=True, metadata={"axes": "TYX"}))
    np.testing.assert_array_equal(opened[:], VOXELS)
    assert any("read as z" in note for note in opened.notes)
    assert open_volume(tiff(tmp_path / "c", imagej=True)).shape == SHAPE, "tifffile calls it C"


@pytest.mark.parametrize(
    ("unit", "factor"), [("micron", 1000), ("\\u00B5m", 1000), ("nm", 1), ("pixel", None), ("", None)]
)
def test_units_of_imagej(unit: str, factor: float | None, tmp_path: Path) -> None:
    path = tiff(tmp_path / "v", imagej=True, metadata={**IMAGEJ, "unit": unit}, resolution=(4, 2))
    size = open_volume(path).voxel_size_nm
    assert (size is None) == (factor is None)
    if size is not None and factor is not None:
        np.testing.assert_allclose(tuple(size), (0.008 * factor, 0.5 * factor, 0.25 * factor))


def test_pixels_without_a_distance_of_slices(tmp_path: Path) -> None:
    opened = open_volume(tiff(tmp_path / "v", resolution=(2.5e6, 2.5e6), resolutionunit="CENTIMETER"))
    assert opened.voxel_size_nm is None
    assert any("4 x 4 nm" in note for note in opened.notes)
    assert not open_volume(tiff(tmp_path / "w", resolution=(300, 300), resolutionunit="INCH")).notes, "for printers"


@pytest.mark.parametrize(
    ("zooms", "unit", "believed"),
    [
        ((1, 1, 1), "mm", None),  # nibabel's default
        ((57594930,) * 3, "mm", None),  # published so (UroCell)
        ((4, 4, 8), "unknown", None),
        ((4e-6, 4e-6, 8e-6), "mm", (8, 4, 4)),
        ((0.004, 0.004, 0.008), "micron", (8, 4, 4)),
        ((4e-9, 4e-9, 8e-9), "meter", (8, 4, 4)),
    ],
)
def test_zooms_of_nifti(zooms: tuple[float, ...], unit: str, believed: Any, tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS.T, np.diag([*zooms, 1]))
    image.header.set_zooms(zooms)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "v.nii")
    opened = open_volume(tmp_path / "v.nii")
    assert (opened.voxel_size_nm is None) == (believed is None)
    if opened.voxel_size_nm is None:
        assert opened.notes
    else:
        np.testing.assert_allclose(tuple(opened.voxel_size_nm), believed, rtol=1e-5)


@pytest.mark.parametrize("nm", [(40, 16, 16), (3.24, 4, 4), (5.24, 4, 4), (29.4, 3.7, 3.7)])
@pytest.mark.parametrize(("unit", "per_nm"), [("mm", 1e-6), ("micron", 1e-3), ("meter", 1e-9)])
def test_voxel_sizes_survive_32_bit_headers(nm: tuple[float, ...], unit: str, per_nm: float, tmp_path: Path) -> None:
    zooms = [edge * per_nm for edge in nm[::-1]]
    image = nibabel.Nifti1Image(VOXELS.T, np.diag([*zooms, 1]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "v.nii")
    assert open_volume(tmp_path / "v.nii").voxel_size_nm == VoxelSize(*nm)
    assert open_volume(mrc(tmp_path / "v", nm=VoxelSize(*nm))).voxel_size_nm == VoxelSize(*nm)


def test_scaled_nifti_is_float(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS.T.astype(np.int16), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "v.nii")
    expected = np.asarray(nibabel.load(tmp_path / "v.nii").dataobj).T
    opened = open_volume(tmp_path / "v.nii")
    assert opened.dtype == np.float64
    np.testing.assert_allclose(opened[:], expected)
    assert any("scaled" in note for note in opened.notes)


def imod_stamp(path: Path, flags: int) -> Path:
    whole = bytearray(path.read_bytes())
    whole[152:160] = struct.pack("<ii", 1146047817, flags)
    path.write_bytes(whole)
    return path


def test_bytes_of_mrc_are_signed_or_not(tmp_path: Path) -> None:
    signed = VOXELS.astype(np.int8)
    assert open_volume(mrc(tmp_path / "a", signed)).dtype == np.int8, "the header's smallest value is negative"
    unsigned = open_volume(imod_stamp(mrc(tmp_path / "b", signed), 0))
    assert unsigned.dtype == np.uint8
    np.testing.assert_array_equal(unsigned[:], signed.view(np.uint8))
    assert open_volume(imod_stamp(mrc(tmp_path / "c", signed), 1)).dtype == np.int8
    path = mrc(tmp_path / "d", signed)
    with mrcfile.open(path, "r+") as file:
        file.header.dmin, file.header.dmax = 0, 255
    assert open_volume(path).dtype == np.uint8
    for name in "abcd":
        assert any("bytes are read as" in note for note in open_volume(tmp_path / f"{name}.mrc").notes)


@pytest.mark.parametrize("nm", [None, VoxelSize(0.1, 0.1, 0.1)])
def test_mrc_without_a_voxel_size(nm: VoxelSize | None, tmp_path: Path) -> None:
    assert open_volume(mrc(tmp_path / "v", nm=nm)).voxel_size_nm is None


def test_hdf5_names_its_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "v.h5"
    with h5py.File(path, "w") as file:
        file["volumes/raw"] = VOXELS
        file["volumes/labels"] = VOXELS[None, ..., None]
        file["volumes/labels"].attrs["element_size_um"] = (0.008, 0.004, 0.00325)
        file["table"] = np.zeros((4, 2))
        xyz = file.create_dataset("xyz", data=VOXELS.T)
        for axis, name in enumerate("xyz"):
            xyz.dims[axis].label = name
        file["placeholder"] = VOXELS
        file["placeholder"].attrs["element_size_um"] = (1.0, 1.0, 1.0)
        file["four"] = np.zeros((2, 2, 3, 4))
    text = message(path)
    for part in ("4 3D data sets", "/volumes/raw (6, 40, 52) uint16", "/table", f"{path}:/"):
        assert part in text
    assert open_volume(f"{path}:/volumes/raw").shape == SHAPE
    assert open_volume(f"{path}:volumes/labels").voxel_size_nm == NM
    np.testing.assert_array_equal(open_volume(f"{path}:/volumes/labels")[2:4, 3], VOXELS[2:4, 3])
    np.testing.assert_array_equal(open_volume(f"{path}:/xyz")[2:4, 3:9], VOXELS[2:4, 3:9])
    assert open_volume(f"{path}:/placeholder").voxel_size_nm is None
    assert "did you mean '/volumes/raw'" in message(f"{path}:/volumes/row")
    assert "three axes" in message(f"{path}:/table")
    assert "shape (2, 2, 3, 4)" in message(f"{path}:/four")
    assert volumes_below(path)[0] == [
        f"{path}:/{name}" for name in ("four", "placeholder", "volumes/labels", "volumes/raw", "xyz")
    ]


def test_hdf5_that_lies_in_other_files(tmp_path: Path) -> None:
    hdf5(tmp_path / "part")
    layout = h5py.VirtualLayout(SHAPE, np.uint16)
    layout[:] = h5py.VirtualSource("part.h5", "volumes/raw", SHAPE)
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("raw", layout)
    np.testing.assert_array_equal(open_volume(tmp_path / "all.h5")[3:5], VOXELS[3:5])
    (tmp_path / "part.h5").unlink()
    assert "part.h5" in message(tmp_path / "all.h5")


def test_positions(tmp_path: Path) -> None:
    opened = open_volume(hdf5(tmp_path / "v"))
    assert opened.translation_nm == (80.0, 0.0, 0.0)
    assert opened.crop((2, 4), (10, 20), (4, 8)).translation_nm == (80 + 2 * 8, 10 * 4, 4 * 3.25)


def message(location: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        open_volume(location)[:]
    text = str(caught.value)
    assert "found:" in text or "expected:" in text
    return text


def cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


@pytest.mark.parametrize("share", [0.0, 0.02, 0.6, 0.99])
@pytest.mark.parametrize("name", [name for name in WRITERS if not name.startswith("folder")])
def test_a_truncated_file_is_never_read(name: str, share: float, tmp_path: Path) -> None:
    path = cut(WRITERS[name][0](tmp_path / "v"), share)
    # its voxels are complete, and the first page lists them all; the tifffile of Python 3.10 refuses the lost rest
    if (name, share) == ("one page after the other", 0.99) and sys.version_info >= (3, 11):
        np.testing.assert_array_equal(open_volume(path)[:], VOXELS)
        return
    assert path.name in message(path)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_truncated_slice_is_named(suffix: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "v", suffix=suffix)
    cut(path / f"slice_9{suffix}")
    assert f"slice_9{suffix}" in message(path)


@pytest.mark.parametrize("name", ["tiled, zstd", "big-endian, compressed", "HDF5, chunked", "NIfTI, gzip"])
def test_damage_inside_a_compressed_file(name: str, tmp_path: Path) -> None:
    path = WRITERS[name][0](tmp_path / "v")
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    for at in range(middle - 3000, middle + 3000, 7):
        whole[at] ^= 0xFF
    path.write_bytes(whole)
    assert path.name in message(path)


def test_wrong_suffixes(tmp_path: Path) -> None:
    shutil.move(hdf5(tmp_path / "v"), tmp_path / "v.tif")
    text = message(tmp_path / "v.tif")
    assert "content of a HDF5 file" in text
    assert "rename it to v.h5" in text
    (tmp_path / "w.tif").write_text("<html>404")
    assert "HTML" in message(tmp_path / "w.tif")
    (tmp_path / "x.jpg").write_bytes(b"\xff\xd8\xff\xe0 and so on")
    assert "begin like JPEG" in message(tmp_path / "x.jpg")
    shutil.move(tiff(tmp_path / "y"), tmp_path / "y.lsm")
    np.testing.assert_array_equal(open_volume(tmp_path / "y.lsm")[:], VOXELS)
    assert "leave out ':/a'" in message(f"{mrc(tmp_path / 'z')}:/a")
    assert "no such file" in message(tmp_path / "nothing.h5:/a")
    assert "download the file" in message("https://localhost/a.tif")


def test_folders_that_are_no_stack(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "an empty folder" in message(tmp_path / "empty")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "Thumbs.db").touch()
    assert "a folder with Thumbs.db" in message(tmp_path / "text")
    both = folder(tmp_path / "both")
    tiff(both / "overview", VOXELS[0])
    assert "1 TIFF files" in message(both)
    hole = folder(tmp_path / "hole")
    (hole / "slice_10.png").unlink()
    assert "between slice_9.png and slice_11.png" in message(hole)
    sizes = folder(tmp_path / "sizes")
    Image.fromarray(VOXELS[0, :30]).save(sizes / "slice_8.png")
    text = message(sizes)
    assert "slice_8.png has another size" in text
    assert "(30, 52)" in text
    depth = folder(tmp_path / "depth")
    Image.fromarray(VOXELS[0].astype(np.uint8)).save(depth / "slice_8.png")
    assert "uint8" in message(depth)
    stacks = tmp_path / "stacks"
    stacks.mkdir()
    tiff(stacks / "a1")
    assert "open the file instead of its folder" in message(stacks)
    colour = folder(tmp_path / "colour")
    Image.fromarray(np.zeros((40, 52, 3), np.uint8)).save(colour / "slice_7.png")
    assert "mode RGB" in message(colour)


def test_colour_and_four_axes(tmp_path: Path) -> None:
    rgb = np.zeros((6, 40, 52, 3), np.uint8)
    assert "not a gray image" in message(tiff(tmp_path / "a", rgb, photometric="rgb"))
    assert "not a gray image" in message(tiff(tmp_path / "b", VOXELS[:3], imagej=True))
    assert "axes" in message(tiff(tmp_path / "c", np.zeros((2, 6, 40, 52), np.uint8), metadata={"axes": "TZYX"}))
    Image.fromarray(np.zeros((4, 5, 4), np.uint8)).save(tmp_path / "d.png")
    assert "mode RGBA" in message(tmp_path / "d.png")
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.eye(4))
    nibabel.save(image, tmp_path / "e.nii")
    assert "shape (4, 5, 6, 2)" in message(tmp_path / "e.nii")
    with mrcfile.new(tmp_path / "f.mrc", np.zeros((4, 5, 6), np.complex64)):
        pass
    assert "mode 4" in message(tmp_path / "f.mrc")
    assert "complex" in message(tiff(tmp_path / "g", np.zeros((6, 40, 52), np.complex64)))


def test_several_series_in_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "v.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(VOXELS)
        writer.write(VOXELS[0, ::4, ::4])
    text = message(path)
    assert "0: (6, 40, 52) uint16; 1: (10, 13) uint16" in text
    np.testing.assert_array_equal(open_volume(f"{path}:0")[:], VOXELS)
    assert open_volume(f"{path}:1").shape == (1, 10, 13)
    assert "no series" in message(f"{path}:2")


def test_every_format_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    suffixes = [suffix for entry in FORMATS for suffix in entry.suffixes]
    assert len(suffixes) == len(set(suffixes))
    from em_bench_eval.volume_files import format_of_bytes

    for name, (write, told, _) in WRITERS.items():
        path = write(tmp_path / "".join(c for c in name if c.isalnum()))
        if path.is_file() and path.suffix != ".gz":
            held = format_of_bytes(path)
            assert held is not None
            assert held.name in told


def test_units_and_disbelief() -> None:
    assert spacing.nanometres("Å") == 0.1
    assert spacing.nanometres("furlong") is None
    assert spacing.in_nm([1, 1, 1], "angstrom", default=1.0)[0] is None
    assert spacing.in_nm([1, 1, 1], "nm")[0] == VoxelSize(1, 1, 1)
    assert spacing.in_nm([math.nan, 1, 1], "nm") == (None, "")
    assert spacing.in_nm([0, 1, 1], "nm")[0] is None


@pytest.mark.real_data
def test_real_stacks_have_the_published_numbers(real_data: Path) -> None:
    lucchi = open_volume(real_data / "lucchipp_fibsem_mito" / "train" / "raw")
    assert (lucchi.shape, lucchi.dtype) == ((64, 512, 512), np.uint8)
    plane = np.asarray(Image.open(real_data / "lucchipp_fibsem_mito" / "train" / "raw" / "0040.png"))
    np.testing.assert_array_equal(lucchi[40], plane)
    assert set(np.unique(open_volume(real_data / "lucchipp_fibsem_mito" / "train" / "label")[:])) == {0, 255}
    counts = []
    for name in ("fib1-0-0-0", "fib1-1-0-3", "fib1-3-3-0"):
        opened = open_volume(real_data / "urocell_labels" / "mito" / "instance" / f"{name}.nii.gz")
        assert opened.shape == (256, 256, 256)
        assert opened.voxel_size_nm is None, "the headers are wrong"
        counts.append(len(np.unique(opened[:])) - 1)
    assert counts == [39, 16, 83]
    vesicles = open_volume(real_data / "urocell_labels" / "fv" / "instance" / "fib1-0-0-0.nii.gz")
    assert vesicles.dtype == np.float64
    assert len(np.unique(vesicles[:])) - 1 == 253
    cebra = open_volume(real_data / "cebraem_mini3d" / "raw.h5")
    assert (cebra.shape, cebra.voxel_size_nm) == ((64, 64, 64), None)
    mixed = real_data / "vnc_sstem" / "stack1" / "mitochondria"
    with pytest.raises(InputError, match=r"01\.png has another size or type"):
        open_volume(mixed)
    with pytest.raises(InputError, match="volumes of their own"):
        open_volume(real_data / "hela_sbfsem_mito2d" / "raw")
    assert os.fspath(real_data)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_torn_tiff_is_known_by_its_headers(compression: str | None, tmp_path: Path) -> None:
    """The headers come first, as cameras and microscopes write them, so the list of pages is complete."""
    folder = tmp_path / "slices"
    folder.mkdir()
    for z, plane in enumerate(VOXELS):
        tifffile.imwrite(folder / f"{z}.tif", plane, compression=compression, rowsperstrip=8)
    whole = (folder / "3.tif").read_bytes()
    assert open_volume(folder).shape == SHAPE
    (folder / "3.tif").write_bytes(whole[: len(whole) - 10])
    with pytest.raises(InputError, match=r"3\.tif is truncated"):
        open_volume(folder)

    tifffile.imwrite(tmp_path / "v.tif", VOXELS, compression="zlib", rowsperstrip=8)
    assert open_volume(tmp_path / "v.tif").shape == SHAPE
    with tifffile.TiffFile(tmp_path / "v.tif", mode="r+b") as file:  # page 4 says that its last strip lies elsewhere
        offsets = list(file.pages[4].tags["StripOffsets"].value)
        file.pages[4].tags["StripOffsets"].overwrite([*offsets[:-1], 10**6])
    with pytest.raises(InputError, match=r"v\.tif is truncated"):
        open_volume(tmp_path / "v.tif")


def test_hdf5_lists_the_volumes_only_and_proposes_the_image(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "v.h5", "w") as file:
        for name in ("labels/ids", "mito_seg", "raw"):
            file[name] = VOXELS
        file["table"] = np.zeros((4, 2))
    with pytest.raises(InputError, match="holds 3 3D data sets") as caught:
        open_volume(tmp_path / "v.h5")
    volumes, _, others = str(caught.value.found).partition("not 3D: ")
    assert (volumes.count("v.h5:/"), others.count("v.h5:/")) == (3, 1)
    assert str(caught.value.remedy).endswith("v.h5:/raw")
    with h5py.File(tmp_path / "none.h5", "w") as file:
        file["table"] = np.zeros((4, 2))
    with pytest.raises(InputError, match="holds no 3D data set"):
        open_volume(tmp_path / "none.h5")
