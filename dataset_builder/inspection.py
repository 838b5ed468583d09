"""What is in a file: read from its header and from a few sampled planes, never from the whole volume."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dataset_builder.chunk_files import Asked, ask
from dataset_builder.harmonise import without_padding
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Opened
from em_bench_eval.volume_files import split_location
from em_bench_eval.volume_io import is_remote, open_volume
from em_bench_eval.volume_tree import volumes_below

Kind = Literal["image", "semantic labels", "instances", "one value"]

PLANES, WINDOW = 5, 1024  # sampled: so many planes, of each the middle window of at most so many pixels a side
PERCENTILES = (0.1, 1.0, 50.0, 99.0, 99.9)
FEW = 16  # an EM image has more gray values than this
MANY = 64  # classes; more are ids
MOST_LISTED = 24
UNASKED = "the server does not say whether all chunks are stored"
LARGE_EDGE_NM = 1e4  # 10 micrometres: no voxel of electron microscopy


@dataclass(frozen=True)
class Sample:
    """Statistics of the sampled planes."""

    planes: int
    smallest: float
    largest: float
    percentiles: tuple[float, ...]  # at PERCENTILES
    distinct: int
    values: tuple[int, ...]  # the first of the distinct values, if they are whole numbers
    uniform: float  # share of neighbours along x that are equal, among those that are not both 0
    largest_piece: float  # share of a value's pixels that are in its largest connected piece, mean over values but 0


@dataclass(frozen=True)
class Found:
    """One volume that was found, and what its sampled planes show; or why it cannot be opened."""

    location: str
    opened: Opened | None
    sample: Sample | None
    kind: Kind | None
    bytes_on_disk: int | None
    fault: InputError | None = None
    chunks: Asked | None = None  # of an image in zarr or N5: how many are stored
    unasked: str = ""  # why that is not known

    @property
    def doubts(self) -> list[str]:
        """What a person should look at before a build."""
        doubts = [self.unasked] if self.unasked else []
        if self.chunks is not None and self.chunks.missing:
            doubts.append(
                f"{self.chunks}: a build takes them as not recorded, and ignores their voxels. Some writers leave out "
                "chunks of nothing but the fill value (zarr-python: write_empty_chunks=False): if these voxels were "
                "recorded, write the image again with all chunks"
            )
        size = None if self.opened is None else self.opened.voxel_size_nm
        if size is not None and max(size) > LARGE_EDGE_NM:
            edges = " x ".join(f"{edge / 1000:g}" for edge in size)
            doubts.append(
                f"a voxel of {edges} um is stated, which is large for electron microscopy: is the unit right?"
            )
        return doubts


def inspect_path(location: str | os.PathLike[str]) -> tuple[list[Found], bool]:
    """Inspect a path and everything below it; also say whether there is more than is shown.

    Raises ``InputError`` where there is nothing that may be a volume.
    """
    places, more = volumes_below(location)
    if not places:
        open_volume(location)  # says what is there instead
    return [inspect_volume(place, alone=len(places) == 1) for place in places], more


def inspect_volume(location: str, *, alone: bool = False) -> Found:
    """Open one volume and sample it; what cannot be opened is told, or raised if it is ``alone``."""
    try:
        opened = open_volume(location)
        sample = sample_of(opened)
        kind = kind_of(opened, sample)
    except InputError as error:
        if alone:
            raise
        return Found(location, None, None, None, None, error)
    chunks, unasked = None, ""
    if kind in ("image", "one value"):  # a label array may leave out background
        try:
            chunks = ask(opened)
        except InputError as error:
            unasked = f"{UNASKED}: {error.problem}: {error.found}"
        if kind == "image" and chunks is not None and chunks.missing == chunks.asked:  # but it was just read
            chunks, unasked = None, UNASKED
    return Found(location, opened, sample, kind, bytes_of(location), chunks=chunks, unasked=unasked)


def sample_of(opened: Opened) -> Sample:
    """Read the middle of a few evenly spaced planes."""
    depth, height, width = opened.shape
    planes = sorted({round(z) for z in np.linspace(0, depth - 1, PLANES).tolist()})
    sides = [slice(max(0, (size - WINDOW) // 2), max(0, (size - WINDOW) // 2) + WINDOW) for size in (height, width)]
    stack = np.stack([opened[z, sides[0], sides[1]] for z in planes])
    finite = stack[np.isfinite(stack)] if stack.dtype.kind == "f" else stack.ravel()
    finite = finite if finite.size else np.zeros(1, stack.dtype)
    distinct = np.unique(finite)
    whole = bool((distinct == np.rint(distinct)).all()) if distinct.dtype.kind == "f" else True
    left, right = stack[..., :-1], stack[..., 1:]
    inside = (left != 0) | (right != 0)
    uniform = float((left == right)[inside].mean()) if inside.any() else 1.0
    return Sample(
        planes=len(planes),
        smallest=float(finite.min()),
        largest=float(finite.max()),
        percentiles=tuple(float(value) for value in np.percentile(without_padding(finite), PERCENTILES)),
        distinct=len(distinct),
        values=tuple(int(value) for value in distinct[:MOST_LISTED]) if whole else (),
        uniform=uniform,
        largest_piece=_largest_piece(stack) if whole and len(distinct) <= MANY else 0.0,
    )


def kind_of(opened: Opened, sample: Sample) -> Kind:
    """Guess what a volume holds.

    Labels are uniform: neighbours are equal, unlike the gray values of an image with its noise. Ids differ from classes
    in that every id is one piece, or nearly.
    """
    if sample.distinct == 1:
        return "one value"
    labelled = bool(sample.values) and (sample.distinct <= FEW or sample.uniform > 0.7)
    if not labelled:
        return "image"
    foreground = sample.distinct - (0 in sample.values)
    if foreground == 1:
        return "semantic labels"
    return "instances" if sample.distinct > MANY or sample.largest_piece > 0.8 else "semantic labels"


def bytes_of(location: str) -> int | None:
    """Size on disk of a local file or folder; ``None`` for a server."""
    if is_remote(location):
        return None
    path = split_location(location)[0]
    if path.is_file():
        return path.stat().st_size
    return sum(child.stat().st_size for child in Path(path).rglob("*") if child.is_file())


def _largest_piece(stack: npt.NDArray[Any]) -> float:
    shares = []
    for plane in stack:
        for value in np.unique(plane):
            if value != 0:
                pieces = ndimage.label(plane == value, np.ones((3, 3)))[0]
                sizes = np.bincount(pieces.ravel())[1:]
                shares.append(sizes.max() / sizes.sum())
    return float(np.mean(shares)) if shares else 0.0


def table(found: list[Found]) -> list[str]:
    """Format a table with one line for each volume."""
    rows = [("volume", "format", "shape (z, y, x)", "type", "voxel nm", "looks like")]
    for one in found:
        if one.opened is None:
            rows.append((one.location, f"cannot be opened: {reason(one)}", "", "", "", ""))
            continue
        opened = one.opened
        size = "-" if opened.voxel_size_nm is None else " ".join(f"{edge:g}" for edge in opened.voxel_size_nm)
        shape = " ".join(map(str, opened.shape))
        rows.append((one.location, opened.format, shape, str(opened.dtype), size, str(one.kind)))
    widths = [max(len(row[column]) for row in rows if row[2] or column == 0) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def reason(one: Found) -> str:
    """Say in one line why a volume cannot be opened."""
    if one.fault is None:
        return ""
    return one.fault.problem if one.fault.found is None else f"{one.fault.problem}: {one.fault.found}"


def details(one: Found) -> list[str]:
    """Format everything about one volume."""
    if one.opened is None or one.sample is None:
        return [one.location, f"  {one.fault}"]
    opened, sample = one.opened, one.sample
    voxels = int(np.prod([float(size) for size in opened.shape]))
    disk = "on a server" if one.bytes_on_disk is None else f"{_size(one.bytes_on_disk)} on disk"
    read = " x ".join(map(str, opened.chunk_shape))
    size = opened.voxel_size_nm
    stated = "not stated" if size is None else f"{' x '.join(f'{edge:g}' for edge in size)} nm (z, y, x), by the file"
    values = ", ".join(map(str, sample.values)) + (", ..." if sample.distinct > len(sample.values) else "")
    spread = ", ".join(f"{value:g}" for value in sample.percentiles)
    lines = {
        "format": opened.format,
        "shape": f"{' x '.join(map(str, opened.shape))} (z, y, x), {opened.dtype}",
        "size": f"{_size(voxels * opened.dtype.itemsize)} of voxels, {disk}",
        "voxel size": stated,
        "reads": f"{read} voxels at once" if opened.chunk_shape != (1, 1, 1) else "any box",
        "range": f"{sample.smallest:g} to {sample.largest:g} (middle of {sample.planes} planes)",
        "percentiles": f"{spread} at {', '.join(f'{at:g}' for at in PERCENTILES)} %",
        "values": f"{sample.distinct} distinct" + (f": {values}" if sample.values and one.kind != "image" else ""),
        "looks like": str(one.kind),
    }
    if opened.translation_nm is not None:
        lines["position"] = f"{', '.join(f'{at:g}' for at in opened.translation_nm)} nm (z, y, x)"
    shown = {key: value for key, value in opened.attributes.items() if isinstance(value, (str, int, float, bool))}
    if shown:
        lines["states"] = ", ".join(f"{key} {str(value)[:40]}" for key, value in list(shown.items())[:8])
    return [one.location, *(f"  {key:<12}{value}" for key, value in lines.items())] + [
        f"  note        {note}" for note in (*opened.notes, *one.doubts)
    ]


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}"
