"""Volume to rows: slices with their instances, and the columns they are published as."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dataset_builder.splits import SplitPolicy
from em_bench_eval.errors import InputError
from em_bench_eval.rows import encode_png
from em_bench_eval.schema import ObjectRow, Organelle, Record, SourceInfo, Volume

LARGEST_ID = 65535  # 16-bit PNG


def records_of(
    volume: Volume,
    info: SourceInfo,
    policy: SplitPolicy,
    instances: npt.NDArray[Any],
    organelle_of: Mapping[int, Organelle],
) -> Iterator[Record]:
    """Yield one record for every published slice along z, in order.

    ``instances`` is the ``(z, y, x)`` id map of the whole volume: an id in a slice is one volume instance, also where
    the slice cuts it into several pieces.
    """
    annotated = tuple(organelle for organelle in Organelle if organelle in volume.annotated)
    for z, fold in policy.folds_of(volume).items():
        image = np.asarray(volume.image[z])
        ids, objects = number_instances(np.asarray(instances[z]), organelle_of, f"{volume.volume_id} slice {z}")
        yield Record(
            image=image,
            instances=ids,
            objects=objects,
            annotated=annotated,
            annotation_type=tuple(volume.annotated[organelle] for organelle in annotated),
            ignore=None if volume.ignore is None else np.asarray(volume.ignore[z]).astype(bool),
            volume_id=volume.volume_id,
            axis="z",
            slice=z,
            source=volume.source,
            specimen=volume.specimen,
            fold=fold,
            domain=policy.domain_of(volume),
            cell_type=volume.cell_type,
            modality=volume.modality,
            pixel_size_nm=(volume.voxel_size.y, volume.voxel_size.x),
            voxel_size_nm=(volume.voxel_size.z, volume.voxel_size.y, volume.voxel_size.x),
            licence=info.licence,
            citation=info.citation,
        )


def number_instances(
    volume_ids: npt.NDArray[Any], organelle_of: Mapping[int, Organelle], where: str
) -> tuple[npt.NDArray[np.uint16], tuple[ObjectRow, ...]]:
    """Renumber the ids of one ``(y, x)`` slice to 1..N in ascending order of volume id, and describe each."""
    values, local = np.unique(volume_ids, return_inverse=True)
    if len(values) == 0 or values[0] != 0:  # no background in this slice
        values, local = np.concatenate([[0], values]), local + 1
    if len(values) - 1 > LARGEST_ID:
        raise InputError(
            f"{where}: too many instances for a 16-bit image",
            found=len(values) - 1,
            expected=f"at most {LARGEST_ID}",
            remedy="cut the slice into tiles, or drop specks before building",
        )
    ids = local.reshape(volume_ids.shape).astype(np.uint16)
    areas = np.bincount(ids.ravel(), minlength=len(values))
    height, width = ids.shape
    objects = []
    for id_, box in enumerate(ndimage.find_objects(ids, max_label=len(values) - 1), start=1):
        rows, columns = box
        volume_id = int(values[id_])
        border = rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width
        objects.append(
            ObjectRow(
                id=id_,
                organelle=organelle_of[volume_id],
                instance_id=volume_id,
                area=int(areas[id_]),
                bbox=(rows.start, columns.start, rows.stop, columns.stop),
                touches_border=border,
            )
        )
    return ids, tuple(objects)


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
        }
    )


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
    for name in ("annotation_type", "pixel_size_nm", "voxel_size_nm"):
        row[name] = list(getattr(record, name))
    return row
