"""One pass over a published volume: what every slice holds, box by box, in bounded memory."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.layout import Box
from dataset_builder.numbering import IdTable
from dataset_builder.quality_registration import (
    RADIUS,
    Floats,
    LabelShift,
    SliceShift,
    agreement,
    label_shift,
    mirror_score,
    slice_shift,
)
from dataset_builder.volumes import open_array
from em_bench_eval.schema import ORGANELLES, VoxelSize

SMALL = 512  # pixels of the longer side of the slices that are registered
SAMPLED, WINDOW = 48, 448  # instances whose boundaries are compared with the image; voxels of a window's side
AXES = ("z", "y", "x")


@dataclass(frozen=True)
class Listed:
    """A volume as the dataset's tables list it; the arrays are parallel."""

    folder: Path  # the dataset
    volume_id: str
    source: str
    zarr: str
    voxel_size_nm: tuple[float, float, float]
    ids: npt.NDArray[np.int64]
    classes: npt.NDArray[np.uint8]  # Organelle.label_id
    voxels: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.int64]  # (n, 6): z0, y0, x0, z1, y1, x1
    has_image: bool = True  # False: labels only, the image is a placeholder

    @property
    def path(self) -> Path:
        """The volume's OME-Zarr."""
        return self.folder / self.zarr


@dataclass
class Measured:
    """What was found in a volume. Arrays over slices have one entry, or row, a slice."""

    shape: tuple[int, int, int]
    gray: npt.NDArray[np.int64]  # (z, 256) histogram
    class_voxels: npt.NDArray[np.int64]  # (z, 6), by Organelle.label_id
    ignored: npt.NDArray[np.int64]  # (z,)
    unknown: npt.NDArray[np.int64]  # (z,) voxels of ids that are not listed
    conflicts: npt.NDArray[np.int64]  # (z,) voxels whose class is not that of their instance
    counted: npt.NDArray[np.int64]  # voxels of each listed instance
    shifts: list[SliceShift | None] = field(default_factory=list)  # of each slice against the one before
    small_factor: int = 1  # pixels of the volume in one of the slices that were registered
    duplicate_of: dict[int, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # absent files, and black chunks with labels
    missing_z: set[int] = field(default_factory=set)
    black_chunks: int = 0
    label_only: bool = False  # no image
    labels: LabelShift | None = None  # along (y, x)
    labels_across: LabelShift | None = None  # along (z, x); only of isotropic volumes
    mirrored: dict[str, float] = field(default_factory=dict)  # axis -> standard errors


def measure(listed: Listed) -> Measured:
    """Read a volume once, and a few windows of it twice."""
    image = open_array(listed.path / "s0")
    depth, height, width = (int(size) for size in image.shape)
    found = Measured(
        shape=(depth, height, width),
        gray=np.zeros((depth, 256), np.int64),
        class_voxels=np.zeros((depth, len(ORGANELLES) + 1), np.int64),
        ignored=np.zeros(depth, np.int64),
        unknown=np.zeros(depth, np.int64),
        conflicts=np.zeros(depth, np.int64),
        counted=np.zeros(len(listed.ids), np.int64),
        small_factor=1 << max(0, (max(height, width) - 1) // SMALL).bit_length(),
    )
    blank = _read_all(listed, image, found)
    found.label_only = not listed.has_image
    if not found.label_only:
        _find_absent_files(listed, image, found, blank)
    if not found.unreadable and not found.label_only and (listed.path / "labels").is_dir():  # else they are private
        _compare_labels(listed, image, found)
    return found


def _read_all(listed: Listed, image: Any, found: Measured) -> npt.NDArray[np.bool_]:
    """Fill everything that is counted; return which chunks of the image are black."""
    labels = {name: listed.path / "labels" / name / "s0" for name in ("instances", "semantic", "ignore")}
    arrays = {name: open_array(path) for name, path in labels.items() if path.is_dir()}
    real = listed.ids > 0  # a negative one would stand for a stored id of 2^63 or more: it is not that
    class_of = IdTable(listed.ids[real], listed.classes[real])
    place_of = IdTable(listed.ids[real], np.flatnonzero(real) + 1)
    chunk = image.chunk_layout.read_chunk.shape
    blank = np.ones([-(-size // edge) for size, edge in zip(found.shape, chunk, strict=True)], bool)
    seen: dict[bytes, int] = {}
    before: npt.NDArray[Any] | None = None
    for depth, tiles in itertools.groupby(_boxes(image), key=lambda box: box[0]):
        hashes = [hashlib.blake2b(digest_size=16) for _ in range(depth.stop - depth.start)]
        small = np.zeros((len(hashes), *(-(-size // found.small_factor) for size in found.shape[1:])), np.float32)
        for box in tiles:
            try:
                pixels = np.asarray(image[box].read().result())
                parts = {name: np.asarray(array[box].read().result()) for name, array in arrays.items()}
                parts = parts or dict(zip(labels, np.zeros((2, *pixels.shape), np.uint8), strict=False))  # private
            except ValueError as error:  # tensorstore: truncated or damaged
                found.unreadable.append(str(error).split(" [source locations")[0])
                continue
            _count(found, box, pixels, parts, class_of, place_of)
            _mark_black(found, blank, box, pixels, parts["instances"], chunk)
            for number, plane in enumerate(pixels):
                hashes[number].update(plane.tobytes())
            _shrink(small, pixels, box, found.small_factor)
        for number, (digest, plane) in enumerate(zip(hashes, small, strict=True)):
            z = depth.start + number
            flat = np.count_nonzero(found.gray[z]) <= 1
            first = z if flat else seen.setdefault(digest.digest(), z)
            if first != z:
                found.duplicate_of[z] = first
            known = before is not None and not flat and first == z and np.ptp(before) > 0
            found.shifts.append(slice_shift(before, plane) if known and before is not None else None)
            before = plane
    return blank


def _boxes(array: Any) -> Iterator[Box]:
    """Yield the boxes of all stored files, slab by slab."""
    shards = array.chunk_layout.write_chunk.shape
    grid = (range(0, size, edge) for size, edge in zip(array.shape, shards, strict=True))
    for corner in itertools.product(*grid):
        sides = zip(corner, shards, array.shape, strict=True)
        depth, height, width = (slice(start, min(start + edge, size)) for start, edge, size in sides)
        yield depth, height, width


def _count(
    found: Measured,
    box: Box,
    pixels: npt.NDArray[np.uint8],
    parts: Mapping[str, npt.NDArray[Any]],
    class_of: IdTable,
    place_of: IdTable,
) -> None:
    slab, ids, classes = box[0], parts["instances"], parts["semantic"]
    for number, z in enumerate(range(slab.start, slab.stop)):
        found.gray[z] += np.bincount(pixels[number].ravel(), minlength=256)
        counts = np.bincount(classes[number].ravel(), minlength=len(ORGANELLES) + 1)
        found.class_voxels[z] += counts[: len(ORGANELLES) + 1]
        own = class_of[ids[number]]
        labelled = ids[number] > 0
        found.unknown[z] += np.count_nonzero(labelled & (own == 0))
        found.conflicts[z] += np.count_nonzero((own != classes[number]) & ~(labelled & (own == 0)))
        if labelled.any():
            found.counted += np.bincount(place_of[ids[number][labelled]], minlength=len(found.counted) + 1)[1:]
    if "ignore" in parts:
        found.ignored[slab] += np.count_nonzero(parts["ignore"], axis=(1, 2))


def _mark_black(
    found: Measured,
    blank: npt.NDArray[np.bool_],
    box: Box,
    pixels: npt.NDArray[np.uint8],
    ids: npt.NDArray[Any],
    chunk: tuple[int, ...],
) -> None:
    grid = (range(side.start, side.stop, edge) for side, edge in zip(box, chunk, strict=True))
    for corner in itertools.product(*grid):
        part = tuple(
            slice(start - side.start, start - side.start + edge)
            for start, side, edge in zip(corner, box, chunk, strict=True)
        )
        place = tuple(start // edge for start, edge in zip(corner, chunk, strict=True))
        blank[place] = not pixels[part].any()
        if blank[place]:
            if ids[part].any():
                z0 = corner[0]
                found.missing.append(f"the chunk at (z, y, x) = {corner} is black but has labels")
                found.missing_z.update(range(z0, min(z0 + chunk[0], found.shape[0])))
            else:
                found.black_chunks += 1


def _shrink(small: npt.NDArray[np.float32], pixels: npt.NDArray[np.uint8], box: Box, factor: int) -> None:
    """Average a box into its place in the small slices; boxes begin at multiples of 64, ``factor`` divides that."""
    padded = np.pad(pixels, [(0, 0), *((0, -size % factor) for size in pixels.shape[1:])], mode="edge")
    depth, height, width = padded.shape
    blocks = padded.reshape(depth, height // factor, factor, width // factor, factor)
    y, x = box[1].start // factor, box[2].start // factor
    small[:, y : y + height // factor, x : x + width // factor] = blocks.mean(axis=(2, 4), dtype=np.float32)


def _find_absent_files(listed: Listed, image: Any, found: Measured, blank: npt.NDArray[np.bool_]) -> None:
    """Name the files of the image pyramid that are absent although the volume is not black there."""
    chunk = image.chunk_layout.read_chunk.shape
    for path in sorted(listed.path.glob("s*")):
        array = open_array(path)
        shard = array.chunk_layout.write_chunk.shape
        for box in _boxes(array):
            place = [side.start // edge for side, edge in zip(box, shard, strict=True)]
            name = "/".join([path.name, "c", *map(str, place)])
            if (listed.path / name).is_file():
                continue
            full = [
                slice(side.start * size // level // edge, -(-side.stop * size // level // edge))
                for side, size, level, edge in zip(box, found.shape, array.shape, chunk, strict=True)
            ]
            # at the finest level the absent file itself reads as black: it is missing unless all of the volume is
            black = blank.all() if path.name == "s0" else blank[tuple(full)].all()
            if not black:
                found.missing.append(f"{name} is absent")
                if path.name == "s0":
                    found.missing_z.update(range(box[0].start, box[0].stop))


def _compare_labels(listed: Listed, image: Any, found: Measured) -> None:
    """Compare label boundaries with the image around evenly chosen instances, as they are and mirrored."""
    ids = open_array(listed.path / "labels" / "instances" / "s0")
    chosen = np.unique(np.linspace(0, len(listed.ids) - 1, SAMPLED).astype(int)) if len(listed.ids) else []
    windows = _around(listed, chosen, found.shape, 0)
    direct = _surfaces(image, ids, windows, None)
    found.labels = label_shift(direct)
    for axis in [axis for axis, size in enumerate(found.shape) if size > 1]:
        found.mirrored[AXES[axis]] = mirror_score(direct, _surfaces(image, ids, windows, axis))
    # slices say nothing about z; planes across them do where their pixels are square and there is room for a shift
    if VoxelSize(*listed.voxel_size_nm).is_isotropic and found.shape[0] >= 4 * RADIUS:
        across = _around(listed, chosen, found.shape, 1)
        found.labels_across = label_shift(_surfaces(image, ids, across, None))


def _around(listed: Listed, chosen: Iterable[int], shape: tuple[int, int, int], axis: int) -> list[Window]:
    """Cut windows around instances; each once: in a small volume many have the same, which says no more than one."""
    windows = [Window.around(listed.boxes[row], shape, axis) for row in chosen]
    return list({str(window.box): window for window in windows}.values())


@dataclass(frozen=True)
class Window:
    """A part of one plane of a volume."""

    box: Box  # one voxel thick along ``axis``
    axis: int

    @staticmethod
    def around(bbox: npt.NDArray[np.int64], shape: tuple[int, int, int], axis: int) -> Window:
        """Cut the middle of an instance; of one that is larger than a window, the near end."""
        sides = []
        for k, size in enumerate(shape):
            start, stop = int(bbox[k]), int(bbox[k + 3])
            middle = (start + stop) // 2
            if k == axis:
                sides.append(slice(middle, middle + 1))
                continue
            if stop - start > WINDOW - 4 * RADIUS:
                middle = start
            low = max(0, min(middle - WINDOW // 2, size - WINDOW))
            sides.append(slice(low, min(low + WINDOW, size)))
        return Window((sides[0], sides[1], sides[2]), axis)

    def read(self, array: Any) -> npt.NDArray[Any]:
        """Read the plane ``(row, column)``."""
        return np.asarray(array[self.box].read().result()).squeeze(self.axis)

    def mirrored(self, shape: tuple[int, ...], mirror: int) -> Window:
        """Return the window that the voxels of this one fill when the volume is mirrored along an axis."""
        sides = list(self.box)
        side = sides[mirror]
        sides[mirror] = slice(int(shape[mirror]) - side.stop, int(shape[mirror]) - side.start)
        return Window((sides[0], sides[1], sides[2]), self.axis)


def _surfaces(image: Any, ids: Any, windows: Sequence[Window], mirror: int | None) -> list[Floats | None]:
    """Agreement in each window; ``mirror``: of the labels mirrored along this axis."""
    surfaces = []
    for window in windows:
        labels, place = window.read(ids), window
        if mirror is not None:
            place = window.mirrored(image.shape, mirror)
            in_plane = [axis for axis in range(3) if axis != window.axis]
            labels = np.flip(labels, in_plane.index(mirror)) if mirror in in_plane else labels
        surfaces.append(agreement(place.read(image), labels))
    return surfaces
