"""Writing volumes plane by plane in the formats that nnU-Net reads; a file appears under its name when complete."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.external.row_boxes import Triple
from em_bench_eval.errors import InputError

Planes = Iterable[npt.NDArray[Any]]
Spacing = tuple[float, float, float]  # nm, in the order of the file; 0 across the plane of a 2D image
LONGEST_NIFTI = 32767  # voxels along an axis: NIfTI-1 counts in 16 bit
GZIP_LEVEL = 3  # images hardly shrink at higher ones
FLAT = 999.0  # pixels: nnU-Net's own spacing across a 2D image, so that it slices along no other axis


@dataclass(frozen=True)
class FileKind:
    """One format: nnU-Net's file ending and readers, and what writes it."""

    ending: str
    reader_2d: str
    reader_3d: str | None  # None: 2D only
    write: Callable[[Path, Planes, Triple, Any, Spacing], None]
    states_spacing: bool  # whether the file itself says how large a pixel is


def write_nifti(path: Path, planes: Planes, shape: Triple, dtype: npt.DTypeLike, spacing_nm: Spacing) -> None:
    """Write ``.nii.gz``: stored ``(x, y, z)``, 1 nm written as 1 mm, because that is what medical programs count in.

    Planes are compressed as they come; the result is the same for the same voxels.
    """
    import nibabel

    if max(shape) > LONGEST_NIFTI:
        raise InputError(
            f"{path.name} is too long for NIfTI",
            found=f"{shape} voxels",
            expected=f"at most {LONGEST_NIFTI} along each axis",
            remedy="export as TIFF (--format tiff)",
        )
    kind = np.dtype(dtype)
    across = spacing_nm[0] or FLAT * max(spacing_nm)
    affine = np.diag([*spacing_nm[:0:-1], across, 1.0])
    header: Any = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(kind)
    header.set_data_shape(shape[::-1])
    header.set_xyzt_units("mm")
    header.set_qform(affine, code=1)
    header.set_sform(affine, code=1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_slope_inter(1, 0)
    with (
        _complete(path) as partial,
        partial.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=file, mtime=0) as packed,
    ):
        packed.write(header.binaryblock + bytes(4))  # no extensions
        for plane in _checked(planes, shape):
            packed.write(np.ascontiguousarray(plane, kind.newbyteorder("<")).tobytes())


def write_tiff(path: Path, planes: Planes, shape: Triple, dtype: npt.DTypeLike, spacing_nm: Spacing) -> None:
    """Write a gray TIFF of one page a plane; it states no pixel size, because nnU-Net reads that from another file."""
    import tifffile

    pages = (np.ascontiguousarray(plane, dtype) for plane in _checked(planes, shape))
    with _complete(path) as partial:
        tifffile.imwrite(
            partial,
            pages,
            shape=shape if spacing_nm[0] else shape[1:],
            dtype=np.dtype(dtype),
            compression="zlib",
            photometric="minisblack",
            software="em-organelle-wild",
        )


def write_png(path: Path, planes: Planes, shape: Triple, dtype: npt.DTypeLike, spacing_nm: Spacing) -> None:
    """Write the only plane as PNG, of 8 or 16 bits."""
    from PIL import Image

    (plane,) = _checked(planes, shape)
    largest = int(plane.max(initial=0))
    if largest > 65535:
        raise InputError(f"{path.name}: id {largest} does not fit PNG", remedy="export as NIfTI or TIFF")
    deep = np.uint8 if np.dtype(dtype) == np.uint8 else np.uint16
    with _complete(path) as partial:
        Image.fromarray(plane.astype(deep)).save(partial, format="PNG")


FILE_KINDS: Mapping[str, FileKind] = {
    "nifti": FileKind(".nii.gz", "SimpleITKIO", "SimpleITKIO", write_nifti, True),
    "tiff": FileKind(".tif", "NaturalImage2DIO", "Tiff3DIO", write_tiff, False),
    "png": FileKind(".png", "NaturalImage2DIO", None, write_png, False),
}


def _checked(planes: Planes, shape: Triple) -> Iterator[npt.NDArray[Any]]:
    """Pass planes on; their number and size are what was announced, or the file would be none."""
    count = 0
    for plane in planes:
        if plane.shape != shape[1:]:
            raise ValueError(f"a plane of {plane.shape} in a file of {shape}")
        count += 1
        yield plane
    if count != shape[0]:
        raise ValueError(f"{count} planes in a file of {shape}")


@contextmanager
def _complete(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
