"""Voxels to rows: slices with their instances, and the columns they are published as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dataset_builder.columns import IMAGE, Column, Many, array_of, schema_of
from dataset_builder.layout import Box
from dataset_builder.numbering import IdTable, Plane, number_plane
from em_bench_eval.rows import encode_png
from em_bench_eval.schema import ORGANELLES, Axis, Domain, Fold, Organelle, SourceInfo, Volume

AXES: tuple[Axis, ...] = ("z", "y", "x")

COLUMNS: dict[str, Column] = {  # of a published row: a slice of a volume with all that is known about it
    "image": IMAGE,  # (y, x) uint8
    "instances": IMAGE,  # (y, x) uint16, ids 1..N in this image
    "objects": Many(  # an instance as it appears in this image
        {
            "id": "int32",  # value in ``instances``
            "organelle": "string",
            "instance_id": "int64",  # in the whole volume
            "area": "int64",  # pixels
            "bbox": Many("int32", 4),  # (y0, x0, y1, x1), half-open
            "touches_border": "bool",
        }
    ),
    "annotated": Many("string"),  # organelles
    "annotation_type": Many("string"),  # parallel to ``annotated``
    "ignore": IMAGE,  # (y, x), not 0: nobody annotated this pixel; or null
    "volume_id": "string",
    "axis": "string",
    "slice": "int32",
    "source": "string",
    "specimen": "string",
    "fold": "string",
    "domain": "string",
    "cell_type": "string",
    "modality": "string",
    "pixel_size_nm": Many("float64", 2),  # (y, x) of the image plane
    "voxel_size_nm": Many("float64", 3),  # (z, y, x) of the volume
    "licence": "string",
    "citation": "string",
    "offset": Many("int32", 2),  # where the image's first pixel lies in the whole slice, pixels in the image plane
}


class Voxels(NamedTuple):
    """One box of a volume, harmonised; all arrays ``(z, y, x)`` of one shape."""

    image: npt.NDArray[np.uint8]
    ids: npt.NDArray[Any]  # instance ids of the volume, unsigned
    classes: npt.NDArray[np.uint8]  # Organelle.label_id
    ignore: npt.NDArray[np.bool_] | None


class Slice(NamedTuple):
    """What differs between the rows of one box; label maps are 16-bit PNG, so that nothing can re-encode them."""

    number: int  # slices from the volume's first
    plane: Plane
    image: bytes  # PNG
    instances: bytes  # PNG
    ignore: bytes | None  # PNG

    @property
    def stored_bytes(self) -> int:
        """Bytes of the images."""
        return len(self.image) + len(self.instances) + len(self.ignore or b"")


def planes_of(voxels: Voxels, box: Box, axis: Axis, where: str) -> Iterator[tuple[int, Plane]]:
    """Yield the number of each slice of a box along ``axis``, and its instances."""
    along = AXES.index(axis)
    for place in range(voxels.ids.shape[along]):
        number = box[along].start + place
        ids, classes = _cut(voxels.ids, place, along), _cut(voxels.classes, place, along)
        yield number, number_plane(ids, classes, f"{where} slice {number}")


def image_of(voxels: Voxels, box: Box, axis: Axis, number: int) -> npt.NDArray[np.uint8]:
    """Return the image of a slice of a box."""
    along = AXES.index(axis)
    return _cut(voxels.image, number - box[along].start, along)


def slice_of(voxels: Voxels, box: Box, axis: Axis, number: int, plane: Plane) -> Slice:
    """Encode one slice of a box."""
    along = AXES.index(axis)
    ignore = None if voxels.ignore is None else _cut(voxels.ignore, number - box[along].start, along)
    return Slice(
        number,
        plane,
        encode_png(image_of(voxels, box, axis, number)),
        encode_png(plane.ids),
        None if ignore is None else encode_png(ignore),
    )


def _cut(array: npt.NDArray[Any], place: int, along: int) -> npt.NDArray[Any]:
    return np.asarray(array[(slice(None),) * along + (place,)])


def rows_of(
    volume: Volume, info: SourceInfo, box: Box, axis: Axis, slices: Sequence[Slice], fold: Fold, domain: Domain
) -> Any:
    """Return the rows of slices of a box as a ``pyarrow.Table``.

    An id in a slice is one volume instance, also where the slice cuts it into several pieces. The image begins at the
    box's corner, which is its ``offset`` in the slice.
    """
    import pyarrow as pa

    in_plane = [other for other in range(3) if AXES[other] != axis]
    size_nm = list(volume.voxel_size)
    annotated = [organelle for organelle in Organelle if organelle in volume.annotated]
    same = {  # in all rows
        "annotated": [str(organelle) for organelle in annotated],
        "annotation_type": [volume.annotated[organelle] for organelle in annotated],
        "volume_id": volume.volume_id,
        "axis": axis,
        "source": volume.source,
        "specimen": volume.specimen,
        "fold": fold,
        "domain": domain,
        "cell_type": volume.cell_type,
        "modality": volume.modality,
        "pixel_size_nm": [size_nm[in_plane[0]], size_nm[in_plane[1]]],
        "voxel_size_nm": size_nm,
        "licence": info.licence,
        "citation": info.citation,
        "offset": [box[in_plane[0]].start, box[in_plane[1]].start],
    }
    columns = {name: array_of(COLUMNS[name], [value] * len(slices)) for name, value in same.items()}
    for name in ("image", "instances", "ignore"):
        columns[name] = array_of(IMAGE, [getattr(one, name) for one in slices])
    columns["slice"] = array_of("int32", [one.number for one in slices])
    columns["objects"] = _objects([one.plane for one in slices])
    return pa.Table.from_arrays([columns[name] for name in COLUMNS], schema=row_schema())


def _objects(planes: Sequence[Plane]) -> Any:
    import pyarrow as pa

    counts = [len(plane.instance_ids) for plane in planes]
    boxes = np.concatenate([plane.boxes for plane in planes])
    heights, widths = (np.repeat([plane.ids.shape[side] for plane in planes], counts) for side in (0, 1))
    classes = np.concatenate([plane.classes for plane in planes])
    arrays = {
        "id": array_of("int32", np.concatenate([np.arange(1, count + 1) for count in counts])),
        "organelle": array_of("string", ORGANELLES).take(array_of("int32", classes.astype(np.int32) - 1)),
        "instance_id": array_of("int64", np.concatenate([plane.instance_ids for plane in planes])),
        "area": array_of("int64", np.concatenate([plane.areas for plane in planes])),
        "bbox": pa.FixedSizeListArray.from_arrays(array_of("int32", boxes.ravel()), 4),
        "touches_border": array_of(
            "bool", (boxes[:, :2] == 0).any(axis=1) | (boxes[:, 2] == heights) | (boxes[:, 3] == widths)
        ),
    }
    kind = row_schema().field("objects").type
    entries = pa.StructArray.from_arrays(list(arrays.values()), fields=list(kind.value_type))
    return pa.ListArray.from_arrays(array_of("int32", np.cumsum([0, *counts])), entries)


def class_table(organelle_of: Mapping[int, Organelle]) -> IdTable:
    """Return the class number of each instance id; 0 for ids that have none."""
    ids = np.fromiter(organelle_of, np.uint64, len(organelle_of))
    return IdTable(ids, np.array([organelle.label_id for organelle in organelle_of.values()], np.uint8))


def features() -> Any:
    """Return the ``datasets.Features`` of a row."""
    import datasets

    return datasets.Features.from_arrow_schema(row_schema())


@lru_cache(maxsize=1)
def row_schema() -> Any:
    """Return the ``pyarrow.Schema`` of a row, with the metadata that ``datasets`` reads."""
    return schema_of(COLUMNS)
