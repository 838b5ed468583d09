"""Voxels to rows: slices with their instances, and the columns they are published as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dataset_builder.layout import Box
from dataset_builder.numbering import IdTable, Plane, number_plane
from em_bench_eval.rows import encode_png
from em_bench_eval.schema import Axis, Domain, Fold, ObjectRow, Organelle, Record, SourceInfo, Volume

AXES: tuple[Axis, ...] = ("z", "y", "x")


class Voxels(NamedTuple):
    """One box of a volume, harmonised; all arrays ``(z, y, x)`` of one shape."""

    image: npt.NDArray[np.uint8]
    ids: npt.NDArray[Any]  # instance ids of the volume, unsigned
    classes: npt.NDArray[np.uint8]  # Organelle.label_id
    ignore: npt.NDArray[np.bool_] | None


def planes_of(voxels: Voxels, box: Box, axis: Axis, where: str) -> Iterator[tuple[int, Plane]]:
    """Yield the number of each slice of a box along ``axis``, and its instances."""
    along = AXES.index(axis)
    for place in range(voxels.ids.shape[along]):
        number = box[along].start + place
        ids, classes = np.asarray(voxels.ids.take(place, along)), np.asarray(voxels.classes.take(place, along))
        yield number, number_plane(ids, classes, f"{where} slice {number}")


def record_of(
    volume: Volume,
    info: SourceInfo,
    voxels: Voxels,
    box: Box,
    axis: Axis,
    number: int,
    plane: Plane,
    fold: Fold,
    domain: Domain,
) -> Record:
    """Return the row of one slice of a box; ``number`` counts slices from the volume's first.

    An id in a slice is one volume instance, also where the slice cuts it into several pieces. The image begins at the
    box's corner, which is its ``offset`` in the slice.
    """
    along = AXES.index(axis)
    in_plane = [other for other in range(3) if other != along]
    size_nm = (volume.voxel_size.z, volume.voxel_size.y, volume.voxel_size.x)
    place = number - box[along].start
    annotated = tuple(organelle for organelle in Organelle if organelle in volume.annotated)
    return Record(
        image=voxels.image.take(place, along),
        instances=plane.ids,
        objects=_objects(plane),
        annotated=annotated,
        annotation_type=tuple(volume.annotated[organelle] for organelle in annotated),
        ignore=None if voxels.ignore is None else voxels.ignore.take(place, along),
        volume_id=volume.volume_id,
        axis=axis,
        slice=number,
        source=volume.source,
        specimen=volume.specimen,
        fold=fold,
        domain=domain,
        cell_type=volume.cell_type,
        modality=volume.modality,
        pixel_size_nm=(size_nm[in_plane[0]], size_nm[in_plane[1]]),
        voxel_size_nm=size_nm,
        licence=info.licence,
        citation=info.citation,
        offset=(box[in_plane[0]].start, box[in_plane[1]].start),
    )


def _objects(plane: Plane) -> tuple[ObjectRow, ...]:
    height, width = plane.ids.shape
    known = list(Organelle)
    rows = zip(
        plane.instance_ids.tolist(), plane.classes.tolist(), plane.areas.tolist(), plane.boxes.tolist(), strict=True
    )
    return tuple(
        ObjectRow(
            id=id_,
            organelle=known[class_ - 1],
            instance_id=instance_id,
            area=area,
            bbox=(y0, x0, y1, x1),
            touches_border=y0 == 0 or x0 == 0 or y1 == height or x1 == width,
        )
        for id_, (instance_id, class_, area, (y0, x0, y1, x1)) in enumerate(rows, start=1)
    )


def number_instances(
    volume_ids: npt.NDArray[Any], organelle_of: Mapping[int, Organelle], where: str
) -> tuple[npt.NDArray[np.uint16], tuple[ObjectRow, ...]]:
    """Renumber the ids of one ``(y, x)`` slice to 1..N in ascending order of volume id, and describe each."""
    plane = number_plane(volume_ids, class_table(organelle_of)[volume_ids], where)
    return plane.ids, _objects(plane)


def class_table(organelle_of: Mapping[int, Organelle]) -> IdTable:
    """Return the class number of each instance id; 0 for ids that have none."""
    ids = np.fromiter(organelle_of, np.uint64, len(organelle_of))
    return IdTable(ids, np.array([organelle.label_id for organelle in organelle_of.values()], np.uint8))


def features() -> Any:
    """Return the ``datasets.Features`` of a row; column names are the field names of ``schema.Record``."""
    import datasets
    from datasets import Value

    text = Value("string")
    return datasets.Features(
        {
            "image": datasets.Image(),
            "instances": datasets.Image(),
            "objects": datasets.List(
                {
                    "id": Value("int32"),
                    "organelle": text,
                    "instance_id": Value("int64"),
                    "area": Value("int64"),
                    "bbox": datasets.List(Value("int32"), length=4),
                    "touches_border": Value("bool"),
                }
            ),
            "annotated": datasets.List(text),
            "annotation_type": datasets.List(text),
            "ignore": datasets.Image(),
            "volume_id": text,
            "axis": text,
            "slice": Value("int32"),
            "source": text,
            "specimen": text,
            "fold": text,
            "domain": text,
            "cell_type": text,
            "modality": text,
            "pixel_size_nm": datasets.List(Value("float64"), length=2),
            "voxel_size_nm": datasets.List(Value("float64"), length=3),
            "licence": text,
            "citation": text,
            "offset": datasets.List(Value("int32"), length=2),
        }
    )


@lru_cache(maxsize=1)
def row_schema() -> Any:
    """Return the ``pyarrow.Schema`` of a row, with the metadata that ``datasets`` reads."""
    return features().arrow_schema


def as_row(record: Record) -> dict[str, object]:
    """Return the published form of a record: label maps as 16-bit PNG, so that nothing can re-encode them."""
    row: dict[str, object] = {name: getattr(record, name) for name in Record.__dataclass_fields__}
    row["image"] = {"bytes": encode_png(record.image), "path": None}
    row["instances"] = {"bytes": encode_png(record.instances), "path": None}
    row["ignore"] = None if record.ignore is None else {"bytes": encode_png(record.ignore), "path": None}
    row["objects"] = [
        {**vars(entry), "organelle": str(entry.organelle), "bbox": list(entry.bbox)} for entry in record.objects
    ]
    row["annotated"] = [str(organelle) for organelle in record.annotated]
    for name in ("annotation_type", "pixel_size_nm", "voxel_size_nm", "offset"):
        row[name] = list(getattr(record, name))
    return row
