"""The 3D volumes of the dataset: OME-Zarr 0.5 (zarr v3, sharded), box by box, and the table that lists them.

::

    <volume_id>.zarr/
        s0, s1, ...                     image pyramid, uint8
        labels/instances/s0, s1, ...    instance ids of the volume
        labels/semantic/s0, s1, ...     Organelle.label_id
        labels/ignore/s0, s1, ...       1 = nobody annotated this voxel; only where there is such a region
        labels/extra/NAME/s0, s1, ...   ids of a structure outside the five, or 1 for its mask; only where published
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.columns import Column, Many
from dataset_builder.layout import Box, Layout, layout_of
from dataset_builder.pyramid import Factors, any_of, average, commonest, levels_of
from em_bench_eval.schema import Organelle, SourceInfo, Volume
from em_bench_eval.volume_files import folder_store
from lpa.ome_zarr import array_metadata, full_disk_is_os_error, write_group

ZSTD_LEVEL = 1  # images are noise to zstd, labels are long runs: higher levels cost time and save little
LISTED_IN_ATTRIBUTES = 4096  # instances; the organelles of more are in instances.parquet only
IMAGE = "."  # the image's own group; the others are below labels/
COLUMNS: dict[str, Column] = {
    "volume_id": "string",
    "zarr": "string",
    "shape": Many("int64", 3),
    "voxel_size_nm": Many("float64", 3),
    **dict.fromkeys(("source", "specimen", "domain", "cell_type", "modality"), "string"),
    "has_image": "bool",
    "annotated": Many("string"),
    "extras": Many("string"),
    **dict.fromkeys(("instances", "licence", "citation"), "string"),
}
REDUCE = {IMAGE: average, "labels/instances": commonest, "labels/semantic": commonest, "labels/ignore": any_of}
EXTRA = "labels/extra"  # one group for each structure outside the five


class Pyramids:
    """The arrays of one volume's folder, made empty at first and filled box by box, in any order, by any process.

    Every file is the content of one box and appears complete, so that a box may safely be written twice. ``drafts`` is
    a folder for what a box adds to level 1, whose own boxes are larger: so that level 0 is not read again.
    """

    def __init__(
        self,
        folder: Path,
        drafts: Path,
        shape: Sequence[int],
        voxel_size_nm: Sequence[float],
        max_side: int,
        ignore: bool,
        extras: Mapping[str, npt.DTypeLike] | None = None,
    ):
        self.folder, self._drafts = folder, drafts
        self._voxel_size_nm = [float(nm) for nm in voxel_size_nm]
        self.factors = levels_of(shape, voxel_size_nm)
        self.layouts = [layout_of(shape, max_side)]
        for factors in self.factors:
            size = self.layouts[-1].shape
            self.layouts.append(layout_of([edge // by for edge, by in zip(size, factors, strict=True)], max_side))
        self.row_groups = [name for name in REDUCE if ignore or name != "labels/ignore"]  # what rows are made of
        self._extras = {extra_group(name): stored_dtype(of) for name, of in sorted((extras or {}).items())}
        self.groups = [*self.row_groups, *self._extras]

    def create(self, id_dtype: npt.DTypeLike) -> None:
        """Make all arrays; those that are there already stay as they are."""
        for group in self.groups:
            for level, layout in enumerate(self.layouts):
                dtype = id_dtype if group == "labels/instances" else self._extras.get(group, np.uint8)
                create_array(self.folder / group / f"s{level}", layout, dtype)
                if level == 1:  # a box of level 0 is a chunk
                    fine = zip(self.layouts[0].shard, self.factors[0], strict=True)
                    z, y, x = (-(-edge // factor) for edge, factor in fine)
                    create_array(self._drafts / group, Layout(layout.shape, (z, y, x), (z, y, x)), dtype)

    def store(self, group: str, box: Box, values: npt.NDArray[Any]) -> None:
        """Store one box of level 0, and draft its part of level 1."""
        write_box(self.folder / group / "s0", box, values)
        if self.factors:
            step = max(2, self.layouts[0].chunk[0] // 8 * 2)  # slices at a time, even
            pieces = [values[z : z + step] for z in range(0, len(values), step)]
            coarse = np.concatenate([reduced(group, piece, self.factors[0]) for piece in pieces])
            corner = [side.start // factor for side, factor in zip(box, self.factors[0], strict=True)]
            z, y, x = (slice(start, start + edge) for start, edge in zip(corner, coarse.shape, strict=True))
            if coarse.size:
                write_box(self._drafts / group, (z, y, x), coarse)

    def read(self, group: str, level: int, box: Box) -> npt.NDArray[Any]:
        """Read any box of one level."""
        return np.asarray(open_array(self.folder / group / f"s{level}")[box].read().result())

    def reduce(self, group: str, level: int, box: Box) -> None:
        """Fill one box of ``level`` from the drafts, or from the level before in pieces of a quarter chunk's depth."""
        if level == 1:
            drafted = np.asarray(open_array(self._drafts / group)[box].read().result())
            return write_box(self.folder / group / "s1", box, drafted)
        factors = self.factors[level - 1]
        layout = self.layouts[level]
        source = open_array(self.folder / group / f"s{level - 1}")
        pieces = []
        step = max(1, layout.chunk[0] // 4)
        for start in range(box[0].start, box[0].stop, step):
            part = (slice(start, min(start + step, box[0].stop)), *box[1:])
            fine = tuple(slice(side.start * by, side.stop * by) for side, by in zip(part, factors, strict=True))
            pieces.append(reduced(group, np.asarray(source[fine].read().result()), factors))
        return write_box(self.folder / group / f"s{level}", box, np.concatenate(pieces))

    def describe(self, volume: Volume, info: SourceInfo, organelle_of: Mapping[int, Organelle]) -> None:
        """Write the attributes of all groups; who the voxels belong to is in ``em_organelle_wild``."""
        about: dict[str, object] = {
            "source": volume.source,
            "specimen": volume.specimen,
            "licence": info.licence,
            "annotated": {str(organelle): kind for organelle, kind in volume.annotated.items()},
            "instances": len(organelle_of),
            "provenance": dict(volume.provenance),
        }
        if volume.extras:
            about["extras"] = sorted(volume.extras)
        if len(organelle_of) <= LISTED_IN_ATTRIBUTES:
            about["organelle_of"] = {str(id_): str(organelle) for id_, organelle in sorted(organelle_of.items())}
        ome = {"version": "0.5", "multiscales": [self._multiscales(volume.volume_id)]}
        write_group(self.folder, {"ome": ome, "em_organelle_wild": about})
        names = [group.partition("/")[2] for group in self.groups if group != IMAGE]
        write_group(self.folder / "labels", {"ome": {"version": "0.5", "labels": names}})
        if self._extras:
            write_group(self.folder / EXTRA, {})
        for name in names:
            of_labels = {"version": "0.5", "multiscales": [self._multiscales(name)], "image-label": {}}
            write_group(self.folder / "labels" / name, {"ome": of_labels})

    def _multiscales(self, name: str) -> dict[str, object]:
        datasets = []
        scale_nm = self._voxel_size_nm
        for level, factors in enumerate([(1, 1, 1), *self.factors]):
            scale_nm = [nm * factor for nm, factor in zip(scale_nm, factors, strict=True)]
            # a coarser voxel's centre moves by half of what it grew
            shift = [(nm - fine) / 2 for nm, fine in zip(scale_nm, self._voxel_size_nm, strict=True)]
            transforms: list[dict[str, object]] = [{"type": "scale", "scale": scale_nm}]
            if any(shift):
                transforms.append({"type": "translation", "translation": shift})
            datasets.append({"path": f"s{level}", "coordinateTransformations": transforms})
        axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
        return {"name": name, "axes": axes, "datasets": datasets}


def extra_group(name: str) -> str:
    """Return the group of a structure outside the five."""
    return f"{EXTRA}/{name}"


def stored_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """Return the type in which an extra is stored: masks as 0 and 1."""
    return np.dtype(np.uint8) if np.dtype(dtype).kind == "b" else np.dtype(dtype).newbyteorder("=")


def reduced(group: str, values: npt.NDArray[Any], factors: Factors) -> npt.NDArray[Any]:
    """Reduce a box of a group by ``factors``; extras as instances are."""
    return REDUCE[group if group in REDUCE else "labels/instances"](values, factors)


def create_array(path: Path, layout: Layout, dtype: npt.DTypeLike) -> None:
    """Make an empty sharded zarr v3 array, unless it is there."""
    import tensorstore as ts

    metadata = array_metadata(layout.shape, dtype, layout.chunk, layout.shard, ZSTD_LEVEL)
    spec = {"driver": "zarr3", "kvstore": folder_store(path), "metadata": metadata}
    with full_disk_is_os_error():
        ts.open(spec, create=True, open=True).result()


def open_array(path: Path) -> Any:
    """Open a zarr v3 array of ours for reading and writing."""
    import tensorstore as ts

    return ts.open({"driver": "zarr3", "kvstore": folder_store(path)}).result()


def write_box(path: Path, box: Box, values: npt.NDArray[Any]) -> None:
    """Write one box of a zarr v3 array of ours; returns when it is stored."""
    with full_disk_is_os_error():
        # tensorstore need not copy: nothing reads through this handle, and the values stay until they are stored
        open_array(path)[box].write(values, can_reference_source_data_indefinitely=True).result()


def volume_row(
    volume: Volume, info: SourceInfo, folder: str, domain: str, counts: Mapping[str, int]
) -> dict[str, object]:
    """Return the row of a volume in the configuration ``volumes``.

    ``zarr`` is relative to the dataset folder; ``counts`` is the number of instances of each organelle.
    """
    return {
        "volume_id": volume.volume_id,
        "zarr": f"{folder}/{volume.volume_id}.zarr",
        "shape": [int(size) for size in volume.image.shape],
        "voxel_size_nm": list(volume.voxel_size),
        "source": volume.source,
        "specimen": volume.specimen,
        "domain": domain,
        "cell_type": volume.cell_type,
        "modality": volume.modality,
        "has_image": volume.has_image,
        "annotated": [str(organelle) for organelle in Organelle if organelle in volume.annotated],
        "extras": sorted(volume.extras),
        "instances": json.dumps({str(organelle): counts.get(str(organelle), 0) for organelle in Organelle}),
        "licence": info.licence,
        "citation": info.citation,
    }
