"""The 3D volumes of the dataset: OME-Zarr 0.5 (zarr v3, sharded) and the table that lists them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.instances import semantic_of
from em_bench_eval.schema import Organelle, SourceInfo, Volume
from lpa.ome_zarr import array_metadata, full_disk_is_os_error, write_group

CHUNK_VOXELS = 64**3
SHARD = 4  # chunks a side: few files, as the Hub wants
ZSTD_LEVEL = 3
SMALLEST_LEVEL = 64  # pixels in plane


def write_volume(
    path: Path, volume: Volume, info: SourceInfo, instances: npt.NDArray[Any], organelle_of: Mapping[int, Organelle]
) -> None:
    """Write one volume as an OME-Zarr group: the image pyramid, ``labels/instances``, ``labels/semantic``.

    An ignore region becomes ``labels/ignore``. Who the voxels belong to (source, specimen, licence, annotation types)
    is in the attribute ``em_organelle_wild``.
    """
    scale_nm = list(volume.voxel_size)
    levels: list[tuple[str, list[float]]] = []
    image = np.asarray(volume.image[:])
    while True:
        name = f"s{len(levels)}"
        _write_array(path / name, image)
        levels.append((name, scale_nm))
        if min(image.shape[1:]) < 2 * SMALLEST_LEVEL:
            break
        # halve z too once it is as fine as the plane, so that voxels tend to cubes
        factors = (2 if scale_nm[0] <= 1.5 * scale_nm[2] and image.shape[0] > 1 else 1, 2, 2)
        image = _halve(image, factors)
        scale_nm = [nm * factor for nm, factor in zip(scale_nm, factors, strict=True)]
    provenance = {
        "source": volume.source,
        "specimen": volume.specimen,
        "licence": info.licence,
        "annotated": {str(organelle): kind for organelle, kind in volume.annotated.items()},
        "organelle_of": {str(id_): str(organelle) for id_, organelle in organelle_of.items()},
        "provenance": dict(volume.provenance),
    }
    ome = {"version": "0.5", "multiscales": [_multiscales(volume.volume_id, levels)]}
    write_group(path, {"ome": ome, "em_organelle_wild": provenance})
    labels = {"instances": instances, "semantic": semantic_of(instances, dict(organelle_of))}
    if volume.ignore is not None:
        labels["ignore"] = np.asarray(volume.ignore[:]).astype(np.uint8)
    write_group(path / "labels", {"ome": {"version": "0.5", "labels": list(labels)}})
    for name, array in labels.items():
        multiscales = [_multiscales(name, [("s0", list(volume.voxel_size))])]
        write_group(path / "labels" / name, {"ome": {"version": "0.5", "multiscales": multiscales, "image-label": {}}})
        _write_array(path / "labels" / name / "s0", array)


def volume_row(
    volume: Volume, info: SourceInfo, folder: str, domain: str, organelle_of: Mapping[int, Organelle]
) -> dict[str, object]:
    """Return the row of a volume in the configuration ``volumes``; ``zarr`` is relative to the dataset folder."""
    counts = {str(organelle): 0 for organelle in Organelle}
    for organelle in organelle_of.values():
        counts[str(organelle)] += 1
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
        "annotated": [str(organelle) for organelle in Organelle if organelle in volume.annotated],
        "instances": json.dumps(counts),
        "licence": info.licence,
        "citation": info.citation,
    }


def volume_features() -> Any:
    """Return the ``datasets.Features`` of the configuration ``volumes``."""
    import datasets
    from datasets import Value

    text = Value("string")
    return datasets.Features(
        {
            "volume_id": text,
            "zarr": text,
            "shape": datasets.List(Value("int64"), length=3),
            "voxel_size_nm": datasets.List(Value("float64"), length=3),
            **dict.fromkeys(("source", "specimen", "domain", "cell_type", "modality"), text),
            "annotated": datasets.List(text),
            **dict.fromkeys(("instances", "licence", "citation"), text),
        }
    )


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Store one array as zarr v3 with sharded chunks, zstd; tensorstore writes it, any zarr v3 library reads it."""
    import tensorstore as ts

    depth = min(64, array.shape[0])
    side = 1 << ((CHUNK_VOXELS // depth).bit_length() - 1) // 2  # a thin volume gets wide chunks of the same content
    chunk = (depth, min(side, array.shape[1]), min(side, array.shape[2]))
    shard = tuple(edge * min(SHARD, -(-size // edge)) for edge, size in zip(chunk, array.shape, strict=True))
    metadata = array_metadata(array.shape, array.dtype, chunk, shard, ZSTD_LEVEL)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}, "metadata": metadata}
    with full_disk_is_os_error():
        ts.open(spec, create=True).result().write(array).result()


def _halve(image: npt.NDArray[np.uint8], factors: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """Average blocks of ``factors`` voxels; a remainder at the end of an axis is dropped."""
    kept = [size - size % factor for size, factor in zip(image.shape, factors, strict=True)]
    blocks = image[: kept[0], : kept[1], : kept[2]].astype(np.float32)
    for axis, factor in enumerate(factors):
        if factor > 1:
            shape = (*blocks.shape[:axis], blocks.shape[axis] // factor, factor, *blocks.shape[axis + 1 :])
            blocks = blocks.reshape(shape).mean(axis + 1)
    return np.rint(blocks).astype(np.uint8)


def _multiscales(name: str, levels: list[tuple[str, list[float]]]) -> dict[str, object]:
    full = levels[0][1]
    datasets = []
    for path, scale_nm in levels:
        # averaging moves a voxel's centre by half of what it grew
        shift = [(nm - fine) / 2 for nm, fine in zip(scale_nm, full, strict=True)]
        transforms: list[dict[str, object]] = [{"type": "scale", "scale": scale_nm}]
        if any(shift):
            transforms.append({"type": "translation", "translation": shift})
        datasets.append({"path": path, "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    return {"name": name, "axes": axes, "datasets": datasets}
